//! From PeerAuthentication to DENY policies: "refuse who has no identity", everywhere or port by port.
//!
//! STRICT is one static policy that strict workloads name. Ports of their own make a policy of their own, which the
//! workload then names instead. DISABLE reads like PERMISSIVE throughout.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use karst_k8s_api::istio::{PeerAuthentication, peer_authentication::Mode};
use karst_model::{
    name::PolicyKey,
    policy::{Action, Authorization, Clause, Match, PolicyScope, Rule, StringMatch},
};

use crate::{
    conditions::{Condition, ConditionType},
    facts::{Created, Name},
    selector::Labels,
};

/// Name of the policy that refuses plaintext, in the root namespace.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Start of the name of a policy made of one PeerAuthentication's ports.
const CONVERTED_PREFIX: &str = "converted_peer_authentication_";

#[derive(Debug, PartialEq)]
pub(crate) struct PeerFacts {
    pub(crate) created: Created,
    pub(crate) selector: Labels,
    pub(crate) mode: Mode,
    pub(crate) ports: BTreeMap<u16, Mode>,
}

impl PeerFacts {
    pub(crate) fn new(policy: PeerAuthentication) -> Self {
        let spec = policy.spec;
        Self {
            created: Created::of(&policy.metadata),
            selector: spec
                .selector
                .map(|selector| selector.match_labels)
                .unwrap_or_default(),
            mode: spec.mtls.map(|mtls| mtls.mode).unwrap_or_default(),
            ports: spec
                .port_level_mtls
                .into_iter()
                .map(|(port, mtls)| (port, mtls.mode))
                .collect(),
        }
    }

    fn with_mode(&self, wanted: impl Fn(Mode) -> bool) -> Vec<u16> {
        self.ports
            .iter()
            .filter(|(_, mode)| wanted(**mode))
            .map(|(port, _)| *port)
            .collect()
    }

    /// The policy that its ports need over this base; none where the base says it all.
    pub(crate) fn convert(&self, name: &Name, base: Mode) -> Option<Authorization> {
        let rules = if base == Mode::Strict {
            let exempt = self.with_mode(|mode| matches!(mode, Mode::Permissive | Mode::Disable));
            let mut clauses = vec![clause(no_identity())];
            clauses.extend(exempt.iter().map(|port| {
                clause(Match {
                    not_destination_ports: vec![*port],
                    ..Match::default()
                })
            }));
            if exempt.is_empty() {
                Vec::new()
            } else {
                vec![Rule { clauses }]
            }
        } else {
            let strict = self.with_mode(|mode| mode == Mode::Strict).into_iter();
            let on_port = |port| Rule {
                clauses: vec![clause(Match {
                    destination_ports: vec![port],
                    ..no_identity()
                })],
            };
            strict.map(on_port).collect()
        };
        (!rules.is_empty()).then(|| deny(converted_key(name), rules))
    }
}

pub(crate) fn converted_key(name: &Name) -> PolicyKey {
    let converted = format!("{CONVERTED_PREFIX}{}", name.name);
    PolicyKey {
        namespace: name.namespace.clone(),
        name: converted.into(),
    }
}

pub(crate) fn static_strict_key(root_namespace: &str) -> PolicyKey {
    PolicyKey {
        namespace: root_namespace.into(),
        name: STATIC_STRICT.into(),
    }
}

/// The policy that strict workloads name.
pub(crate) fn static_strict(root_namespace: &str) -> Authorization {
    deny(
        static_strict_key(root_namespace),
        vec![Rule {
            clauses: vec![clause(no_identity())],
        }],
    )
}

fn deny(key: PolicyKey, rules: Vec<Rule>) -> Authorization {
    Authorization {
        key,
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules,
    }
}

fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

fn no_identity() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

/// All PeerAuthentications without a selector, by namespace: the oldest of each counts.
#[derive(Debug, Default)]
pub(crate) struct Defaults {
    by_namespace: HashMap<std::sync::Arc<str>, BTreeSet<(Created, Name)>>,
}

impl Defaults {
    pub(crate) fn insert(&mut self, name: &Name, created: Created) {
        self.by_namespace
            .entry(name.namespace.clone())
            .or_default()
            .insert((created, name.clone()));
    }

    pub(crate) fn remove(&mut self, name: &Name, created: Created) {
        if let Some(all) = self.by_namespace.get_mut(&name.namespace) {
            all.remove(&(created, name.clone()));
            if all.is_empty() {
                self.by_namespace.remove(&name.namespace);
            }
        }
    }

    /// The one that counts in this namespace.
    pub(crate) fn chosen(&self, namespace: &str) -> Option<&Name> {
        self.by_namespace
            .get(namespace)
            .and_then(BTreeSet::first)
            .map(|(_, name)| name)
    }

    /// Those that an older one keeps from counting, and those that might be.
    pub(crate) fn all(&self, namespace: &str) -> impl Iterator<Item = &Name> {
        self.by_namespace
            .get(namespace)
            .into_iter()
            .flatten()
            .map(|(_, name)| name)
    }
}

/// What is to be said about a PeerAuthentication. `chosen` is the one that counts in its namespace.
pub(crate) fn conditions(
    facts: &PeerFacts,
    name: &Name,
    in_root: bool,
    chosen: Option<&Name>,
) -> Vec<Condition> {
    let no = |reason, message: String| {
        vec![Condition::no(
            ConditionType::ZtunnelAccepted,
            reason,
            message,
        )]
    };
    let selects = !facts.selector.is_empty();
    if in_root && selects {
        return no(
            "UnsupportedValue",
            "a selector in the root namespace picks nothing: not enforced".to_owned(),
        );
    }
    if let Some(chosen) = chosen.filter(|chosen| !selects && *chosen != name) {
        return no(
            "Conflicted",
            format!(
                "{} is older and counts for the namespace: not enforced",
                chosen.name
            ),
        );
    }
    if !selects && !facts.ports.is_empty() {
        return no(
            "UnsupportedValue",
            "portLevelMtls counts only beside a selector: the ports are left out".to_owned(),
        );
    }
    vec![Condition::yes(
        ConditionType::ZtunnelAccepted,
        "Accepted",
        "enforced at L4",
    )]
}
