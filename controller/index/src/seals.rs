//! Sealed services: which ports accept their waypoint only, and the derived policies that make it so.
//!
//! ```text
//!   request policy by targetRefs ─┐
//!   annotation karst.dev/seal     ┴─► Seal of a service ─► DENY <ns>/karst-seal-<service>: its target ports, everybody
//!                                                          but the waypoint's identity        (at the destination)
//!                                                       └► Workload.sealed: pod-addressed traffic goes to the waypoint
//!                                                                                              (at the client)
//!   ALLOW policy on a pod behind a waypoint ─────────────► ALLOW <ns>/karst-allow-waypoint-<gateway>
//! ```
//!
//! All of it is plain L4 policy, so every agent enforces it, whatever it knows of seals.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;
use karst_model::{
    identity::{SpiffeId, TrustDomain},
    name::PolicyKey,
    policy::{Action, Authorization, Clause, Match, PolicyScope, Rule, StringMatch},
    waypoint_policy::PolicyTarget,
};

use crate::{
    conditions::{Condition, ConditionType},
    facts::Name,
};

/// What the names of derived policies begin with; nobody else's policy may.
const SEAL: &str = "karst-seal-";
const ALLOW: &str = "karst-allow-waypoint-";

/// What the annotation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SealWish {
    Asked,
    Waived,
}

impl SealWish {
    /// Of the annotation's value; others say nothing.
    pub(crate) fn of(value: Option<&String>) -> Option<Self> {
        match value?.as_str() {
            "true" => Some(Self::Asked),
            "false" => Some(Self::Waived),
            _ => None,
        }
    }
}

/// Why a service is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    Asked,
    /// By request policies: the first of them, in order.
    Policy(PolicyKey),
}

/// How much a request policy asks of what it targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It decides: what it targets must not be gone around.
    InForce,
    /// A dry run of one that would.
    OnTrial,
}

/// The request policies of each target.
#[derive(Debug, Default)]
pub(crate) struct Sealers {
    in_force: Attached,
    on_trial: Attached,
}

/// The policies of each target, and the targets of each policy.
#[derive(Debug, Default)]
struct Attached {
    by_target: HashMap<PolicyTarget, BTreeSet<PolicyKey>>,
    targets: HashMap<PolicyKey, Vec<PolicyTarget>>,
}

impl Sealers {
    /// Puts a policy's targets, none where it is gone or seals nothing; the targets that this changes.
    pub(crate) fn set(
        &mut self,
        policy: &PolicyKey,
        standing: Standing,
        targets: &[PolicyTarget],
    ) -> Vec<PolicyTarget> {
        let (in_force, on_trial) = match standing {
            Standing::InForce => (targets, &[][..]),
            Standing::OnTrial => (&[][..], targets),
        };
        let mut changed = self.in_force.set(policy, in_force);
        changed.extend(self.on_trial.set(policy, on_trial));
        changed
    }

    /// The first policy of a target.
    pub(crate) fn first(&self, standing: Standing, target: &PolicyTarget) -> Option<&PolicyKey> {
        let attached = match standing {
            Standing::InForce => &self.in_force,
            Standing::OnTrial => &self.on_trial,
        };
        attached.by_target.get(target)?.first()
    }
}

impl Attached {
    fn set(&mut self, policy: &PolicyKey, targets: &[PolicyTarget]) -> Vec<PolicyTarget> {
        let before = self.targets.remove(policy).unwrap_or_default();
        if before == targets {
            if !before.is_empty() {
                self.targets.insert(policy.clone(), before);
            }
            return Vec::new();
        }
        for target in &before {
            if let Some(policies) = self.by_target.get_mut(target) {
                policies.remove(policy);
                if policies.is_empty() {
                    self.by_target.remove(target);
                }
            }
        }
        for target in targets {
            self.by_target
                .entry(target.clone())
                .or_default()
                .insert(policy.clone());
        }
        if !targets.is_empty() {
            self.targets.insert(policy.clone(), targets.to_vec());
        }
        let changed = before.into_iter().chain(targets.iter().cloned());
        changed.collect()
    }
}

/// Whether a policy of this name would stand in the place of a derived one.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with(SEAL) || name.starts_with(ALLOW)
}

