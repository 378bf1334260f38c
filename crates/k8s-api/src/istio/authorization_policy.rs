//! `security.istio.io/v1 AuthorizationPolicy`: who may reach a workload.
//!
//! Source: Istio reference, "Authorization Policy".

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector::{ONE_TARGET, PolicyTargetReference, WorkloadSelector};

/// Who may reach which workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": ONE_TARGET, "message": "only one of selector, targetRef and targetRefs can be set"},
    {"rule": "has(self.provider) ? (has(self.action) && self.action == 'CUSTOM') : true", "message": "provider is only for action CUSTOM"}
]))]
pub struct AuthorizationPolicySpec {
    /// Workloads that the policy is for; without it and without targets all of the namespace, in the root namespace
    /// all of the mesh.
    pub selector: Option<WorkloadSelector>,
    /// What a waypoint enforces the policy for.
    pub target_ref: Option<PolicyTargetReference>,
    /// What a waypoint enforces the policy for.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Any of these must match. None: the policy never matches.
    #[schemars(length(max = 512))]
    pub rules: Vec<Rule>,
    /// What happens to what matches.
    pub action: Action,
    /// Only with action CUSTOM.
    pub provider: Option<ExtensionProvider>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Name of a provider in the mesh configuration.
    pub name: String,
}

/// AND of the three parts; an empty part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Who calls: any of these.
    #[schemars(length(max = 512))]
    pub from: Vec<From>,
    /// What is called: any of these.
    #[schemars(length(max = 512))]
    pub to: Vec<To>,
    /// Further conditions: all of these.
    #[schemars(length(max = 512))]
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct From {
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct To {
    pub operation: Operation,
}

/// Who calls. All fields that are given must match; within one field any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "x-kubernetes-validations" = [
    {"rule": "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces)) : true",
     "message": "serviceAccounts cannot stand beside principals or namespaces"}
]))]
pub struct Source {
    /// Identities: `<trust domain>/ns/<namespace>/sa/<service account>`; `*` at one end.
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    /// Identities of a request's token (HTTP).
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    /// Namespaces of the identity; `*` at one end.
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    /// `<service account>` of the policy's namespace, or `<namespace>/<service account>`.
    #[schemars(length(max = 16), inner(length(max = 320)))]
    pub service_accounts: Vec<String>,
    #[schemars(length(max = 16), inner(length(max = 320)))]
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the identity.
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    /// Addresses of the caller: IPs or CIDRs.
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    /// Addresses in X-Forwarded-For (HTTP).
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is called. All fields that are given must match; within one field any value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1))]
pub struct Operation {
    /// Host of a request (HTTP).
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    /// Ports of the workload, as text.
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    /// Method of a request (HTTP).
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    /// Path of a request (HTTP).
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// A further attribute of the connection or request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["key"]))]
pub struct Condition {
    /// Name of the attribute, for example `source.ip`.
    pub key: String,
    #[serde(default)]
    pub values: Vec<String>,
    #[serde(default)]
    pub not_values: Vec<String>,
}
