//! The closed set of kinds that Karst reads, and how `apiVersion` and `kind` name them.

use std::fmt;

/// A kind of object that Karst reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    ConfigMap,
    Deployment,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    ServiceEntry,
    WorkloadEntry,
    DestinationRule,
    VirtualService,
    Telemetry,
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    BackendTlsPolicy,
    RateLimit,
    HealthCheck,
}

/// Why an `apiVersion` and `kind` name nothing that Karst reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    #[error("kind {kind:?} of {api_version:?} is not one that karst reads")]
    Unknown { api_version: String, kind: String },
    #[error("kind {kind} is served as {expected}, not as {api_version:?}")]
    Version {
        api_version: String,
        kind: Kind,
        expected: String,
    },
}

/// One row per kind: its names, its API group with the slash, and the versions that all read alike, the first of which
/// is stored.
struct Row {
    kind: Kind,
    name: &'static str,
    plural: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
}

/// API group of the Gateway API, with the slash.
const GATEWAY_API: &str = "gateway.networking.k8s.io/";

/// API group of Karst's own policies, with the slash.
const KARST_POLICY: &str = "policy.karst.io/";

const ROWS: [Row; 26] = [
    row(Kind::Namespace, "Namespace", "namespaces", "", &["v1"]),
    row(Kind::Node, "Node", "nodes", "", &["v1"]),
    row(
        Kind::ServiceAccount,
        "ServiceAccount",
        "serviceaccounts",
        "",
        &["v1"],
    ),
    row(Kind::Pod, "Pod", "pods", "", &["v1"]),
    row(Kind::Service, "Service", "services", "", &["v1"]),
    row(
        Kind::EndpointSlice,
        "EndpointSlice",
        "endpointslices",
        "discovery.k8s.io/",
        &["v1"],
    ),
    row(Kind::ConfigMap, "ConfigMap", "configmaps", "", &["v1"]),
    row(
        Kind::Deployment,
        "Deployment",
        "deployments",
        "apps/",
        &["v1"],
    ),
    row(
        Kind::AuthorizationPolicy,
        "AuthorizationPolicy",
        "authorizationpolicies",
        "security.istio.io/",
        &["v1", "v1beta1"],
    ),
    row(
        Kind::PeerAuthentication,
        "PeerAuthentication",
        "peerauthentications",
        "security.istio.io/",
        &["v1", "v1beta1"],
    ),
    row(
        Kind::RequestAuthentication,
        "RequestAuthentication",
        "requestauthentications",
        "security.istio.io/",
        &["v1", "v1beta1"],
    ),
    row(
        Kind::ServiceEntry,
        "ServiceEntry",
        "serviceentries",
        "networking.istio.io/",
        &["v1", "v1beta1", "v1alpha3"],
    ),
    row(
        Kind::WorkloadEntry,
        "WorkloadEntry",
        "workloadentries",
        "networking.istio.io/",
        &["v1", "v1beta1", "v1alpha3"],
    ),
    row(
        Kind::DestinationRule,
        "DestinationRule",
        "destinationrules",
        "networking.istio.io/",
        &["v1", "v1beta1", "v1alpha3"],
    ),
    row(
        Kind::VirtualService,
        "VirtualService",
        "virtualservices",
        "networking.istio.io/",
        &["v1", "v1beta1", "v1alpha3"],
    ),
    row(
        Kind::Telemetry,
        "Telemetry",
        "telemetries",
        "telemetry.istio.io/",
        &["v1", "v1alpha1"],
    ),
    row(
        Kind::GatewayClass,
        "GatewayClass",
        "gatewayclasses",
        GATEWAY_API,
        &["v1", "v1beta1"],
    ),
    row(
        Kind::Gateway,
        "Gateway",
        "gateways",
        GATEWAY_API,
        &["v1", "v1beta1"],
    ),
    row(
        Kind::HttpRoute,
        "HTTPRoute",
        "httproutes",
        GATEWAY_API,
        &["v1", "v1beta1"],
    ),
    row(
        Kind::GrpcRoute,
        "GRPCRoute",
        "grpcroutes",
        GATEWAY_API,
        &["v1"],
    ),
    row(
        Kind::TlsRoute,
        "TLSRoute",
        "tlsroutes",
        GATEWAY_API,
        &["v1", "v1alpha3", "v1alpha2"],
    ),
    row(
        Kind::TcpRoute,
        "TCPRoute",
        "tcproutes",
        GATEWAY_API,
        &["v1", "v1alpha2"],
    ),
    row(
        Kind::ReferenceGrant,
        "ReferenceGrant",
        "referencegrants",
        GATEWAY_API,
        &["v1", "v1beta1"],
    ),
    row(
        Kind::BackendTlsPolicy,
        "BackendTLSPolicy",
        "backendtlspolicies",
        GATEWAY_API,
        &["v1"],
    ),
    row(
        Kind::RateLimit,
        "RateLimit",
        "ratelimits",
        KARST_POLICY,
        &["v1alpha1"],
    ),
    row(
        Kind::HealthCheck,
        "HealthCheck",
        "healthchecks",
        KARST_POLICY,
        &["v1alpha1"],
    ),
];

