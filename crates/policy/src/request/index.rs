//! From a request to the rules that could match it, so that thousands of policies cost no more than a few.
//!
//! A rule is kept under values one of which a request must have for the rule to match: for each match of one of its
//! clauses, all entries of a list that must hit. Rules for which no such list is there are candidates of every request.

use std::sync::Arc;

use hashbrown::HashMap;
use karst_model::{
    policy::{ServiceAccountMatch, StringMatch},
    waypoint_policy::{PathPattern, RequestMatch, WaypointPolicy},
};
use smallvec::SmallVec;

use super::{
    Phase,
    matcher::{Compiled, Meaning, RuleId, Rules},
    template::{Path, Shape},
    view::View,
};
use crate::{
    compare::{RequestSite, Site, holds_request},
    forest::Forest,
};

/// A value that a request must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Principal(Box<[u8]>),
    Namespace(Arc<str>),
    Account(ServiceAccountMatch),
    Port(u16),
    Method(Arc<str>),
    /// With every escape decoded: whatever hits in one reading hits in this.
    Path(Box<[u8]>),
    PathPrefix(Box<[u8]>),
}

type Posting = SmallVec<[RuleId; 2]>;

#[derive(Debug)]
pub(super) struct Index {
    phases: Vec<Phase>,
    /// Candidates of every request.
    unanchored: Posting,
    principals: HashMap<Box<[u8]>, Posting>,
    namespaces: HashMap<Arc<str>, Posting>,
    accounts: HashMap<ServiceAccountMatch, Posting>,
    ports: HashMap<u16, Posting>,
    methods: HashMap<Box<[u8]>, Posting>,
    paths: HashMap<Box<[u8]>, Posting>,
    prefixes: Forest<Box<[u8]>, Posting>,
}

/// Rules that may match one request, in the order of their policies.
pub(super) struct Candidates<'a> {
    index: &'a Index,
    rules: SmallVec<[RuleId; 16]>,
}

impl Candidates<'_> {
    pub(super) fn of(&self, phase: Phase) -> impl Iterator<Item = RuleId> {
        let of_phase = move |rule: &RuleId| self.index.phases[*rule as usize] == phase;
        self.rules.iter().copied().filter(of_phase)
    }
}

impl Index {
    pub(super) fn new(policies: &[Arc<WaypointPolicy>], rules: &Rules) -> Self {
        let written = policies.iter().flat_map(|policy| &policy.rules);
        let choices: Vec<Vec<Vec<Anchor>>> = written
            .zip(rules.iter())
            .map(|(written, (_, compiled))| {
                let clauses = written.clauses.iter().zip(&compiled.clauses);
                let alternatives = clauses.filter(|(_, compiled)| !compiled.is_empty());
                alternatives
                    .filter_map(|(written, compiled)| alternatives_of(&written.matches, compiled))
                    .collect()
            })
            .collect();
        let mut popularity: HashMap<&Anchor, u64> = HashMap::new();
        for anchor in choices.iter().flatten().flatten() {
            *popularity.entry(anchor).or_default() += 1;
        }
        let cost =
            |anchors: &&Vec<Anchor>| anchors.iter().map(|anchor| popularity[anchor]).sum::<u64>();
        let mut unanchored = Posting::new();
        let mut postings: HashMap<&Anchor, Posting> = HashMap::new();
        for ((rule, _), choices) in rules.iter().zip(&choices) {
            match choices.iter().min_by_key(cost) {
                Some(anchors) => anchors
                    .iter()
                    .for_each(|anchor| postings.entry(anchor).or_default().push(rule)),
                None => unanchored.push(rule),
            }
        }
        let mut index = Self {
            phases: rules.iter().map(|(_, rule)| rule.phase).collect(),
            unanchored,
            principals: HashMap::new(),
            namespaces: HashMap::new(),
            accounts: HashMap::new(),
            ports: HashMap::new(),
            methods: HashMap::new(),
            paths: HashMap::new(),
            prefixes: Forest::new(Vec::new()),
        };
        index.fill(postings);
        index
    }

