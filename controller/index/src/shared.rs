//! Text and labels that many objects have in common, kept once: the namespace, node and service account of pods, and the
//! labels that the pods of one Deployment share.

use std::{collections::BTreeMap, hash::Hash, sync::Arc};

use hashbrown::HashSet;
use karst_k8s_api::ObjectKey;

use crate::{facts::Name, selector::Labels};

/// What is in use, and what was until the next sweep. Holds at most twice what is in use, and [`SMALL`] more.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    text: Pool<str>,
    labels: Pool<Labels>,
}

/// Below so many a pool is never swept.
const SMALL: usize = 4096;

#[derive(Debug)]
struct Pool<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// How many it holds when it is swept next.
    sweep_at: usize,
}

impl Shared {
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.text.all.get(text) {
            return known.clone();
        }
        self.text.insert(text.into())
    }

    pub(crate) fn labels(&mut self, labels: Option<BTreeMap<String, String>>) -> Arc<Labels> {
        let labels = labels.unwrap_or_default();
        if let Some(known) = self.labels.all.get(&labels) {
            return known.clone();
        }
        self.labels.insert(Arc::new(labels))
    }

    /// The name in a key: slices name pods again, and Deployments their services.
    pub(crate) fn name(&mut self, key: &ObjectKey) -> Name {
        Name {
            namespace: self.text(&key.namespace),
            name: self.text(&key.name),
        }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            sweep_at: SMALL,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn insert(&mut self, value: Arc<T>) -> Arc<T> {
        if self.all.len() >= self.sweep_at {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.all.len() * 2).max(SMALL);
        }
        self.all.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_one_and_what_nobody_holds_goes() {
        let mut shared = Shared::default();
        let node = shared.text("node-1");
        assert!(Arc::ptr_eq(&node, &shared.text("node-1")));
        let label = |value: &str| Some(BTreeMap::from([("app".to_owned(), value.to_owned())]));
        let labels = shared.labels(label("a"));
        assert!(Arc::ptr_eq(&labels, &shared.labels(label("a"))));
        assert!(!Arc::ptr_eq(&labels, &shared.labels(label("b"))));
        for number in 0..10 * SMALL {
            shared.text(&number.to_string());
        }
        assert!(shared.text.all.len() <= 2 * SMALL, "swept");
        assert!(Arc::ptr_eq(&node, &shared.text("node-1")), "in use");
    }
}
