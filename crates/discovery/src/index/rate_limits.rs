//! Rate limits, by key.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashSet;
use karst_model::{name::PolicyKey, rate_limit::RateLimit};

use crate::state::Change;

/// Ordered by key, so that of two limits that refuse the same one is always named first.
#[derive(Default)]
pub(crate) struct RateLimits(BTreeMap<PolicyKey, Arc<RateLimit>>);

impl RateLimits {
    pub(super) fn insert(&mut self, limit: Arc<RateLimit>, changes: &mut HashSet<Change>) {
        let key = limit.key.clone();
        if self.0.insert(key.clone(), limit.clone()).as_ref() != Some(&limit) {
            changes.insert(Change::RateLimit(key));
        }
    }

    pub(super) fn remove(&mut self, key: &PolicyKey, changes: &mut HashSet<Change>) {
        if self.0.remove(key).is_some() {
            changes.insert(Change::RateLimit(key.clone()));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<RateLimit>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
