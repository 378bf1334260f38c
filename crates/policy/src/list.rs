//! The lists of a match, ready to be asked "does anything in you hit": short lists are walked, long ones looked up.
//!
//! One rule may name ten thousand principals; walking them for each connection would cost more than all other rules.

use hashbrown::HashSet;
use karst_model::policy::{IpBlock, Match, ServiceAccountMatch, StringMatch};

use crate::{
    compare::{Site, holds},
    connection::{View, account_key},
    forest::Forest,
    matcher::{
        Block, Entry, OfDestination, OfNamespace, OfPort, OfPrincipal, OfServiceAccount, OfSource,
    },
};

/// Lists up to this length are walked.
const WALKED: usize = 8;

/// A compiled match: only the lists that say something, cheapest first.
#[derive(Debug)]
pub(crate) struct Conditions(Box<[Condition]>);

#[derive(Debug)]
enum Condition {
    Wants(Values),
    Excludes(Values),
}

/// Entries of one attribute.
#[derive(Debug)]
enum Values {
    Ports(Set<u16>),
    Sources(Blocks),
    Destinations(Blocks),
    Accounts(Set<ServiceAccountMatch>),
    Namespaces(Set<StringMatch>),
    Principals(Set<StringMatch>),
}

/// Entries that are compared one by one, and those of a long list that are looked up by their bytes.
#[derive(Debug)]
struct Set<T> {
    walked: Box<[T]>,
    exact: HashSet<Box<[u8]>>,
}

/// Address ranges; exactly one half holds any.
#[derive(Debug)]
struct Blocks {
    walked: Box<[Block]>,
    long: Forest<Block, ()>,
}

impl Conditions {
    /// The conditions of a match that can be read.
    pub(crate) fn new(m: &Match) -> Self {
        let groups = [
            (ports(&m.destination_ports), ports(&m.not_destination_ports)),
            (
                blocks(&m.source_ips, Values::Sources),
                blocks(&m.not_source_ips, Values::Sources),
            ),
            (
                blocks(&m.destination_ips, Values::Destinations),
                blocks(&m.not_destination_ips, Values::Destinations),
            ),
            (
                accounts(&m.service_accounts),
                accounts(&m.not_service_accounts),
            ),
            (
                strings(&m.namespaces, Values::Namespaces),
                strings(&m.not_namespaces, Values::Namespaces),
            ),
            (
                strings(&m.principals, Values::Principals),
                strings(&m.not_principals, Values::Principals),
            ),
        ];
        let conditions = groups.into_iter().flat_map(|(wanted, excluded)| {
            [
                wanted.map(Condition::Wants),
                excluded.map(Condition::Excludes),
            ]
            .into_iter()
            .flatten()
        });
        Self(conditions.collect())
    }

    /// AND over the groups.
    pub(crate) fn hold(&self, view: &View<'_>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Wants(values) => holds(Site::ListHit, values.hit(view)),
            Condition::Excludes(values) => !holds(Site::NotListHit, values.hit(view)),
        })
    }
}

impl Values {
    fn hit(&self, view: &View<'_>) -> bool {
        match self {
            Self::Ports(set) => set.hit(
                |port| OfPort(*port).hits(view),
                Some(&view.port.to_be_bytes()),
            ),
            Self::Sources(blocks) => blocks.hit(
                |block| OfSource(*block).hits(view),
                Block::host(view.source_ip),
            ),
            Self::Destinations(blocks) => blocks.hit(
                |block| OfDestination(*block).hits(view),
                Block::host(view.destination_ip),
            ),
            Self::Accounts(set) => set.hit(
                |account| OfServiceAccount(account).hits(view),
                view.account(),
            ),
            Self::Namespaces(set) => set.hit(
                |text| OfNamespace(text).hits(view),
                Some(view.namespace().as_bytes()),
            ),
            Self::Principals(set) => set.hit(|text| OfPrincipal(text).hits(view), view.principal()),
        }
    }
}

impl<T: Clone> Set<T> {
    /// `key` gives the bytes of an entry that can be looked up. An empty list is no condition.
    fn new(list: &[T], key: impl Fn(&T) -> Option<Box<[u8]>>) -> Option<Self> {
        if list.len() <= WALKED {
            return (!list.is_empty()).then(|| Self {
                walked: list.into(),
                exact: HashSet::new(),
            });
        }
        let walked = list
            .iter()
            .filter(|entry| key(entry).is_none())
            .cloned()
            .collect();
        Some(Self {
            walked,
            exact: list.iter().filter_map(key).collect(),
        })
    }

    fn hit(&self, walk: impl Fn(&T) -> bool, value: Option<&[u8]>) -> bool {
        let look_up = || {
            holds(
                Site::LookUp,
                value.is_some_and(|value| self.exact.contains(value)),
            )
        };
        self.walked.iter().any(walk) || (!self.exact.is_empty() && look_up())
    }
}

impl Blocks {
    fn hit(&self, walk: impl Fn(&Block) -> bool, address: Block) -> bool {
        self.walked.iter().any(walk)
            || self
                .long
                .covering(&address, Site::LookUpBlock)
                .next()
                .is_some()
    }
}

fn ports(list: &[u16]) -> Option<Values> {
    Set::new(list, |port| Some(port.to_be_bytes().into())).map(Values::Ports)
}

fn accounts(list: &[ServiceAccountMatch]) -> Option<Values> {
    Set::new(list, |account| {
        Some(account_key(&account.namespace, &account.service_account))
    })
    .map(Values::Accounts)
}

fn strings(list: &[StringMatch], of: fn(Set<StringMatch>) -> Values) -> Option<Values> {
    let exact = |text: &StringMatch| match text {
        StringMatch::Exact(text) => Some(text.as_bytes().into()),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    };
    Set::new(list, exact).map(of)
}

fn blocks(list: &[IpBlock], of: fn(Blocks) -> Values) -> Option<Values> {
    let mut blocks: Vec<Block> = list.iter().filter_map(Block::new).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let long = if blocks.len() > WALKED {
        std::mem::take(&mut blocks)
    } else {
        Vec::new()
    };
    let long = Forest::new(long.into_iter().map(|block| (block, ())).collect());
    (!list.is_empty()).then(|| {
        of(Blocks {
            walked: blocks.into(),
            long,
        })
    })
}
