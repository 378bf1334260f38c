//! Rules for requests.

use karst_k8s_api::istio::virtual_service::{HttpDestination, HttpRoute};
use karst_model::route::{
    DirectResponse, HttpFilter, HttpMatch, HttpRule, Timeouts, WeightedBackend,
};
use karst_routing::filter::Filter as Compiled;

use super::{
    Findings, VirtualFacts, World,
    delegates::{self, Placed},
    destinations, filters, is_of_mesh, matches, retries, values,
};
use crate::facts::Name;

/// The rules, in the order in which they are written.
pub(super) fn rules(
    name: &Name,
    facts: &VirtualFacts,
    world: &World<'_>,
    findings: &mut Findings,
) -> Vec<HttpRule> {
    let placed = delegates::expanded(name, facts, world, findings);
    let lowered = placed
        .iter()
        .filter_map(|placed| one(placed, world, findings));
    lowered.collect()
}

/// `None`: nothing in the mesh can take it.
fn one(placed: &Placed, world: &World<'_>, findings: &mut Findings) -> Option<HttpRule> {
    let Placed {
        route,
        owner,
        place,
    } = placed;
    let of_mesh = route.r#match.iter().filter(|one| is_of_mesh(one));
    let sources: Vec<_> = of_mesh.collect();
    if sources.is_empty() && !route.r#match.is_empty() {
        return None;
    }
    let mut rule = HttpRule {
        name: route.name.as_deref().map(Into::into),
        ..HttpRule::default()
    };
    for (index, source) in sources.iter().enumerate() {
        if source.stat_prefix.is_some() {
            findings.idle(format!("{place}.match[{index}].statPrefix has no effect"));
        }
        match matches::one(&format!("{place}.match[{index}]"), source) {
            Ok(lowered) => rule.matches.push(lowered),
            Err(message) => findings.faults.push(message),
        }
    }
    if route.r#match.is_empty() {
        rule.matches.push(HttpMatch::default());
    }
    if let Err(message) = fill(&mut rule, route, owner, place, world, findings) {
        // What a delegate did wrong is said already.
        if !place.is_empty() {
            findings.faults.push(message.clone());
        }
        rule = refusing(rule, message);
    }
    Some(rule)
}

/// Its requests are answered with 500.
fn refusing(rule: HttpRule, message: String) -> HttpRule {
    HttpRule {
        name: rule.name,
        matches: rule.matches,
        filters: vec![HttpFilter::Direct(DirectResponse {
            status: 500,
            body: "".into(),
            reason: message.into(),
        })],
        ..HttpRule::default()
    }
}

fn fill(
    rule: &mut HttpRule,
    route: &HttpRoute,
    owner: &Name,
    place: &str,
    world: &World<'_>,
    findings: &mut Findings,
) -> Result<(), String> {
    let does = [
        !route.route.is_empty(),
        route.redirect.is_some(),
        route.direct_response.is_some(),
    ];
    match does.into_iter().filter(|one| *one).count() {
        0 => {
            return Err(format!(
                "{place} has neither route nor redirect nor directResponse"
            ));
        }
        1 => {}
        _ => {
            return Err(format!(
                "{place}: route, redirect and directResponse exclude one another"
            ));
        }
    }
    rule.filters = filters::of_rule(route, place, owner, world, findings)?;
    rule.timeouts = Timeouts {
        request: values::limit(&format!("{place}.timeout"), route.timeout.as_ref())?,
        backend_request: None,
    };
    if let Some(source) = &route.retries {
        let (policy, each) = retries::lower(&format!("{place}.retries"), source, findings)?;
        rule.timeouts.backend_request = each;
        rule.retry = Some(policy);
    }
    rule.backends = backends(&route.route, place, owner, world, findings)?;
    for filter in rule
        .filters
        .iter()
        .chain(rule.backends.iter().flat_map(|backend| &backend.filters))
    {
        Compiled::compile(filter).map_err(|unusable| format!("{place}: {unusable}"))?;
    }
    Ok(())
}

fn backends(
    sources: &[HttpDestination],
    place: &str,
    owner: &Name,
    world: &World<'_>,
    findings: &mut Findings,
) -> Result<Vec<WeightedBackend>, String> {
    let field = format!("{place}.route");
    let asked: Vec<Option<i32>> = sources.iter().map(|one| one.weight).collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let weights = destinations::weights(&field, &asked)?;
    let mut backends = Vec::with_capacity(sources.len());
    for (index, (source, weight)) in sources.iter().zip(weights).enumerate() {
        let here = format!("{field}[{index}]");
        backends.push(WeightedBackend {
            backend: destinations::backend(&here, &source.destination, owner, world, findings),
            weight,
            filters: match &source.headers {
                Some(headers) => filters::headers(&format!("{here}.headers"), headers)?,
                None => Vec::new(),
            },
        });
    }
    Ok(backends)
}
