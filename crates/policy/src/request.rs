//! Authorization of requests at a waypoint: policies with `targetRefs`.
//!
//! ```text
//!   model::WaypointPolicy ──applies?──► RequestPolicies::compile ──decide──► RequestDecision    (every request)
//!   (all that were received)                     └────explain────► RequestExplanation           (on request)
//! ```
//!
//! The semantics are Istio's with the deviations of `docs/design/policy-deviations.md`; the connection's part of a match
//! is compared by the same code as at L4. Where a value has more than one reading (a path with escapes, a header sent
//! twice) a comparison that leads to a refusal takes all of them and one that leads to admission only the plainest.

mod explain;
mod index;
mod matcher;
#[cfg(test)]
mod mutation;
mod selection;
mod template;
mod view;

use std::{net::IpAddr, sync::Arc};

use karst_model::{
    external::ExternalAuthorizer,
    name::{PolicyKey, ServiceKey},
    waypoint_policy::{PolicyTarget, RequestAction, WaypointPolicy},
};
use karst_routing::request::Request;
use serde::Serialize;

pub use self::{
    explain::{RequestExplanation, RequestTrace},
    selection::Selection,
    template::{PathError, check_path},
};
use self::{index::Index, matcher::Rules, view::View};
use crate::{
    compare::{RequestSite, holds_request},
    connection::Connection,
    decision::{DenyReason, DryRun, DryRunAllow, RuleRef, Verdict},
};

/// The waypoint that asks.
#[derive(Clone, Copy, Debug)]
pub struct GatewayRef<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub class: &'a str,
}

/// Whether a policy applies to requests for this service that pass this waypoint. Pod-addressed requests have no
/// service.
pub fn applies(
    policy: &WaypointPolicy,
    service: Option<&ServiceKey>,
    gateway: GatewayRef<'_>,
) -> bool {
    is_target(&policy.targets, service, gateway)
}

/// The same for whatever else has targets.
pub fn is_target(
    targets: &[PolicyTarget],
    service: Option<&ServiceKey>,
    gateway: GatewayRef<'_>,
) -> bool {
    targets.iter().any(|target| match target {
        PolicyTarget::Service(target) => service == Some(target),
        PolicyTarget::Gateway { namespace, name } => {
            **namespace == *gateway.namespace && **name == *gateway.name
        }
        PolicyTarget::GatewayClass(class) => **class == *gateway.class,
    })
}

/// What policies are asked about: a request, with its verified token, and what the waypoint knows of where it came from.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub request: &'a Request,
    /// The client's connection; its destination port is the service's.
    pub connection: &'a Connection,
    /// The client's address as trusted proxies tell it, from [`karst_routing::request::remote_ip`].
    pub remote_ip: IpAddr,
    /// Server name of the client's TLS handshake, where it made one to here.
    pub sni: Option<&'a str>,
}

/// A connection through a waypoint that is no HTTP, or not known to be.
#[derive(Clone, Copy, Debug)]
pub struct AskedConnection<'a> {
    /// The client's connection; its destination port is the service's.
    pub connection: &'a Connection,
    /// The client's address: without HTTP nobody tells another than the peer's own.
    pub remote_ip: IpAddr,
    /// Server name of the client's TLS ClientHello, if it sent one.
    pub sni: Option<&'a str>,
}

/// All policies that apply to requests for one service at one waypoint. Immutable: a change of policies compiles a new
/// one.
#[derive(Debug)]
pub struct RequestPolicies {
    /// Sorted by key, so that the outcome does not depend on the order in which they came.
    policies: Vec<Arc<WaypointPolicy>>,
    missing: Vec<PolicyKey>,
    rules: Rules,
    index: Index,
    allow_applies: bool,
    dry_run_allow_applies: bool,
}

/// What CUSTOM policies say about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// All of them must allow it. With the rule that asks.
    pub ask: Vec<(Arc<ExternalAuthorizer>, RuleRef)>,
    /// A CUSTOM policy in dry run that matches: to be logged and counted.
    pub dry_run: Option<RuleRef>,
}

/// Outcome for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestDecision {
    pub verdict: Verdict,
    /// An AUDIT rule that matches: to be recorded, whatever the verdict.
    pub audit: Option<RuleRef>,
    /// To be logged and counted, never enforced.
    pub dry_run: DryRun,
}

impl RequestDecision {
    /// Nothing has anything to say.
    fn allowed() -> Self {
        Self {
            verdict: Verdict::Allow,
            audit: None,
            dry_run: DryRun::default(),
        }
    }

    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

/// Which part of the evaluation a policy takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Audit,
    DryRunDeny,
    Deny,
    DryRunAllow,
    Allow,
    DryRunCustom,
    Custom,
}

impl Phase {
    fn of(policy: &WaypointPolicy) -> Self {
        let dry_run = holds_request(RequestSite::DryRun, policy.dry_run);
        match (policy.action, dry_run) {
            // An audit changes nothing anyway.
            (RequestAction::Audit, _) => Self::Audit,
            (RequestAction::Deny, true) => Self::DryRunDeny,
            (RequestAction::Deny, false) => Self::Deny,
            (RequestAction::Allow, true) => Self::DryRunAllow,
            (RequestAction::Allow, false) => Self::Allow,
            (RequestAction::Custom, true) => Self::DryRunCustom,
            // Nobody can be asked.
            (RequestAction::Custom, false) if policy.provider.is_none() => Self::Deny,
            (RequestAction::Custom, false) => Self::Custom,
        }
    }
}

