//! `policy.karst.io/v1alpha1 RateLimit`: how many requests of whom a waypoint lets through.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetReference;
use crate::istio::duration::Duration;

/// Limits on the requests for a service, along a route, or through a waypoint. Each waypoint process counts by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["targetRefs", "rules"]))]
pub struct RateLimitSpec {
    /// Service, ServiceEntry, HTTPRoute, GRPCRoute, or the Gateway of a waypoint, of the policy's namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetReference>,
    /// Whether what is above a limit is refused.
    pub mode: Mode,
    /// Every rule that matches a request counts it; it passes if all of them have room.
    #[schemars(length(min = 1, max = 16))]
    pub rules: Vec<Rule>,
    /// What a refused client gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// What is above a limit is refused.
    #[default]
    Enforce,
    /// What is above a limit is counted and logged, and passes.
    Shadow,
}

/// One limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["requests"]))]
pub struct Rule {
    /// Name of the limit in response headers, metrics and the access log; `rule-<number>` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: Option<String>,
    /// Requests that it counts: any of these; none: every request.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<Match>,
    /// Requests per period.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u32,
    /// The period, 1ms to 24h; one second where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
    /// Requests that may come at once; as many as `requests` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<u32>,
    /// What tells clients apart, each with a count of its own: all of these together; none: one count for everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub key: Vec<Key>,
}

/// What is counted: all fields that are given must match; within one field any value. `*` at one end of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1))]
pub struct Match {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<String>,
    /// Normalised paths without the query; templates `{*}` and `{**}` as in AuthorizationPolicy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Identities of clients: `<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_principals: Vec<String>,
    /// Namespaces of clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_namespaces: Vec<String>,
    /// `<issuer>/<subject>` of the request's verified token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub request_principals: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name", "values"]))]
pub struct HeaderMatch {
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    #[schemars(length(min = 1, max = 64))]
    pub values: Vec<String>,
}

/// One thing that tells clients apart. A request without it is counted with all others without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["by"], "x-kubernetes-validations" = [
    {"rule": "(self.by in ['Header', 'Claim']) == has(self.name)", "message": "name is for Header and Claim, and needed there"}
]))]
pub struct Key {
    pub by: KeyKind,
    /// The header, or the claim (`.` between the names of nested ones).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyKind {
    /// The SPIFFE ID of the client.
    #[default]
    ClientIdentity,
    /// The namespace of that identity.
    ClientNamespace,
    /// The client's IP address, as trusted proxies tell it.
    ClientAddress,
    /// The value of a header.
    Header,
    /// The value of a claim of the request's verified token.
    Claim,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Response {
    /// Status of the answer; 429 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// Headers that tell clients about limits, on every answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeaderStyle>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeaderStyle {
    /// `RateLimit` and `RateLimit-Policy`, as the IETF's draft has them.
    #[default]
    Draft,
    /// `x-ratelimit-limit`, `x-ratelimit-remaining`, `x-ratelimit-reset`.
    Legacy,
    /// Both of them.
    Both,
    /// None; a refusal still says `retry-after`.
    None,
}
