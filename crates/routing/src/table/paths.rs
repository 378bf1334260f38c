//! The matches of one host, by path.

use hashbrown::HashMap;
use karst_model::route::{PathMatch, RouteKind};
use smallvec::SmallVec;

use super::{
    bucket::{Bucket, Rank},
    conditions::{Asked, Conditions},
    regexes::Regexes,
};
use crate::{
    compare::{Site, holds},
    pattern::PatternError,
    request::normalise_pattern,
};

/// How a match looks at the path, in the spelling of normalised paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PathKey {
    Exact(Box<str>),
    /// Without a slash at its end; empty for `/`, which takes everything.
    Prefix(Box<str>),
    Regex(Box<str>),
    /// Letter by letter: only what is tried in its order has these.
    Start(Box<str>),
}

impl PathKey {
    pub(super) fn new(path: Option<&PathMatch>) -> Self {
        match path {
            None => Self::Prefix("".into()),
            Some(PathMatch::Exact(text)) => Self::Exact(normalise_pattern(text).into()),
            Some(PathMatch::Prefix(text)) => {
                Self::Prefix(normalise_pattern(text).trim_end_matches('/').into())
            }
            Some(PathMatch::Regex(text)) => Self::Regex((**text).into()),
            Some(PathMatch::Start(text)) => Self::Start(normalise_pattern(text).into()),
        }
    }
}

/// Whether expressions come before prefixes.
#[derive(Clone, Copy, Debug)]
enum Order {
    RegexesFirst,
    PrefixesFirst,
}

/// Matches being collected: ranks by path.
pub(super) type ByPath = HashMap<PathKey, Vec<Rank>>;

/// Buckets by path.
#[derive(Debug)]
pub(super) struct Paths {
    order: Order,
    exact: HashMap<Box<str>, Bucket>,
    prefixes: HashMap<Box<str>, Bucket>,
    /// Numbers of segments that prefixes have, the largest first.
    depths: SmallVec<[usize; 8]>,
    regexes: Option<Box<Regexes<Bucket>>>,
    any: Option<Bucket>,
}

impl Paths {
    /// `refuse` is called with the matches whose expression cannot be compiled.
    pub(super) fn new(
        kind: RouteKind,
        by_path: ByPath,
        conditions: &[Conditions],
        mut refuse: impl FnMut(&[Rank], PatternError),
    ) -> Self {
        let order = match kind {
            RouteKind::GrpcRoute => Order::PrefixesFirst,
            _ => Order::RegexesFirst,
        };
        let mut paths = Self {
            order,
            exact: HashMap::new(),
            prefixes: HashMap::new(),
            depths: SmallVec::new(),
            regexes: None,
            any: None,
        };
        let mut expressions: HashMap<Box<str>, Vec<Rank>> = HashMap::new();
        for (key, mut ranks) in by_path {
            ranks.sort_unstable();
            ranks.dedup();
            match key {
                PathKey::Exact(path) => {
                    paths.exact.insert(path, Bucket::new(&ranks, conditions));
                }
                PathKey::Prefix(prefix) if prefix.is_empty() => {
                    paths.any = Some(Bucket::new(&ranks, conditions));
                }
                PathKey::Prefix(prefix) => {
                    paths.depths.push(depth(&prefix));
                    paths
                        .prefixes
                        .insert(prefix, Bucket::new(&ranks, conditions));
                }
                PathKey::Regex(text) => {
                    expressions.insert(text, ranks);
                }
                // Refused when it was collected.
                PathKey::Start(_) => {}
            }
        }
        paths.depths.sort_unstable_by(|a, b| b.cmp(a));
        paths.depths.dedup();
        if !expressions.is_empty() {
            let buckets = expressions
                .iter()
                .map(|(text, ranks)| (&**text, Bucket::new(ranks, conditions)))
                .collect();
            let regexes = Regexes::new(buckets, |text, error| refuse(&expressions[text], error));
            paths.regexes = Some(Box::new(regexes));
        }
        paths
    }

    /// The match that is first in precedence.
    pub(super) fn find(&self, asked: &Asked<'_>, conditions: &[Conditions]) -> Option<Rank> {
        let path = asked.request.path();
        let find = |bucket: &Bucket, site| {
            let bucket = Some(bucket).filter(|_| holds(site, true))?;
            bucket.find(asked, Rank::MAX, conditions)
        };
        let exact = || match self.exact.is_empty() {
            true => None,
            false => find(self.exact.get(path)?, Site::PathExact),
        };
        let prefix = || {
            self.prefixes_of(path)
                .find_map(|bucket| find(bucket, Site::PathPrefix))
        };
        let regex = || self.find_regex(asked, conditions);
        let (second, third): (&dyn Fn() -> _, &dyn Fn() -> _) = match self.order {
            Order::RegexesFirst => (&regex, &prefix),
            Order::PrefixesFirst => (&prefix, &regex),
        };
        exact()
            .or_else(second)
            .or_else(third)
            .or_else(|| find(self.any.as_ref()?, Site::PathAny))
    }

    /// Among expressions the ranks decide: the longer expression has the lower.
    fn find_regex(&self, asked: &Asked<'_>, conditions: &[Conditions]) -> Option<Rank> {
        let regexes = self
            .regexes
            .as_ref()
            .filter(|_| holds(Site::PathRegex, true))?;
        let mut best = Rank::MAX;
        regexes.matching(asked.request.path(), |bucket| {
            best = bucket.find(asked, best, conditions).unwrap_or(best);
        });
        (best != Rank::MAX).then_some(best)
    }

    /// The buckets of the prefixes that end where a segment of the path ends, the longest first.
    fn prefixes_of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Bucket> {
        let deepest = self.depths.first().copied().unwrap_or(0);
        let ends: SmallVec<[usize; 16]> = path
            .bytes()
            .enumerate()
            .skip(1)
            .filter_map(|(at, byte)| (byte == b'/').then_some(at))
            .chain([path.len()])
            .take(deepest)
            .collect();
        self.depths.iter().filter_map(move |depth| {
            let end = *ends.get(depth - 1)?;
            self.prefixes.get(&path[..end])
        })
    }
}

/// Number of segments of a prefix.
fn depth(prefix: &str) -> usize {
    prefix.bytes().skip(1).filter(|byte| *byte == b'/').count() + 1
}
