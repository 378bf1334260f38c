//! `policy.karst.io/v1alpha1 HealthCheck`: how a waypoint asks endpoints whether they can serve.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetReference;
use crate::istio::duration::Duration;

/// Active checks of the endpoints of services, by their waypoint. One of http, tcp and grpc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["targetRefs"], "x-kubernetes-validations" = [
    {"rule": "(has(self.http) ? 1 : 0) + (has(self.tcp) ? 1 : 0) + (has(self.grpc) ? 1 : 0) == 1", "message": "one of http, tcp and grpc is needed"}
]))]
pub struct HealthCheckSpec {
    /// Service or ServiceEntry of the policy's namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetReference>,
    /// A GET request whose status is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A connection that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// The gRPC health checking protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// Port of the service whose endpoints are asked; each of its ports by itself where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Between the checks of one endpoint, 100ms to 1h; 10s where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an answer may take, at most the interval; 1s where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row after which an endpoint gets no requests; 3 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row after which it gets them again; 1 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpProbe {
    /// `/` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[!-~]*$"))]
    pub path: Option<String>,
    /// Host header; the service's name where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// Statuses of a healthy endpoint: `200`, `200-299`; 200-399 where left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(regex(pattern = r"^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$"))
    )]
    pub statuses: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpProbe {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcProbe {
    /// Service that is asked about; the server as a whole where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
}
