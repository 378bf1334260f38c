//! From a connection to the few rules that could match it.
//!
//! ```text
//!   connection ─► look-ups by principal, account, namespace, port, addresses ─► postings ─► candidates ─► rule holds?
//! ```
//!
//! A posting lists the candidates that are anchored at one value, apart for each phase of the decision. Rules without
//! an anchor are candidates of every connection.

use hashbrown::{HashMap, HashSet};
use karst_model::policy::{Action, Authorization, Match, Rule};
use smallvec::SmallVec;

use crate::{
    anchor::{Anchor, Popularity},
    compare::{Site, holds},
    connection::{View, account_key},
    forest::Forest,
    list::Conditions,
    matcher::{Block, is_empty, is_unreadable},
};

/// Which part of the evaluation a policy takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    DryRunDeny,
    Deny,
    DryRunAllow,
    Allow,
}

impl Phase {
    pub(crate) fn of(policy: &Authorization) -> Self {
        let denies = holds(Site::PolicyDenies, policy.action == Action::Deny);
        match (denies, holds(Site::PolicyDryRun, policy.dry_run)) {
            (true, true) => Self::DryRunDeny,
            (true, false) => Self::Deny,
            (false, true) => Self::DryRunAllow,
            (false, false) => Self::Allow,
        }
    }
}

const PHASES: usize = 4;

/// Where a rule stands: indexes of its policy and in that policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) policy: u32,
    pub(crate) rule: u32,
}

#[derive(Debug)]
struct CompiledRule {
    place: Place,
    /// AND of clauses; those that are always true are gone.
    clauses: Box<[Box<[Conditions]>]>,
}

/// A rule, and the match of it through which it was found.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rule: u32,
    /// Clause and match that are anchored here; `None` for a rule without an anchor.
    anchored: Option<(u32, u32)>,
}

type Posting = [Vec<Candidate>; PHASES];
/// Index of a posting.
type PostingId = u32;

/// The posting of rules without an anchor; every connection hits it.
const UNANCHORED: PostingId = 0;
/// Postings that a connection may hit before the list moves to the heap.
const HITS_INLINE: usize = 32;
pub(crate) type Hits = SmallVec<[PostingId; HITS_INLINE]>;

#[derive(Debug)]
pub(crate) struct Index {
    rules: Vec<CompiledRule>,
    postings: Vec<Posting>,
    principals: HashMap<Box<[u8]>, PostingId>,
    principal_prefixes: Forest<Box<[u8]>, PostingId>,
    /// Suffixes are prefixes of the text read backwards.
    principal_suffixes: Forest<Box<[u8]>, PostingId>,
    namespaces: HashMap<Box<[u8]>, PostingId>,
    namespace_prefixes: Forest<Box<[u8]>, PostingId>,
    namespace_suffixes: Forest<Box<[u8]>, PostingId>,
    accounts: HashMap<Box<[u8]>, PostingId>,
    identity: Option<PostingId>,
    sources: Forest<Block, PostingId>,
    destinations: Forest<Block, PostingId>,
    ports: HashMap<u16, PostingId>,
}

