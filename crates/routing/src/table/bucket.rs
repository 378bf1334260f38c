//! The matches that share host and path: found by a header, a query parameter or the method that they demand.
//!
//! Each match is kept under the one value that it demands and that the fewest others of the bucket demand too; a request
//! looks only at the matches under values that it has. What demands no value (no condition, or only that something is
//! absent) is looked at always. Candidates are numbers in the order of precedence, so the lowest that holds wins.

use hashbrown::{HashMap, HashSet};
use http::HeaderMap;
use smallvec::SmallVec;

use super::conditions::{Asked, Conditions, HeaderKey, Value};
use crate::compare::{Site, holds};

/// Number of a match in the order of precedence.
pub(super) type Rank = u32;

/// Buckets up to this size are walked.
const WALKED: usize = 4;
/// Up to so many names are looked up in the request; beyond, the request's own names are looked up in the bucket.
const NAMES_LOOKED_UP: usize = 16;

/// Matches of one host and path.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// In the order of precedence.
    walked: SmallVec<[Rank; 2]>,
    indexed: Option<Box<Indexed>>,
}

#[derive(Debug, Default)]
struct Indexed {
    methods: HashMap<Box<[u8]>, Vec<Rank>>,
    headers: HashMap<HeaderKey, Values>,
    params: HashMap<Box<[u8]>, Values>,
}

/// Matches that demand one name.
#[derive(Debug, Default)]
struct Values {
    /// That it is there.
    present: Vec<Rank>,
    exact: HashMap<Box<[u8]>, Vec<Rank>>,
}

/// A value that a request must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Method(Box<[u8]>),
    Header(HeaderKey, Option<Box<[u8]>>),
    Param(Box<[u8]>, Option<Box<[u8]>>),
}

impl Bucket {
    /// A bucket of these matches, which are in the order of precedence.
    pub(super) fn new(ranks: &[Rank], conditions: &[Conditions]) -> Self {
        if ranks.len() <= WALKED {
            return Self {
                walked: ranks.into(),
                indexed: None,
            };
        }
        let anchors: Vec<(Rank, Vec<Anchor>)> = ranks
            .iter()
            .map(|rank| (*rank, anchors(&conditions[*rank as usize])))
            .collect();
        let mut popularity: HashMap<&Anchor, usize> = HashMap::new();
        for anchor in anchors.iter().flat_map(|(_, anchors)| anchors) {
            *popularity.entry(anchor).or_default() += 1;
        }
        let (mut walked, mut indexed) = (SmallVec::new(), Indexed::default());
        for (rank, anchors) in &anchors {
            match anchors.iter().min_by_key(|anchor| popularity[*anchor]) {
                Some(anchor) => indexed.list(anchor.clone()).push(*rank),
                None => walked.push(*rank),
            }
        }
        Self {
            walked,
            indexed: Some(Box::new(indexed)),
        }
    }

    /// The first match in precedence that holds and comes before `limit`.
    pub(super) fn find(
        &self,
        asked: &Asked<'_>,
        limit: Rank,
        conditions: &[Conditions],
    ) -> Option<Rank> {
        let mut search = Search {
            asked,
            conditions,
            best: limit,
        };
        search.walk(&self.walked);
        if let Some(indexed) = &self.indexed {
            indexed.search(&mut search);
        }
        (search.best < limit).then_some(search.best)
    }
}

/// The lowest number found so far.
struct Search<'a, 'r> {
    asked: &'a Asked<'r>,
    conditions: &'a [Conditions],
    best: Rank,
}

impl Search<'_, '_> {
    fn walk(&mut self, ranks: &[Rank]) {
        let before = ranks.iter().take_while(|rank| **rank < self.best);
        let found = before
            .copied()
            .find(|rank| self.conditions[*rank as usize].hold(self.asked));
        self.best = found.unwrap_or(self.best);
    }

    fn walk_values(&mut self, values: &Values, value: &[u8]) {
        self.walk(&values.present);
        if let Some(ranks) = values.exact.get(value) {
            self.walk(ranks);
        }
    }
}

impl Indexed {
    fn list(&mut self, anchor: Anchor) -> &mut Vec<Rank> {
        let values = match anchor {
            Anchor::Method(method) => return self.methods.entry(method).or_default(),
            Anchor::Header(key, value) => (self.headers.entry(key).or_default(), value),
            Anchor::Param(name, value) => (self.params.entry(name).or_default(), value),
        };
        match values {
            (values, Some(value)) => values.exact.entry(value).or_default(),
            (values, None) => &mut values.present,
        }
    }

    fn search(&self, search: &mut Search<'_, '_>) {
        let asked = search.asked;
        if !self.methods.is_empty()
            && let Some(ranks) = self.methods.get(asked.request.method().as_str().as_bytes())
            && holds(Site::IndexMethod, true)
        {
            search.walk(ranks);
        }
        self.search_headers(search, asked.request.headers());
        if !self.params.is_empty() {
            let mut seen = HashSet::new();
            for (name, value) in asked.params() {
                // The first of a name counts.
                if let Some(values) = self.params.get(&**name)
                    && seen.insert(&**name)
                    && holds(Site::IndexParam, true)
                {
                    search.walk_values(values, value);
                }
            }
        }
    }

    fn search_headers(&self, search: &mut Search<'_, '_>, sent: &HeaderMap) {
        let asked = search.asked;
        let mut look_up = |key: &HeaderKey, values: &Values| {
            if let Some(value) = asked.header(key)
                && holds(Site::IndexHeader, true)
            {
                search.walk_values(values, &value);
            }
        };
        if self.headers.len() <= NAMES_LOOKED_UP {
            for (key, values) in &self.headers {
                look_up(key, values);
            }
            return;
        }
        let named = sent.keys().cloned().map(HeaderKey::Name);
        let special = ["host", ":authority", ":method", ":path", ":scheme"];
        let special = special.map(|name| HeaderKey::Special(name.into()));
        for key in named.chain(special) {
            if let Some(values) = self.headers.get(&key) {
                look_up(&key, values);
            }
        }
    }
}

/// What a match demands; anything of it will do to find the match by.
fn anchors(conditions: &Conditions) -> Vec<Anchor> {
    let bytes = |text: &str| Box::<[u8]>::from(text.as_bytes());
    let demanded = |value: &Value| match value {
        Value::Absent | Value::Not(_) => None,
        Value::Exact(exact) => Some(Some(bytes(exact))),
        Value::Pattern(_) | Value::Prefix(_) | Value::Present => Some(None),
    };
    let method = conditions
        .method
        .iter()
        .map(|method| Anchor::Method(bytes(method)));
    let headers = conditions
        .headers
        .iter()
        .filter_map(|(key, value)| demanded(value).map(|value| Anchor::Header(key.clone(), value)));
    let params = conditions
        .query
        .iter()
        .filter_map(|(name, value)| demanded(value).map(|value| Anchor::Param(bytes(name), value)));
    method.chain(headers).chain(params).collect()
}
