//! Endpoints by service. Independent of the services themselves, so that endpoints may come first.

use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use karst_model::{
    name::{ServiceKey, WorkloadUid},
    workload::Workload,
};

#[derive(Default)]
pub(crate) struct Endpoints {
    by_service: HashMap<ServiceKey, Group>,
}

/// The endpoints of one service, healthy or not, and a shared list of them made when first asked for.
#[derive(Default)]
struct Group {
    by_uid: HashMap<WorkloadUid, Arc<Workload>>,
    list: OnceLock<Arc<[Arc<Workload>]>>,
}

impl Endpoints {
    pub(super) fn insert(&mut self, service: &ServiceKey, workload: Arc<Workload>) {
        let group = self.by_service.entry_ref(service).or_default();
        group.by_uid.insert(workload.uid.clone(), workload);
        group.list.take();
    }

    pub(super) fn remove(&mut self, service: &ServiceKey, uid: &WorkloadUid) {
        let Some(group) = self.by_service.get_mut(service) else {
            return;
        };
        group.by_uid.remove(uid);
        group.list.take();
        if group.by_uid.is_empty() {
            self.by_service.remove(service);
        }
    }

    /// All endpoints, ordered by uid; empty for an unknown service.
    pub(crate) fn list(&self, service: &ServiceKey) -> Arc<[Arc<Workload>]> {
        let Some(group) = self.by_service.get(service) else {
            return Arc::default();
        };
        let sorted = || {
            let mut all: Vec<_> = group.by_uid.values().cloned().collect();
            all.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
            all.into()
        };
        group.list.get_or_init(sorted).clone()
    }
}
