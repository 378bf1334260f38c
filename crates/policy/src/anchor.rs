//! Under which values a rule is found: for each match of one of its clauses, a list that must hit.
//!
//! A rule cannot match unless its anchor hits, so only rules whose anchors hit are evaluated. Of all lists that could
//! serve, the one shared with the fewest other rules is taken. A clause in which some match has only negative lists
//! has no anchor.

use std::sync::Arc;

use hashbrown::HashMap;
use karst_model::policy::{IpBlock, Match, ServiceAccountMatch, StringMatch};

use crate::matcher::Block;

/// A value that a connection must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Anchor {
    Principal(Arc<str>),
    PrincipalPrefix(Arc<str>),
    PrincipalSuffix(Arc<str>),
    Namespace(Arc<str>),
    NamespacePrefix(Arc<str>),
    NamespaceSuffix(Arc<str>),
    Account(ServiceAccountMatch),
    /// Any identity at all.
    Identity,
    Source(Block),
    Destination(Block),
    Port(u16),
}

/// What an anchor costs that nearly every connection hits.
const COMMON: u64 = 1 << 20;

/// How many matches could be anchored at each value.
#[derive(Default)]
pub(crate) struct Popularity(HashMap<Anchor, u64>);

impl Popularity {
    pub(crate) fn count(&mut self, m: &Match) {
        for anchor in groups(m).into_iter().flatten() {
            *self.0.entry(anchor).or_default() += 1;
        }
    }

    /// The cheapest anchors of a match, with their cost; `None` if it has only negative lists.
    pub(crate) fn cheapest(&self, m: &Match) -> Option<(u64, Vec<Anchor>)> {
        let groups = groups(m).into_iter().filter(|anchors| !anchors.is_empty());
        groups
            .map(|anchors| {
                (
                    anchors.iter().map(|anchor| self.cost(anchor)).sum(),
                    anchors,
                )
            })
            .min_by_key(|(cost, _)| *cost)
    }

    fn cost(&self, anchor: &Anchor) -> u64 {
        let common = match anchor {
            Anchor::Identity => true,
            Anchor::PrincipalPrefix(text)
            | Anchor::PrincipalSuffix(text)
            | Anchor::NamespacePrefix(text)
            | Anchor::NamespaceSuffix(text) => text.is_empty(),
            Anchor::Source(block) | Anchor::Destination(block) => block.len == 0,
            Anchor::Principal(_) | Anchor::Namespace(_) | Anchor::Account(_) | Anchor::Port(_) => {
                false
            }
        };
        if common {
            COMMON
        } else {
            self.0.get(anchor).copied().unwrap_or(1)
        }
    }
}

/// The positive lists of a match as anchors, one per group.
fn groups(m: &Match) -> [Vec<Anchor>; 6] {
    let blocks = |list: &[IpBlock], anchor: fn(Block) -> Anchor| {
        list.iter().filter_map(Block::new).map(anchor).collect()
    };
    [
        m.principals.iter().map(principal).collect(),
        m.service_accounts
            .iter()
            .cloned()
            .map(Anchor::Account)
            .collect(),
        m.namespaces.iter().map(namespace).collect(),
        blocks(&m.source_ips, Anchor::Source),
        m.destination_ports
            .iter()
            .copied()
            .map(Anchor::Port)
            .collect(),
        blocks(&m.destination_ips, Anchor::Destination),
    ]
}

fn principal(text: &StringMatch) -> Anchor {
    match text.clone() {
        StringMatch::Exact(text) => Anchor::Principal(text),
        StringMatch::Prefix(text) => Anchor::PrincipalPrefix(text),
        StringMatch::Suffix(text) => Anchor::PrincipalSuffix(text),
        StringMatch::Presence => Anchor::Identity,
    }
}

fn namespace(text: &StringMatch) -> Anchor {
    match text.clone() {
        StringMatch::Exact(text) => Anchor::Namespace(text),
        StringMatch::Prefix(text) => Anchor::NamespacePrefix(text),
        StringMatch::Suffix(text) => Anchor::NamespaceSuffix(text),
        // Only an identity has a namespace.
        StringMatch::Presence => Anchor::Identity,
    }
}
