//! Which tokens requests may carry, by object.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashSet;
use karst_model::{name::PolicyKey, token::RequestAuthentication};

use crate::state::Change;

/// Ordered by key, so that the outcome does not depend on the order in which they came.
#[derive(Default)]
pub(crate) struct RequestAuthentications(BTreeMap<PolicyKey, Arc<RequestAuthentication>>);

impl RequestAuthentications {
    pub(super) fn insert(
        &mut self,
        one: Arc<RequestAuthentication>,
        changes: &mut HashSet<Change>,
    ) {
        let key = one.key.clone();
        if self.0.insert(key.clone(), one.clone()).as_ref() != Some(&one) {
            changes.insert(Change::RequestAuthentication(key));
        }
    }

    pub(super) fn remove(&mut self, key: &PolicyKey, changes: &mut HashSet<Change>) {
        if self.0.remove(key).is_some() {
            changes.insert(Change::RequestAuthentication(key.clone()));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
