//! Label selectors in both directions without looking at every object: which objects a selector picks, and which
//! selectors pick an object.
//!
//! Pairs are kept as hashes; a collision only adds a candidate, since every candidate is checked in full.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};

pub(crate) type Labels = BTreeMap<String, String>;

/// Whether every pair of the selector is among the labels. The empty selector picks everything.
pub(crate) fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn pair_hash((key, value): (&String, &String)) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    value.hash(&mut hasher);
    hasher.finish()
}

/// Objects of one namespace by their labels.
#[derive(Debug, Default)]
pub(crate) struct Postings {
    by_pair: HashMap<u64, HashSet<Arc<str>>>,
    all: HashSet<Arc<str>>,
}

impl Postings {
    pub(crate) fn insert(&mut self, name: &Arc<str>, labels: &Labels) {
        self.all.insert(name.clone());
        for pair in labels {
            self.by_pair
                .entry(pair_hash(pair))
                .or_default()
                .insert(name.clone());
        }
    }

    pub(crate) fn remove(&mut self, name: &Arc<str>, labels: &Labels) {
        self.all.remove(name);
        for pair in labels {
            remove_from(&mut self.by_pair, pair_hash(pair), name);
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<str>> {
        self.all.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Objects among which all that the selector picks are to be found.
    pub(crate) fn candidates(&self, selector: &Labels) -> impl Iterator<Item = &Arc<str>> {
        let found = match selector.is_empty() {
            true => Some(&self.all),
            // A pair that nobody has picks nothing.
            false => selector
                .iter()
                .map(|pair| self.by_pair.get(&pair_hash(pair)))
                .min_by_key(|set| set.map_or(0, HashSet::len))
                .flatten(),
        };
        found.into_iter().flatten()
    }
}

/// Selectors of one namespace, by one of their pairs each. Empty selectors are none here.
#[derive(Debug, Default)]
pub(crate) struct Selectors {
    by_pair: HashMap<u64, HashSet<Arc<str>>>,
    filed_under: HashMap<Arc<str>, u64>,
}

impl Selectors {
    /// Files a selector under its rarest pair, so that labels that everything carries do not fill one drawer.
    pub(crate) fn insert(&mut self, name: &Arc<str>, selector: &Labels) {
        self.remove(name);
        let rarity = |hash: &u64| self.by_pair.get(hash).map_or(0, HashSet::len);
        let Some(hash) = selector.iter().map(pair_hash).min_by_key(rarity) else {
            return;
        };
        self.by_pair.entry(hash).or_default().insert(name.clone());
        self.filed_under.insert(name.clone(), hash);
    }

    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        if let Some(hash) = self.filed_under.remove(name) {
            remove_from(&mut self.by_pair, hash, name);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filed_under.is_empty()
    }

    /// Owners of selectors among which all that pick these labels are to be found.
    pub(crate) fn candidates<'a>(
        &'a self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        labels
            .iter()
            .filter_map(|pair| self.by_pair.get(&pair_hash(pair)))
            .flatten()
    }
}

/// Takes a member out of a set of a map of sets, and the set with its last member.
pub(crate) fn remove_from<K: Eq + Hash, V: Eq + Hash>(
    sets: &mut HashMap<K, HashSet<V>>,
    key: K,
    member: &V,
) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }

    #[test]
    fn both_directions_agree_with_a_plain_search() {
        let objects = ["app=a", "app=a,tier=x", "app=b,tier=x", ""];
        let selectors = ["app=a", "tier=x", "app=a,tier=x", "app=c"];
        let (mut postings, mut drawers) = (Postings::default(), Selectors::default());
        objects
            .iter()
            .for_each(|text| postings.insert(&Arc::from(*text), &labels(text)));
        selectors
            .iter()
            .for_each(|text| drawers.insert(&Arc::from(*text), &labels(text)));
        for selector in selectors {
            for object in objects {
                let expected = matches(&labels(selector), &labels(object));
                let picked = postings
                    .candidates(&labels(selector))
                    .any(|name| &**name == object);
                let picks = drawers
                    .candidates(&labels(object))
                    .any(|name| &**name == selector);
                assert!(picked || !expected, "{selector} misses {object}");
                assert!(picks || !expected, "{object} misses {selector}");
            }
        }
        for text in objects {
            postings.remove(&Arc::from(text), &labels(text));
        }
        for text in selectors {
            drawers.remove(&Arc::from(text));
        }
        assert!(postings.is_empty() && postings.by_pair.is_empty());
        assert!(drawers.is_empty() && drawers.by_pair.is_empty());
    }
}