    fn fill(&mut self, postings: HashMap<&Anchor, Posting>) {
        let mut prefixes = Vec::new();
        for (anchor, posting) in postings {
            match anchor.clone() {
                Anchor::Principal(text) => drop(self.principals.insert(text, posting)),
                Anchor::Namespace(text) => drop(self.namespaces.insert(text, posting)),
                Anchor::Account(account) => drop(self.accounts.insert(account, posting)),
                Anchor::Port(port) => drop(self.ports.insert(port, posting)),
                Anchor::Method(text) => drop(self.methods.insert(text.as_bytes().into(), posting)),
                Anchor::Path(path) => drop(self.paths.insert(path, posting)),
                Anchor::PathPrefix(prefix) => prefixes.push((prefix, posting)),
            }
        }
        self.prefixes = Forest::new(prefixes);
    }

    /// Every rule that could match the request.
    pub(super) fn candidates(&self, view: &View<'_>) -> Candidates<'_> {
        if !view.is_request() {
            // What a rule asks of requests keeps no DENY from a connection, so it may not hide the rule.
            return Candidates {
                index: self,
                rules: (0..self.phases.len() as RuleId).collect(),
            };
        }
        let mut rules: SmallVec<[RuleId; 16]> = self.unanchored.iter().copied().collect();
        let mut add = |posting: Option<&Posting>| {
            let found = posting.filter(|_| holds_request(RequestSite::Index, true));
            rules.extend(found.into_iter().flatten().copied());
        };
        let connection = &view.connection;
        if let Some(principal) = connection.principal() {
            add(self.principals.get(principal));
        }
        add(self.namespaces.get(connection.namespace()));
        if let Some(id) = connection.identity().filter(|_| !self.accounts.is_empty()) {
            add(self.accounts.get(&ServiceAccountMatch {
                namespace: id.namespace.clone(),
                service_account: id.service_account.clone(),
            }));
        }
        add(self.ports.get(&connection.port));
        add(self.methods.get(view.method()));
        for path in view.decoded_paths() {
            add(self.paths.get(path));
            if !self.prefixes.is_empty() {
                self.prefixes
                    .covering(path, Site::IndexPrincipalPrefix)
                    .for_each(|posting| add(Some(posting)));
            }
        }
        rules.sort_unstable();
        rules.dedup();
        Candidates { index: self, rules }
    }
}

/// Values one of which a request must have for the clause to hold; `None` if there is no telling. A match that cannot be
/// read may hold for any request.
fn alternatives_of(matches: &[RequestMatch], compiled: &[Compiled]) -> Option<Vec<Anchor>> {
    let mut anchors = Vec::new();
    for (m, compiled) in matches.iter().zip(compiled) {
        match compiled.meaning {
            Meaning::Empty => {}
            Meaning::Unreadable => return None,
            Meaning::Readable => anchors.extend(shortest(m)?),
        }
    }
    Some(anchors)
}

/// The shortest list of a match all of whose entries can be looked up.
fn shortest(m: &RequestMatch) -> Option<Vec<Anchor>> {
    let exact = |list: &[StringMatch], anchor: fn(&Arc<str>) -> Anchor| -> Option<Vec<Anchor>> {
        let exact = |text: &StringMatch| match text {
            StringMatch::Exact(text) => Some(anchor(text)),
            _ => None,
        };
        list.iter().map(exact).collect()
    };
    let connection = &m.connection;
    let lists = [
        exact(&connection.principals, |text| {
            Anchor::Principal(text.as_bytes().into())
        }),
        exact(&connection.namespaces, |text| {
            Anchor::Namespace(text.clone())
        }),
        Some(
            connection
                .service_accounts
                .iter()
                .cloned()
                .map(Anchor::Account)
                .collect(),
        ),
        m.paths.iter().map(path).collect(),
        Some(
            connection
                .destination_ports
                .iter()
                .copied()
                .map(Anchor::Port)
                .collect(),
        ),
        exact(&m.methods, |text| Anchor::Method(text.clone())),
    ];
    let lists = lists.into_iter().flatten().filter(|list| !list.is_empty());
    // Of lists of one length the first: identities tell requests apart better than methods.
    lists.min_by_key(Vec::len)
}

fn path(pattern: &PathPattern) -> Option<Anchor> {
    let Path { plain, decoded } = Path::new(pattern).ok()?;
    match (plain, decoded) {
        (_, Shape::Exact(exact)) => Some(Anchor::Path(exact)),
        (Shape::Prefix(plain), Shape::Prefix(prefix)) if !ends_in_escape(&plain) => {
            Some(Anchor::PathPrefix(prefix))
        }
        _ => None,
    }
}

/// A prefix that ends within an escape is none of the decoded path.
fn ends_in_escape(prefix: &[u8]) -> bool {
    prefix.iter().rev().take(2).any(|byte| *byte == b'%')
}