impl RequestPolicies {
    /// Compiles the policies that [`applies`] says yes to. `missing` are keys of policies that apply and have not been
    /// received: they deny everything until they come.
    pub fn compile(
        policies: impl IntoIterator<Item = Arc<WaypointPolicy>>,
        missing: &[PolicyKey],
    ) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        let rules = Rules::new(&policies);
        let index = Index::new(&policies, &rules);
        let applies = |phase| policies.iter().any(|policy| Phase::of(policy) == phase);
        let (allow_applies, dry_run_allow_applies) =
            (applies(Phase::Allow), applies(Phase::DryRunAllow));
        Self {
            policies,
            missing: missing.to_vec(),
            rules,
            index,
            allow_applies,
            dry_run_allow_applies,
        }
    }

    /// Whether the request may go on.
    pub fn decide(&self, asked: &Asked<'_>) -> RequestDecision {
        if self.is_empty() {
            return RequestDecision::allowed();
        }
        self.decide_view(&View::new(asked))
    }

    /// Whom to ask about the request before [`Self::decide`] is, each once, by name; and what would be asked were it no
    /// dry run.
    pub fn external(&self, asked: &Asked<'_>) -> External {
        if self
            .policies
            .iter()
            .all(|one| one.action != RequestAction::Custom)
        {
            return External::default();
        }
        let view = View::new(asked);
        let candidates = self.index.candidates(&view);
        let matching = |phase| {
            let rules = candidates.of(phase);
            rules.filter(|rule| self.rules.hold(*rule, &view))
        };
        let mut ask: Vec<(Arc<ExternalAuthorizer>, RuleRef)> = Vec::new();
        for rule in matching(Phase::Custom) {
            let reference = self.rules.reference(rule, &self.policies);
            let Some(provider) = self.provider_of(&reference.policy) else {
                continue;
            };
            if ask.iter().all(|(known, _)| *known != *provider) {
                ask.push((provider.clone(), reference));
            }
        }
        ask.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let dry_run = matching(Phase::DryRunCustom).next();
        External {
            ask,
            dry_run: dry_run.map(|rule| self.rules.reference(rule, &self.policies)),
        }
    }

    fn provider_of(&self, policy: &PolicyKey) -> Option<&Arc<ExternalAuthorizer>> {
        let at = self
            .policies
            .binary_search_by(|one| one.key.cmp(policy))
            .ok()?;
        self.policies[at].provider.as_ref()
    }

    /// Whether a connection that is no HTTP may go on. What rules ask of requests cannot be read there: an ALLOW rule
    /// with such parts allows nothing, a DENY rule denies without them.
    pub fn decide_connection(&self, asked: &AskedConnection<'_>) -> RequestDecision {
        if self.is_empty() {
            return RequestDecision::allowed();
        }
        self.decide_view(&View::of_connection(asked))
    }

    fn decide_view(&self, view: &View<'_>) -> RequestDecision {
        let candidates = self.index.candidates(view);
        let first = |phase| {
            let found = candidates
                .of(phase)
                .find(|rule| self.rules.hold(*rule, view))?;
            Some(self.rules.reference(found, &self.policies))
        };
        let audit = first(Phase::Audit);
        let mut dry_run = DryRun {
            deny: first(Phase::DryRunDeny),
            allow: DryRunAllow::Silent,
        };
        // Nobody is asked about a connection that is no HTTP.
        let unasked = || first(Phase::Custom).filter(|_| !view.is_request());
        let denied = match first(Phase::Deny).or_else(unasked) {
            Some(rule) => Some(DenyReason::Policy(rule)),
            None => self.missing.first().cloned().map(DenyReason::Missing),
        };
        if let Some(reason) = denied {
            return RequestDecision {
                verdict: Verdict::Deny(reason),
                audit,
                dry_run,
            };
        }
        let enforced = holds_request(RequestSite::AllowApplies, self.allow_applies);
        dry_run.allow = match first(Phase::DryRunAllow) {
            Some(rule) => DryRunAllow::Matches(rule),
            None if !enforced
                && holds_request(RequestSite::DryRunAllowApplies, self.dry_run_allow_applies) =>
            {
                DryRunAllow::WouldDeny
            }
            None => DryRunAllow::Silent,
        };
        let verdict = match enforced && first(Phase::Allow).is_none() {
            true => Verdict::Deny(DenyReason::NotAllowed),
            false => Verdict::Allow,
        };
        RequestDecision {
            verdict,
            audit,
            dry_run,
        }
    }

    /// The same decision, with what every policy says about it. Takes time and memory in proportion to the policies.
    pub fn explain(&self, asked: &Asked<'_>) -> RequestExplanation {
        self.explain_view(&View::new(asked))
    }

    /// The same for [`Self::decide_connection`].
    pub fn explain_connection(&self, asked: &AskedConnection<'_>) -> RequestExplanation {
        self.explain_view(&View::of_connection(asked))
    }

    fn explain_view(&self, view: &View<'_>) -> RequestExplanation {
        explain::explain(&self.policies, &self.rules, &self.missing, view)
    }

    /// Whether nothing applies: every request may go on.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.missing.is_empty()
    }

    /// How many policies apply.
    pub fn len(&self) -> usize {
        self.policies.len()
    }
}