const fn row(
    kind: Kind,
    name: &'static str,
    plural: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
) -> Row {
    Row {
        kind,
        name,
        plural,
        group,
        versions,
    }
}

impl Kind {
    /// The kind that an object's `apiVersion` and `kind` name.
    ///
    /// # Errors
    /// [`KindError::Unknown`] for a kind or group that Karst does not read, [`KindError::Version`] for a known kind
    /// in a version that it does not read.
    pub fn of(api_version: &str, kind: &str) -> Result<Self, KindError> {
        let unknown = || KindError::Unknown {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        };
        let row = ROWS
            .iter()
            .find(|row| row.name == kind)
            .ok_or_else(unknown)?;
        let version = match api_version.strip_prefix(row.group) {
            Some(version) if !version.contains('/') => version,
            _ if api_version.contains('/') || !row.group.is_empty() => return Err(unknown()),
            _ => api_version,
        };
        if row.versions.contains(&version) {
            return Ok(row.kind);
        }
        let expected: Vec<String> = row
            .versions
            .iter()
            .map(|v| format!("{}{v}", row.group))
            .collect();
        Err(KindError::Version {
            api_version: api_version.to_owned(),
            kind: row.kind,
            expected: expected.join(" or "),
        })
    }

    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// As `kind:` spells it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// As the API server's paths and RBAC rules spell it.
    pub fn plural(self) -> &'static str {
        self.row().plural
    }

    /// API group; empty for the core one.
    pub fn group(self) -> &'static str {
        self.row().group.trim_end_matches('/')
    }

    /// Versions that are read, the stored one first.
    pub fn versions(self) -> &'static [&'static str] {
        self.row().versions
    }

    /// `<group>/<version>` of the stored version, as `apiVersion:` spells it.
    pub fn api_version(self) -> String {
        format!("{}{}", self.row().group, self.row().versions[0])
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.kind)
    }

    /// Whether objects of this kind live in the cluster rather than in a namespace.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// Whether the kind is one of Istio's own resource definitions.
    pub fn is_istio(self) -> bool {
        self.row().group.ends_with("istio.io/")
    }

    /// Whether the kind is one of the Gateway API.
    pub fn is_gateway_api(self) -> bool {
        self.row().group == GATEWAY_API
    }

    /// Whether the kind is one of Karst's own policies.
    pub fn is_karst(self) -> bool {
        self.row().group == KARST_POLICY
    }

    /// Whether Karst ships the kind's definition, so that its fields are known to the last and its status is ours.
    pub fn is_shipped(self) -> bool {
        self.is_istio() || self.is_karst()
    }

    /// Whether the kind comes from a resource definition, which may be missing in a cluster.
    pub fn is_defined_apart(self) -> bool {
        self.is_shipped() || self.is_gateway_api()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_under_each_of_its_versions() {
        for (position, row) in ROWS.iter().enumerate() {
            assert_eq!(
                row.kind as usize, position,
                "rows are in the order of the enum"
            );
            for version in row.versions {
                assert_eq!(
                    Kind::of(&format!("{}{version}", row.group), row.name),
                    Ok(row.kind)
                );
            }
        }
    }

    #[test]
    fn other_groups_and_versions_are_told_apart() {
        let unknown =
            |api: &str, kind: &str| matches!(Kind::of(api, kind), Err(KindError::Unknown { .. }));
        assert!(unknown("v1", "Secret"));
        assert!(
            unknown("serving.knative.dev/v1", "Service"),
            "another group's Service is another kind"
        );
        assert!(unknown("v1", "EndpointSlice"));
        assert!(unknown("", "AuthorizationPolicy"));
        let Err(error) = Kind::of("networking.istio.io/v2", "ServiceEntry") else {
            panic!("v2 does not exist")
        };
        assert!(
            error.to_string().contains("networking.istio.io/v1 or"),
            "{error}"
        );
        assert!(matches!(
            Kind::of("v2", "Pod"),
            Err(KindError::Version { .. })
        ));
    }
}
