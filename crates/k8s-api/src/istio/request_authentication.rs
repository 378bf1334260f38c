//! `security.istio.io/v1 RequestAuthentication`: which tokens a request may carry (HTTP).
//!
//! Source: Istio reference, "RequestAuthentication".

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    duration::Duration,
    selector::{ONE_TARGET, PolicyTargetReference, WorkloadSelector},
};

/// Which tokens requests may carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": ONE_TARGET, "message": "only one of selector, targetRef and targetRefs can be set"}
]))]
pub struct RequestAuthenticationSpec {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<PolicyTargetReference>,
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Issuers whose tokens are believed.
    #[schemars(length(max = 4096))]
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1", "message": "only one of jwks and jwksUri can be set"}
]))]
pub struct JwtRule {
    #[schemars(length(min = 1))]
    pub issuer: Option<String>,
    #[schemars(inner(length(min = 1)))]
    pub audiences: Vec<String>,
    #[schemars(length(min = 1, max = 2048))]
    pub jwks_uri: Option<String>,
    /// Old spelling of `jwksUri`.
    #[serde(rename = "jwks_uri")]
    #[schemars(length(min = 1, max = 2048))]
    pub jwks_uri_snake: Option<String>,
    pub jwks: Option<String>,
    pub from_headers: Vec<JwtHeader>,
    #[schemars(inner(length(min = 1)))]
    pub from_params: Vec<String>,
    #[schemars(inner(length(min = 1)))]
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: Option<String>,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub forward_original_token: Option<bool>,
    #[schemars(length(max = 64), inner(length(min = 1)))]
    pub space_delimited_claims: Vec<String>,
    pub timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct JwtHeader {
    #[schemars(length(min = 1))]
    pub name: String,
    pub prefix: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["header", "claim"]))]
pub struct ClaimToHeader {
    #[schemars(length(min = 1), regex(pattern = "^[-_A-Za-z0-9]+$"))]
    pub header: String,
    #[schemars(length(min = 1))]
    pub claim: String,
}
