//! `gateway.networking.k8s.io/v1 ReferenceGrant`: objects of its namespace that others may refer to.
//!
//! Source: Gateway API reference v1.6, `ReferenceGrantSpec`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    /// Any of these may refer.
    pub from: Vec<ReferenceGrantFrom>,
    /// To any of these.
    pub to: Vec<ReferenceGrantTo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantTo {
    /// The empty text for Kubernetes' own.
    pub group: String,
    pub kind: String,
    /// All of the kind where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
