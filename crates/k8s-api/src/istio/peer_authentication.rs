//! `security.istio.io/v1 PeerAuthentication`: whether a workload accepts plaintext.
//!
//! Source: Istio reference, "PeerAuthentication".

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector::WorkloadSelector;

/// Whether workloads accept plaintext.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.portLevelMtls) ? (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0) : true",
     "message": "portLevelMtls needs a selector with matchLabels"}
]))]
pub struct PeerAuthenticationSpec {
    /// Workloads that this is for; without it all of the namespace, in the root namespace all of the mesh.
    pub selector: Option<WorkloadSelector>,
    pub mtls: Option<MutualTls>,
    /// Port of the workload (not of a service) to its own setting.
    #[schemars(extend("maxProperties" = 256, "x-kubernetes-validations" = [
        {"rule": "self.all(key, 0 < int(key) && int(key) <= 65535)", "message": "expected a port from 1 to 65535"}
    ]))]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Inherit from the next wider scope.
    #[default]
    Unset,
    /// Read like [`Mode::Permissive`]: Karst never turns a tunnel off for what arrives.
    Disable,
    Permissive,
    Strict,
}
