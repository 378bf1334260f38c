//! `gateway.networking.k8s.io/v1 GatewayClass`: who implements Gateways of a class.

use serde::{Deserialize, Serialize};

/// The class of waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";
/// `spec.controllerName` of [`WAYPOINT_CLASS`], Istio's: its tools find their classes by it.
pub const WAYPOINT_CONTROLLER: &str = "istio.io/mesh-controller";

/// Features of the Gateway API that waypoints have, as its conformance suite names them, in order.
pub const SUPPORTED_FEATURES: [&str; 11] = [
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// Who implements Gateways of a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    pub controller_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// An object with settings for the implementation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParametersReference {
    pub group: String,
    pub kind: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}
