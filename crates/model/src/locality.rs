//! Where a workload runs, from wide to narrow.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Region, zone and subzone of the node. Empty means unknown, and two unknowns count as equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}