impl Index {
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Authorization>) -> Self {
        let rules = distinct_rules(policies);
        let mut popularity = Popularity::default();
        rules
            .iter()
            .flat_map(|rule| rule.clauses.iter().flatten())
            .for_each(|m| popularity.count(m));
        let mut builder = Builder::default();
        rules.iter().for_each(|rule| builder.add(rule, &popularity));
        builder.build()
    }

    /// The postings that the connection hits, to be asked phase by phase.
    pub(crate) fn hits(&self, view: &View<'_>) -> Hits {
        let mut hits = Hits::new();
        hits.push(UNANCHORED);
        self.hits_of_identity(view, &mut hits);
        if let Some(found) = self
            .ports
            .get(&view.port)
            .filter(|_| holds(Site::IndexPort, true))
        {
            hits.push(*found);
        }
        hits.extend(
            self.sources
                .covering(&Block::host(view.source_ip), Site::IndexSource)
                .copied(),
        );
        hits.extend(
            self.destinations
                .covering(&Block::host(view.destination_ip), Site::IndexDestination)
                .copied(),
        );
        hits
    }

    fn hits_of_identity(&self, view: &View<'_>, hits: &mut Hits) {
        let namespace = view.namespace().as_bytes();
        hits.extend(look_up(&self.namespaces, namespace, Site::IndexNamespace));
        hits.extend(
            self.namespace_prefixes
                .covering(namespace, Site::IndexNamespacePrefix)
                .copied(),
        );
        if !self.namespace_suffixes.is_empty() {
            let backwards = backwards(namespace);
            hits.extend(
                self.namespace_suffixes
                    .covering(&backwards, Site::IndexNamespaceSuffix)
                    .copied(),
            );
        }
        let (Some(principal), Some(account)) = (view.principal(), view.account()) else {
            return;
        };
        hits.extend(self.identity.filter(|_| holds(Site::IndexIdentity, true)));
        hits.extend(look_up(&self.principals, principal, Site::IndexPrincipal));
        hits.extend(look_up(&self.accounts, account, Site::IndexServiceAccount));
        hits.extend(
            self.principal_prefixes
                .covering(principal, Site::IndexPrincipalPrefix)
                .copied(),
        );
        if !self.principal_suffixes.is_empty() {
            let backwards = backwards(principal);
            hits.extend(
                self.principal_suffixes
                    .covering(&backwards, Site::IndexPrincipalSuffix)
                    .copied(),
            );
        }
    }

    /// A rule of this phase that matches.
    pub(crate) fn matching(&self, phase: Phase, hits: &Hits, view: &View<'_>) -> Option<Place> {
        let mut candidates = hits
            .iter()
            .flat_map(|id| &self.postings[*id as usize][phase as usize]);
        candidates
            .find(|candidate| self.holds(candidate, view))
            .map(|found| self.rules[found.rule as usize].place)
    }

    fn holds(&self, candidate: &Candidate, view: &View<'_>) -> bool {
        let rule = &self.rules[candidate.rule as usize];
        let clauses = || {
            rule.clauses
                .iter()
                .map(|clause| clause.iter().any(|m| m.hold(view)))
        };
        let holding = match candidate.anchored {
            None => clauses().all(|holding| holds(Site::ClauseTrue, holding)),
            Some((clause, alternative)) => {
                rule.clauses[clause as usize][alternative as usize].hold(view)
                    && (0..).zip(&rule.clauses).all(|(index, matches)| {
                        index == clause
                            || holds(Site::ClauseTrue, matches.iter().any(|m| m.hold(view)))
                    })
            }
        };
        holds(Site::RuleTrue, holding)
    }
}

fn look_up(table: &HashMap<Box<[u8]>, PostingId>, key: &[u8], site: Site) -> Option<PostingId> {
    if table.is_empty() {
        return None;
    }
    table.get(key).copied().filter(|_| holds(site, true))
}

fn backwards(text: &[u8]) -> SmallVec<[u8; 256]> {
    text.iter().rev().copied().collect()
}

/// A rule that can match, with the matches that count.
struct Source<'a> {
    place: Place,
    phase: Phase,
    clauses: Vec<Vec<&'a Match>>,
}

/// Rules that can match at all, equal ones of a phase only once: thousands of policies often say the same.
fn distinct_rules<'a>(policies: impl Iterator<Item = &'a Authorization>) -> Vec<Source<'a>> {
    let (mut seen, mut rules) = (HashSet::new(), Vec::new());
    for (policy_index, policy) in (0..).zip(policies) {
        let phase = Phase::of(policy);
        for (rule_index, rule) in (0..).zip(&policy.rules) {
            if let Some(clauses) = effective_clauses(rule, policy.action)
                && seen.insert((phase, rule))
            {
                rules.push(Source {
                    place: Place {
                        policy: policy_index,
                        rule: rule_index,
                    },
                    phase,
                    clauses,
                });
            }
        }
    }
    rules
}

/// The clauses that are not always true, with the matches that are not always false. `None` if one can never hold.
fn effective_clauses(rule: &Rule, action: Action) -> Option<Vec<Vec<&Match>>> {
    let mut clauses = Vec::with_capacity(rule.clauses.len());
    for clause in &rule.clauses {
        let saying: Vec<&Match> = clause.matches.iter().filter(|m| !is_empty(m)).collect();
        let (unreadable, readable): (Vec<&Match>, Vec<&Match>) =
            saying.into_iter().partition(|m| is_unreadable(m));
        let always = !unreadable.is_empty() && holds(Site::PolicyDenies, action == Action::Deny);
        if holds(Site::ListEmpty, clause.matches.is_empty()) || always {
            continue;
        }
        if readable.is_empty() {
            return None;
        }
        clauses.push(readable);
    }
    Some(clauses)
}

/// An index being built: postings by their anchor.
#[derive(Default)]
struct Builder {
    rules: Vec<CompiledRule>,
    unanchored: Posting,
    anchored: HashMap<Anchor, Posting>,
}

