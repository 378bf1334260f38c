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

/// The request policies of each target.
#[derive(Debug, Default)]
pub(crate) struct Sealers {
    by_target: HashMap<PolicyTarget, BTreeSet<PolicyKey>>,
    targets: HashMap<PolicyKey, Vec<PolicyTarget>>,
}

impl Sealers {
    /// Puts a policy's targets, none where it is gone; the targets that this changes.
    pub(crate) fn set(
        &mut self,
        policy: &PolicyKey,
        targets: &[PolicyTarget],
    ) -> Vec<PolicyTarget> {
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

    /// The first policy of a target.
    pub(crate) fn first(&self, target: &PolicyTarget) -> Option<&PolicyKey> {
        self.by_target.get(target)?.first()
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

/// What a service's author is told about its seal.
pub(crate) fn condition(
    seal: Option<&Seal>,
    wish: Option<SealWish>,
    waived: Option<&PolicyKey>,
    waypoint: Option<&Name>,
) -> Option<Condition> {
    let kind = ConditionType::Sealed;
    let Some(seal) = seal else {
        let policy = waived.filter(|_| wish == Some(SealWish::Waived))?;
        let message = format!(
            "waived by annotation: requests that go to the pods themselves pass by policy {policy}"
        );
        return Some(Condition::no(kind, "Waived", message));
    };
    let (reason, why) = match seal {
        Seal::Asked => ("Asked", "asked for by annotation".to_owned()),
        Seal::Policy(policy) => (
            "PolicyAttached",
            format!("policy {policy} decides by request"),
        ),
    };
    let who = match waypoint {
        Some(waypoint) => format!(
            "its ports accept waypoint {}/{} only",
            waypoint.namespace, waypoint.name
        ),
        None => "no waypoint is bound: its ports accept nobody".to_owned(),
    };
    Some(Condition::yes(kind, reason, format!("{why}: {who}")))
}
