//! The DNS sockets of this node's pods, those that have left the mesh among them.

use std::{collections::BTreeMap, sync::Arc};

use karst_model::name::PodUid;

use crate::dns::pod::PodDns;

/// One for each pod that an agent has captured since the pod began; as many at most as there are records of namespaces.
#[derive(Default)]
pub(crate) struct KeptDns(BTreeMap<PodUid, Arc<PodDns>>);

impl KeptDns {
    pub(crate) fn get(&self, pod_uid: &PodUid) -> Option<&Arc<PodDns>> {
        self.0.get(pod_uid)
    }

    /// Keeps a pod's socket. One that the pod had in another namespace ends.
    pub(crate) fn keep(&mut self, dns: Arc<PodDns>) {
        let kept = self.0.insert(dns.pod_uid.clone(), dns.clone());
        if let Some(other) = kept.filter(|kept| !Arc::ptr_eq(kept, &dns)) {
            other.stop.cancel();
        }
    }

    /// The pod is gone.
    pub(crate) fn end(&mut self, pod_uid: &PodUid) {
        if let Some(dns) = self.0.remove(pod_uid) {
            dns.stop.cancel();
        }
    }

    /// Ends those whose pods are gone: they would keep the namespace.
    pub(crate) fn end_unless(&mut self, is_there: impl Fn(&PodDns) -> bool) {
        self.0.retain(|_, dns| {
            let keep = is_there(dns);
            if !keep {
                dns.stop.cancel();
            }
            keep
        });
    }
}
