//! `networking.istio.io/v1 WorkloadEntry`: a workload that is no pod; also the inline endpoint of a ServiceEntry.
//!
//! Source: Istio reference, "Workload Entry".

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One workload that is no pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.address) || has(self.network)", "message": "an address is needed: an IP, or a name to resolve"}
]))]
pub struct WorkloadEntrySpec {
    /// IP, or a name to resolve.
    #[schemars(length(max = 256))]
    pub address: String,
    /// Port name of the service to the port of this endpoint.
    #[schemars(extend("maxProperties" = 128))]
    pub ports: BTreeMap<String, u16>,
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
    #[schemars(length(max = 2048))]
    pub network: String,
    /// `region/zone/subzone`.
    #[schemars(length(max = 2048))]
    pub locality: String,
    pub weight: u32,
    #[schemars(length(max = 253))]
    pub service_account: String,
}
