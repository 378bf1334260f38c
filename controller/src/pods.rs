//! Which pods run where: what certificates and reports are checked against. Fed from the index's output.

use std::sync::{Arc, RwLock, RwLockReadGuard};

use hashbrown::HashMap;
use karst_ca::{NodeView, authorize::PodFacts};
use karst_index::NodeChange;
use karst_model::{enrollment::NodeWorkload, name::PodUid};

/// The pods of all nodes.
#[derive(Default)]
pub struct Pods {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    by_uid: HashMap<PodUid, (Arc<str>, Arc<NodeWorkload>)>,
    by_node: HashMap<Arc<str>, HashMap<PodUid, Arc<NodeWorkload>>>,
}

impl Pods {
    /// Takes over what changed.
    pub fn apply(&self, changes: &[NodeChange]) {
        let mut inner = self
            .inner
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for change in changes {
            match change {
                NodeChange::Updated { node, workload } => {
                    inner.insert(node.clone(), workload.clone())
                }
                NodeChange::Removed { node, pod_uid } => inner.remove(node, pod_uid),
            }
        }
    }

    /// The pods of a node.
    pub fn of_node(&self, node: &str) -> Vec<PodUid> {
        self.read()
            .by_node
            .get(node)
            .map(|pods| pods.keys().cloned().collect())
            .unwrap_or_default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn insert(&mut self, node: Arc<str>, pod: Arc<NodeWorkload>) {
        let uid = pod.pod_uid.clone();
        self.by_node
            .entry(node.clone())
            .or_default()
            .insert(uid.clone(), pod.clone());
        self.by_uid.insert(uid, (node, pod));
    }

    /// A pod's UID can move to another node (files are edited): only the entry of `node` goes.
    fn remove(&mut self, node: &Arc<str>, uid: &PodUid) {
        if self.by_uid.get(uid).is_some_and(|(of, _)| of == node) {
            self.by_uid.remove(uid);
        }
        if let Some(pods) = self.by_node.get_mut(node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_node.remove(node);
            }
        }
    }
}

impl NodeView for Pods {
    fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let inner = self.read();
        let mut pods = inner
            .by_node
            .get(node)
            .into_iter()
            .flat_map(|pods| pods.values());
        pods.any(|pod| *pod.namespace == *namespace && *pod.service_account == *service_account)
    }

    fn pod(&self, uid: &str) -> Option<PodFacts> {
        let inner = self.read();
        let (node, pod) = inner.by_uid.get(&PodUid(uid.into()))?;
        Some(PodFacts {
            node: node.to_string(),
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
        })
    }
}