impl Builder {
    fn add(&mut self, source: &Source<'_>, popularity: &Popularity) {
        let rule = self.rules.len() as u32;
        let compile = |matches: &Vec<&Match>| matches.iter().map(|m| Conditions::new(m)).collect();
        self.rules.push(CompiledRule {
            place: source.place,
            clauses: source.clauses.iter().map(compile).collect(),
        });
        let phase = source.phase as usize;
        let Some((clause, anchors)) = cheapest_clause(source, popularity) else {
            self.unanchored[phase].push(Candidate {
                rule,
                anchored: None,
            });
            return;
        };
        for (alternative, anchors) in (0..).zip(anchors) {
            for anchor in anchors {
                let candidate = Candidate {
                    rule,
                    anchored: Some((clause, alternative)),
                };
                self.anchored.entry(anchor).or_default()[phase].push(candidate);
            }
        }
    }

    fn build(self) -> Index {
        let mut postings = vec![self.unanchored];
        let mut keys = Keys::default();
        for (anchor, posting) in self.anchored {
            keys.add(anchor, postings.len() as PostingId);
            postings.push(posting);
        }
        Index {
            rules: self.rules,
            postings,
            principals: keys.principals,
            principal_prefixes: Forest::new(keys.principal_prefixes),
            principal_suffixes: Forest::new(keys.principal_suffixes),
            namespaces: keys.namespaces,
            namespace_prefixes: Forest::new(keys.namespace_prefixes),
            namespace_suffixes: Forest::new(keys.namespace_suffixes),
            accounts: keys.accounts,
            identity: keys.identity,
            sources: Forest::new(keys.sources),
            destinations: Forest::new(keys.destinations),
            ports: keys.ports,
        }
    }
}

/// The clause whose anchors are hit least often, with the anchors of each of its matches.
fn cheapest_clause(
    source: &Source<'_>,
    popularity: &Popularity,
) -> Option<(u32, Vec<Vec<Anchor>>)> {
    let anchors_of = |(index, matches): (u32, &Vec<&Match>)| {
        let cheapest: Vec<(u64, Vec<Anchor>)> = matches
            .iter()
            .map(|m| popularity.cheapest(m))
            .collect::<Option<_>>()?;
        let cost: u64 = cheapest.iter().map(|(cost, _)| cost).sum();
        Some((
            cost,
            index,
            cheapest.into_iter().map(|(_, anchors)| anchors).collect(),
        ))
    };
    let clauses = (0..).zip(&source.clauses).filter_map(anchors_of);
    clauses
        .min_by_key(|(cost, ..)| *cost)
        .map(|(_, index, anchors)| (index, anchors))
}

/// Anchors sorted by kind.
#[derive(Default)]
struct Keys {
    principals: HashMap<Box<[u8]>, PostingId>,
    principal_prefixes: Vec<(Box<[u8]>, PostingId)>,
    principal_suffixes: Vec<(Box<[u8]>, PostingId)>,
    namespaces: HashMap<Box<[u8]>, PostingId>,
    namespace_prefixes: Vec<(Box<[u8]>, PostingId)>,
    namespace_suffixes: Vec<(Box<[u8]>, PostingId)>,
    accounts: HashMap<Box<[u8]>, PostingId>,
    identity: Option<PostingId>,
    sources: Vec<(Block, PostingId)>,
    destinations: Vec<(Block, PostingId)>,
    ports: HashMap<u16, PostingId>,
}

impl Keys {
    fn add(&mut self, anchor: Anchor, id: PostingId) {
        let bytes = |text: &str| Box::<[u8]>::from(text.as_bytes());
        let reversed = |text: &str| text.bytes().rev().collect::<Box<[u8]>>();
        match anchor {
            Anchor::Principal(text) => {
                self.principals.insert(bytes(&text), id);
            }
            Anchor::PrincipalPrefix(text) => self.principal_prefixes.push((bytes(&text), id)),
            Anchor::PrincipalSuffix(text) => self.principal_suffixes.push((reversed(&text), id)),
            Anchor::Namespace(text) => {
                self.namespaces.insert(bytes(&text), id);
            }
            Anchor::NamespacePrefix(text) => self.namespace_prefixes.push((bytes(&text), id)),
            Anchor::NamespaceSuffix(text) => self.namespace_suffixes.push((reversed(&text), id)),
            Anchor::Account(account) => {
                self.accounts.insert(
                    account_key(&account.namespace, &account.service_account),
                    id,
                );
            }
            Anchor::Identity => self.identity = Some(id),
            Anchor::Source(block) => self.sources.push((block, id)),
            Anchor::Destination(block) => self.destinations.push((block, id)),
            Anchor::Port(port) => {
                self.ports.insert(port, id);
            }
        }
    }
}
