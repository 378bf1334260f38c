//! What this replica has published of the nodes that it serves, for the other replicas and for the next start.
//!
//! The index's owner puts each node's present state in; a writer takes out what has changed, in its latest form, and
//! keeps it where every replica sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use karst_model::{enrollment::PodCapture, name::PodUid};
use tokio::sync::Notify;

/// The pods of a node that are reached by HBONE.
pub type Published = BTreeMap<PodUid, PodCapture>;

/// The nodes that this replica serves.
#[derive(Default)]
pub struct RecordBook {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<Arc<str>, Published>,
    unwritten: BTreeSet<Arc<str>>,
}

impl RecordBook {
    /// The state of a node that we serve, as of now.
    pub fn set(&self, node: &Arc<str>, published: Published) {
        let mut inner = self.lock();
        if inner.nodes.get(node) == Some(&published) {
            return;
        }
        inner.nodes.insert(node.clone(), published);
        inner.unwritten.insert(node.clone());
        drop(inner);
        self.changed.notify_one();
    }

    /// We do not serve this node any more.
    pub fn forget(&self, node: &str) {
        let mut inner = self.lock();
        inner.nodes.remove(node);
        inner.unwritten.remove(node);
    }

    /// Whether we serve this node.
    pub fn serves(&self, node: &str) -> bool {
        self.lock().nodes.contains_key(node)
    }

    /// A node whose state is to be written, in its latest form.
    pub fn take(&self) -> Option<(Arc<str>, Published)> {
        let mut inner = self.lock();
        let node = inner.unwritten.pop_first()?;
        let published = inner.nodes.get(&node)?.clone();
        Some((node, published))
    }

    /// The node's state is not written after all.
    pub fn put_back(&self, node: &Arc<str>) {
        let mut inner = self.lock();
        if inner.nodes.contains_key(node) {
            inner.unwritten.insert(node.clone());
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Waits until something may have to be written.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use karst_model::enrollment::Generation;

    use super::*;

    fn published(uid: &str) -> Published {
        let capture = PodCapture {
            generation: Generation(1),
            plaintext_open: false,
        };
        BTreeMap::from([(uid.into(), capture)])
    }

    #[test]
    fn the_latest_state_of_each_node_is_written_once() {
        let (book, node) = (RecordBook::default(), Arc::from("n1"));
        book.set(&node, Published::new());
        book.set(&node, published("a"));
        assert_eq!(book.take(), Some((node.clone(), published("a"))));
        book.set(&node, published("a"));
        assert_eq!(book.take(), None, "as it was");
        book.put_back(&node);
        assert!(book.take().is_some());
        book.forget(&node);
        book.put_back(&node);
        assert!(book.take().is_none() && !book.serves(&node));
    }
}
