//! `security.istio.io/v1 PeerAuthentication`: whether a workload accepts plaintext.
//!
//! Source: Istio reference, "PeerAuthentication".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::selector::WorkloadSelector;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    pub selector: Option<WorkloadSelector>,
    pub mtls: Option<MutualTls>,
    /// Port of the workload (not of a service) to its own setting.
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
