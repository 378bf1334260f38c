//! What is to be recorded, and where it goes, by resource.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashSet;
use karst_model::telemetry::Telemetry;

use crate::state::Change;

/// Ordered by name, so that the outcome does not depend on the order in which they came.
#[derive(Default)]
pub(crate) struct Telemetries(BTreeMap<Arc<str>, Arc<Telemetry>>);

impl Telemetries {
    pub(super) fn insert(&mut self, one: Arc<Telemetry>, changes: &mut HashSet<Change>) {
        if self.0.insert(one.name(), one.clone()).as_ref() != Some(&one) {
            changes.insert(Change::Telemetry);
        }
    }

    pub(super) fn remove(&mut self, name: &str, changes: &mut HashSet<Change>) {
        if self.0.remove(name).is_some() {
            changes.insert(Change::Telemetry);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Telemetry>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
