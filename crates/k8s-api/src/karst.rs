//! Karst's own policies (`policy.karst.io`), one file per kind: what Istio and the Gateway API have no object for.
//! Their schemas are made in [`crate::crd`]; every field of them is honoured.

pub mod health_check;
pub mod rate_limit;

pub use health_check::HealthCheckSpec;
pub use rate_limit::RateLimitSpec;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::istio::{Resource, UnreadStatus};

pub type RateLimit = Resource<RateLimitSpec, UnreadStatus>;
pub type HealthCheck = Resource<HealthCheckSpec, UnreadStatus>;

/// What a policy is for: an object of its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["kind", "name"]))]
pub struct TargetReference {
    /// API group of the target; empty for the core one.
    #[schemars(length(max = 253))]
    pub group: String,
    /// Kind of the target.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