/// What a user's policy of a derived one's name is told.
pub(crate) fn reserved_name() -> Condition {
    Condition::no(
        ConditionType::ZtunnelAccepted,
        "Invalid",
        format!(
            "names that begin with {SEAL:?} or {ALLOW:?} are those of derived policies: the policy is not enforced"
        ),
    )
}

/// Key of the policy that seals a service. `kind` tells Services from ServiceEntries of the same name.
pub(crate) fn seal_key(name: &Name, is_entry: bool) -> PolicyKey {
    let kind = if is_entry { "entry-" } else { "" };
    PolicyKey {
        namespace: name.namespace.clone(),
        name: format!("{SEAL}{kind}{}", name.name).into(),
    }
}

/// Key of the policy that lets a waypoint in where others are listed.
pub(crate) fn allow_key(gateway: &Name) -> PolicyKey {
    PolicyKey {
        namespace: gateway.namespace.clone(),
        name: format!("{ALLOW}{}", gateway.name).into(),
    }
}

/// Denies these ports to everybody but the waypoint, and without a waypoint to everybody.
pub(crate) fn seal_policy(
    key: PolicyKey,
    ports: &BTreeSet<u16>,
    waypoint: Option<&Name>,
    trust_domain: &TrustDomain,
) -> Authorization {
    policy(
        key,
        Action::Deny,
        Match {
            destination_ports: ports.iter().copied().collect(),
            not_principals: waypoint
                .map(|waypoint| principal(waypoint, trust_domain))
                .into_iter()
                .collect(),
            ..Match::default()
        },
    )
}

/// Lets a waypoint in.
pub(crate) fn allow_policy(gateway: &Name, trust_domain: &TrustDomain) -> Authorization {
    policy(
        allow_key(gateway),
        Action::Allow,
        Match {
            principals: vec![principal(gateway, trust_domain)],
            ..Match::default()
        },
    )
}

fn policy(key: PolicyKey, action: Action, only: Match) -> Authorization {
    Authorization {
        key,
        scope: PolicyScope::WorkloadSelector,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![only],
            }],
        }],
    }
}

/// A waypoint runs as the service account of its Gateway's name.
fn principal(gateway: &Name, trust_domain: &TrustDomain) -> StringMatch {
    let id = SpiffeId::new(trust_domain, &gateway.namespace, &gateway.name);
    StringMatch::Exact(Arc::from(id.principal().to_string()))
}

/// What is known of the seal of a service.
pub(crate) struct Known<'a> {
    pub(crate) seal: Option<&'a Seal>,
    pub(crate) wish: Option<SealWish>,
    /// The first policy that decides about the service.
    pub(crate) in_force: Option<&'a PolicyKey>,
    /// The first policy that would, and is in dry run.
    pub(crate) on_trial: Option<&'a PolicyKey>,
    pub(crate) waypoint: Option<&'a Name>,
}

/// What a service's author is told about its seal.
pub(crate) fn condition(known: &Known<'_>) -> Option<Condition> {
    let kind = ConditionType::Sealed;
    match (known.seal, known.wish) {
        (Some(Seal::Asked), _) => {
            let message = format!("asked for by annotation: {}", accepted(known.waypoint));
            Some(Condition::yes(kind, "Asked", message))
        }
        (Some(Seal::Policy(policy)), _) => {
            let message = format!("policy {policy} decides by request: {}", accepted(known.waypoint));
            Some(Condition::yes(kind, "PolicyAttached", message))
        }
        (None, Some(SealWish::Waived)) => known.in_force.map(|policy| {
            let message = format!(
                "waived by annotation: requests that go to the pods themselves pass by policy {policy}"
            );
            Condition::no(kind, "Waived", message)
        }),
        (None, _) => known.on_trial.map(|policy| {
            let message = format!(
                "policy {policy} is in dry run and would seal it: {}",
                accepted(known.waypoint)
            );
            Condition::no(kind, "DryRun", message)
        }),
    }
}

/// Whom the ports of a sealed service accept.
fn accepted(waypoint: Option<&Name>) -> String {
    match waypoint {
        Some(waypoint) => format!(
            "its ports accept waypoint {}/{} only",
            waypoint.namespace, waypoint.name
        ),
        None => "no waypoint is bound, so that its ports accept nobody".to_owned(),
    }
}
