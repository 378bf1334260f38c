//! `gateway.networking.k8s.io/v1 BackendTLSPolicy`: TLS from a proxy to a backend. Source: Gateway API reference v1.6,
//! `BackendTLSPolicySpec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services (and ServiceEntries) of the policy's namespace, each with the name of a port or all of its ports.
    pub target_refs: Vec<SectionTarget>,
    pub validation: Validation,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SectionTarget {
    pub group: String,
    pub kind: String,
    pub name: String,
    /// Name of a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What controllers have said of it, as the API server has it. Source: Gateway API reference v1.6, `PolicyStatus`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// One entry per ancestor and controller.
    pub ancestors: Vec<serde_json::Value>,
}

/// How the backend's certificate is verified: by exactly one of the two sources of roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca_certificate_refs: Vec<CertificateReference>,
    /// `System`.
    #[serde(
        rename = "wellKnownCACertificates",
        skip_serializing_if = "Option::is_none"
    )]
    pub well_known_ca_certificates: Option<String>,
    /// Server name that is sent, and verified where no names are given.
    pub hostname: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<AltName>,
}

/// A ConfigMap of the policy's namespace, with the roots as PEM under `ca.crt`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateReference {
    pub group: String,
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AltName {
    /// `Hostname` or `URI`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}
