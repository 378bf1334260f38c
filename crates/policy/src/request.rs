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
mod template;
mod view;

use std::{net::IpAddr, sync::Arc};

use karst_model::{
    name::{PolicyKey, ServiceKey},
    waypoint_policy::{PolicyTarget, RequestAction, WaypointPolicy},
};
use karst_routing::request::Request;
use serde::Serialize;

pub use self::{
    explain::{RequestExplanation, RequestTrace},
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
    policy.targets.iter().any(|target| match target {
        PolicyTarget::Service(target) => service == Some(target),
        PolicyTarget::Gateway { namespace, name } => {
            **namespace == *gateway.namespace && **name == *gateway.name
        }
        PolicyTarget::GatewayClass(class) => **class == *gateway.class,
    })
}

/// What policies are asked about: a request and what the waypoint knows of where it came from.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub request: &'a Request,
    /// The client's connection; its destination port is the service's.
    pub connection: &'a Connection,
    /// The client's address as trusted proxies tell it, from [`karst_routing::request::remote_ip`].
    pub remote_ip: IpAddr,
    /// Server name of the client's TLS handshake, where it made one to here.
    pub sni: Option<&'a str>,
    /// `<issuer>/<subject>` of a token that was verified.
    pub request_principal: Option<&'a str>,
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
        let denied = match first(Phase::Deny) {
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
