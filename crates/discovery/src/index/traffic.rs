//! What holds for the traffic of services, by service.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use karst_model::{name::ServiceKey, traffic::ServiceTraffic};

use crate::state::Change;

#[derive(Default)]
pub(crate) struct Traffic(HashMap<ServiceKey, Arc<ServiceTraffic>>);

impl Traffic {
    pub(super) fn insert(&mut self, traffic: Arc<ServiceTraffic>, changes: &mut HashSet<Change>) {
        let key = traffic.service.clone();
        if self.0.insert(key.clone(), traffic.clone()).as_ref() != Some(&traffic) {
            changes.insert(Change::Traffic(key));
        }
    }

    pub(super) fn remove(&mut self, key: &ServiceKey, changes: &mut HashSet<Change>) {
        if self.0.remove(key).is_some() {
            changes.insert(Change::Traffic(key.clone()));
        }
    }

    pub(crate) fn get(&self, key: &ServiceKey) -> Option<&Arc<ServiceTraffic>> {
        self.0.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServiceTraffic>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
