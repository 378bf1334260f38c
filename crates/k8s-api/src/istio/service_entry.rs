//! `networking.istio.io/v1 ServiceEntry`: a service that Kubernetes does not know.
//!
//! Source: Istio reference, "Service Entry".

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::{StatusCondition, ValidationMessage, int_or_string};
/// An endpoint is the spec of a WorkloadEntry, inline.
pub use super::workload_entry::WorkloadEntrySpec as WorkloadEntry;

/// A service that Kubernetes does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"], "x-kubernetes-validations" = [
    {"rule": "!(has(self.workloadSelector) && has(self.endpoints))", "message": "only one of workloadSelector and endpoints can be set"},
    {"rule": "!((has(self.addresses) ? self.addresses : []).exists(a, a.contains('/')) && !((has(self.resolution) ? self.resolution : 'NONE') in ['STATIC', 'NONE']))",
     "message": "ranges in addresses need resolution NONE or STATIC"},
    {"rule": "(has(self.resolution) ? self.resolution : 'NONE') == 'NONE' ? !has(self.endpoints) : true", "message": "resolution NONE takes no endpoints"},
    {"rule": "(has(self.resolution) ? self.resolution : '') == 'DNS_ROUND_ROBIN' ? (has(self.endpoints) ? self.endpoints : []).size() <= 1 : true",
     "message": "resolution DNS_ROUND_ROBIN takes at most one endpoint"}
]))]
pub struct ServiceEntrySpec {
    /// Names of the service; `*.` at the start stands for any subdomain.
    #[schemars(length(min = 1, max = 256), inner(length(max = 256)), extend("x-kubernetes-validations" = [
        {"rule": "self.all(host, host != '*')", "message": "a host cannot be a bare wildcard"}
    ]))]
    pub hosts: Vec<String>,
    /// Virtual addresses: IPs or CIDRs.
    #[schemars(length(max = 256), inner(length(max = 64)))]
    pub addresses: Vec<String>,
    #[schemars(length(max = 256), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = [
            {"rule": "self.all(a, self.exists_one(b, a.number == b.number))", "message": "each port number can be given once"}
        ]
    ))]
    pub ports: Vec<ServicePort>,
    pub location: Location,
    pub resolution: Resolution,
    /// Where the service runs.
    #[schemars(length(max = 4096))]
    pub endpoints: Vec<WorkloadEntry>,
    /// Pods and WorkloadEntries of the namespace that the service runs on.
    pub workload_selector: Option<EntrySelector>,
    /// `*` everyone, `.` this namespace, `~` nobody, or names of namespaces. Empty means everyone.
    pub export_to: Vec<String>,
    /// Identities that are accepted from the service's endpoints.
    pub subject_alt_names: Vec<String>,
}

/// ServiceEntry's selector; its field is `labels`, unlike that of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EntrySelector {
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["number", "name"]))]
pub struct ServicePort {
    #[schemars(range(min = 1, max = 65535))]
    pub number: u16,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub protocol: String,
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub name: String,
    /// Port of the endpoints; without it the same number.
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

/// Status of a ServiceEntry. Fields that other controllers add are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ServiceEntryStatus {
    /// Addresses that a controller has chosen.
    pub addresses: Vec<ServiceEntryAddress>,
    #[schemars(with = "Vec<StatusCondition>", extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<serde_json::Value>,
    #[schemars(with = "Vec<ValidationMessage>")]
    pub validation_messages: Vec<serde_json::Value>,
    #[schemars(schema_with = "int_or_string")]
    pub observed_generation: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryAddress {
    pub value: String,
    pub host: String,
}
