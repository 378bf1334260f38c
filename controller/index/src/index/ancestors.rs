//! `status.ancestors` of BackendTLSPolicies: what each waypoint that makes the connections is told, and the target itself
//! where no waypoint does.
//!
//! Source: Gateway API reference v1.6, `PolicyAncestorStatus`, and the reasons of `BackendTLSPolicy`.

use std::collections::BTreeMap;

use karst_k8s_api::{
    Kind,
    gateway::route::{GATEWAY_GROUP, ParentReference},
};

use super::{Index, backing::target_reference, key};
use crate::{
    backend_policies::{BackendTarget, BackendTlsFacts},
    conditions::{Condition, ConditionType},
    delta::Delta,
    facts::Name,
    rate_limits::refused,
    references::ISTIO_NETWORKING,
    routes::{ParentStatus, RouteStatus},
};

/// An ancestor, in the order in which they are shown: group, kind, namespace, name.
type Ancestor = (&'static str, &'static str, Name);

impl Index {
    /// What is said of a policy changes with every policy for the same targets, and with their waypoints.
    pub(super) fn flush_ancestors(&mut self, policy: &Name, delta: &mut Delta) {
        let facts = self.backing.tls(policy);
        let status = RouteStatus {
            route: key(Kind::BackendTlsPolicy, policy),
            observed_generation: facts.and_then(|facts| facts.generation),
            parents: facts.map_or(Vec::new(), |facts| self.ancestors(policy, facts)),
        };
        if self.backing.say(policy, &status) {
            delta.route_statuses.push(status);
        }
    }

    fn ancestors(&self, policy: &Name, facts: &BackendTlsFacts) -> Vec<ParentStatus> {
        let mut verdicts: BTreeMap<Ancestor, Vec<Condition>> = BTreeMap::new();
        for target in &facts.targets {
            let reached = self.reach(&target_reference(target));
            let verdict = match self.conflict(policy, target) {
                Some(winner) if reached.condition.status => conflicted(target, &winner),
                _ => self.backed(target),
            };
            if reached.waypoints.is_empty() {
                let of = verdicts.entry(own(target)).or_default();
                of.push(verdict);
                continue;
            }
            for gateway in reached.waypoints {
                let name = Name {
                    namespace: gateway.namespace,
                    name: gateway.name,
                };
                let of = verdicts.entry((GATEWAY_GROUP, "Gateway", name));
                of.or_default().push(verdict.clone());
            }
        }
        let resolved = self.resolved_refs(facts);
        let told = verdicts.into_iter().map(|(ancestor, verdicts)| {
            let accepted = match facts.fault() {
                Some(why) => refused("Invalid", why),
                None if self.anchors(facts).is_err() => {
                    refused("NoValidCACertificate", resolved.message.clone())
                }
                None => together(verdicts),
            };
            ParentStatus {
                parent: reference(ancestor),
                conditions: vec![accepted, resolved.clone()],
            }
        });
        told.collect()
    }

    /// The policy that holds for a target in place of this one: the older, or of the same age the first by name.
    fn conflict(&self, policy: &Name, target: &BackendTarget) -> Option<Name> {
        let port = self.port_of(target)?;
        let same = |one: &BackendTarget| {
            one.name == target.name
                && one.is_entry == target.is_entry
                && self.port_of(one) == Some(port)
        };
        self.backing
            .tls_by_age(&target.name)
            .take_while(|(name, _)| *name != policy)
            .find(|(_, facts)| facts.targets.iter().any(same))
            .map(|(name, _)| name.clone())
    }

    fn resolved_refs(&self, facts: &BackendTlsFacts) -> Condition {
        let kind = ConditionType::ResolvedRefs;
        if let Some(why) = &facts.invalid_kind {
            return Condition::no(kind, "InvalidKind", why.clone());
        }
        let missing = self.missing_roots(facts);
        match missing.is_empty() {
            true => Condition::yes(kind, "ResolvedRefs", "the roots are there"),
            false => Condition::no(kind, "InvalidCACertificateRef", missing.join("; ")),
        }
    }
}

fn conflicted(target: &BackendTarget, winner: &Name) -> Condition {
    refused(
        "Conflicted",
        format!(
            "BackendTLSPolicy {}/{} holds for {}/{} already: of two for one target the oldest does",
            winner.namespace, winner.name, target.name.namespace, target.name.name
        ),
    )
}

/// One verdict of those for all targets behind one ancestor: it is accepted where it holds for one of them, and what does
/// not hold is named.
fn together(verdicts: Vec<Condition>) -> Condition {
    let (holds, fails): (Vec<Condition>, Vec<Condition>) =
        verdicts.into_iter().partition(|one| one.status);
    let failures: Vec<&str> = fails.iter().map(|one| &*one.message).collect();
    match (holds.into_iter().next(), fails.first()) {
        (Some(held), None) => held,
        (Some(held), Some(_)) => Condition {
            message: format!(
                "{}; but not for all targets: {}",
                held.message,
                failures.join("; ")
            ),
            ..held
        },
        (None, Some(first)) => Condition {
            message: failures.join("; "),
            ..first.clone()
        },
        (None, None) => refused("TargetNotFound", "the policy has no target"),
    }
}

/// The target itself, where nobody makes connections to it.
fn own(target: &BackendTarget) -> Ancestor {
    match target.is_entry {
        true => (ISTIO_NETWORKING, "ServiceEntry", target.name.clone()),
        false => ("", "Service", target.name.clone()),
    }
}

fn reference((group, kind, name): Ancestor) -> ParentReference {
    ParentReference {
        group: Some(group.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(name.namespace.to_string()),
        name: name.name.to_string(),
        section_name: None,
        port: None,
    }
}
