//! Rate limits that count a request. Whether one of them refuses it depends on what came before.

use karst_model::{
    rate_limit::{Enforcement, LimitTarget, RateLimit},
    service::Service,
};
use karst_policy::request::{Asked, Selection};
use karst_routing::{request::Request, table::Picked};

use super::AtWaypoint;
use crate::why::{Ask, Detail, Object, Outcome, StepName};

impl Ask<'_> {
    /// Says which rules count the request.
    pub(super) fn limits(
        &mut self,
        at: &AtWaypoint<'_>,
        service: &Service,
        request: &Request,
        picked: Option<Picked<'_>>,
    ) {
        let connection = at.connection(at.dialled.port());
        let asked = Asked {
            request,
            connection: &connection,
            remote_ip: at.remote_ip(request, &connection),
            sni: None,
        };
        let bound = at.is_bound(self.facts, service);
        let is_meant = |target: &LimitTarget| match target {
            LimitTarget::Service(key) => bound && *key == service.key,
            LimitTarget::Gateway { namespace, name } => {
                *namespace == at.gateway.namespace && *name == at.gateway.name
            }
            LimitTarget::Route(key) => picked.is_some_and(|picked| picked.rule.route.key == *key),
        };
        let all = self.facts.of_waypoint(&at.gateway).rate_limits();
        let details: Vec<Detail> = all
            .iter()
            .filter(|limit| limit.targets.iter().any(is_meant))
            .flat_map(|limit| counting(limit, &asked))
            .collect();
        if !details.is_empty() {
            let text = "counted by rate limits: each refuses what is beyond it";
            self.say(StepName::RateLimit, Outcome::Depends, text)
                .details = details;
        }
    }
}

/// The rules of a limit that match, in words.
fn counting(limit: &RateLimit, asked: &Asked<'_>) -> Vec<Detail> {
    let selection = Selection::compile(limit.rules.iter().map(|rule| rule.matches.as_slice()));
    let mut details = Vec::new();
    selection.each(asked, |index| {
        let Some(rule) = limit.rules.get(index) else {
            return;
        };
        let object = Object::new("RateLimit", &limit.key.namespace, &limit.key.name);
        let each = match rule.keys.is_empty() {
            true => "",
            false => " for each of its keys",
        };
        let beyond = match limit.enforcement {
            Enforcement::Enforce => format!("beyond that {}", limit.status),
            Enforcement::Shadow => "beyond that only counted".to_owned(),
        };
        let text = format!(
            "{object} rule {}: {} requests per {:?}{each}, {} at once; {beyond}",
            rule.name, rule.requests, rule.period, rule.burst
        );
        details.push(Detail::about(object, text));
    });
    details
}
