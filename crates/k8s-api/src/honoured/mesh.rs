//! Fields of Istio's mesh configuration (ConfigMap `istio`, key `mesh`, of the root namespace).

use super::Verdict::{self, Honoured, NoEffect, NotYet};

/// A field of the mesh configuration, what Karst does with it, and what happens instead.
pub type MeshRow = (&'static str, Verdict, &'static str);

/// Every field of `MeshConfig`.
pub const MESH_CONFIG: &[MeshRow] = &[
    (
        "proxyListenPort",
        NoEffect,
        "there is no sidecar to configure",
    ),
    (
        "proxyInboundListenPort",
        NoEffect,
        "there is no sidecar to configure",
    ),
    (
        "proxyHttpPort",
        NoEffect,
        "there is no sidecar to configure",
    ),
    ("connectTimeout", NotYet, "the agent's own timeout holds"),
    ("hboneIdleTimeout", NotYet, "the agent's own timeout holds"),
    (
        "protocolDetectionTimeout",
        NotYet,
        "L4 detects no protocol; needs a waypoint",
    ),
    ("tcpKeepalive", NotYet, "the agent's own settings hold"),
    ("ingressClass", NotYet, "this version has no ingress"),
    ("ingressService", NotYet, "this version has no ingress"),
    (
        "ingressControllerMode",
        NotYet,
        "this version has no ingress",
    ),
    ("ingressSelector", NotYet, "this version has no ingress"),
    (
        "enableTracing",
        NoEffect,
        "spans belong to requests: L4 makes none",
    ),
    (
        "accessLogFile",
        NoEffect,
        "agents log connections to standard output, always",
    ),
    (
        "accessLogFormat",
        NotYet,
        "the format of agents' logs is fixed",
    ),
    (
        "accessLogEncoding",
        NotYet,
        "agents' flags choose text or JSON",
    ),
    (
        "enableEnvoyAccessLogService",
        NoEffect,
        "there is no Envoy to configure",
    ),
    (
        "disableEnvoyListenerLog",
        NoEffect,
        "there is no Envoy to configure",
    ),
    (
        "defaultConfig",
        Honoured,
        "gatewayTopology.numTrustedProxies, by waypoints; the rest is for sidecars and has no effect",
    ),
    (
        "outboundTrafficPolicy",
        Honoured,
        "REGISTRY_ONLY: TCP of enrolled pods to what is neither service nor pod of the mesh is refused by their node's agent",
    ),
    (
        "inboundTrafficPolicy",
        NoEffect,
        "there is no sidecar to configure",
    ),
    (
        "configSources",
        NotYet,
        "configuration comes from the Kubernetes API",
    ),
    (
        "enableAutoMtls",
        NoEffect,
        "mutual TLS inside the mesh is always on",
    ),
    (
        "trustDomain",
        Honoured,
        "certificates are issued in it; the one that the controller was told, and those before, stay aliases",
    ),
    (
        "trustDomainAliases",
        Honoured,
        "at most 20; peers of an alias are let in, and policies take all names for the same",
    ),
    (
        "caCertificates",
        NotYet,
        "roots come from the CA's own bundle",
    ),
    (
        "defaultServiceExportTo",
        NotYet,
        "services are visible to everyone unless they say otherwise",
    ),
    (
        "defaultVirtualServiceExportTo",
        NotYet,
        "exportTo of each VirtualService counts alone",
    ),
    ("defaultDestinationRuleExportTo", NotYet, "needs a waypoint"),
    (
        "rootNamespace",
        Honoured,
        "must be the namespace that the controller was told; another one is reported",
    ),
    (
        "localityLbSetting",
        NotYet,
        "services choose by spec.trafficDistribution",
    ),
    (
        "zoneAwareLbSetting",
        NotYet,
        "services choose by spec.trafficDistribution",
    ),
    (
        "dnsRefreshRate",
        NotYet,
        "the agent resolves at its own pace",
    ),
    ("h2UpgradePolicy", NotYet, "needs a waypoint"),
    (
        "inboundClusterStatName",
        NoEffect,
        "there is no Envoy to configure",
    ),
    (
        "outboundClusterStatName",
        NoEffect,
        "there is no Envoy to configure",
    ),
    ("certificates", NoEffect, "Istio dropped it too"),
    ("serviceSettings", NoEffect, "there is one cluster"),
    ("serviceScopeConfigs", NoEffect, "there is one cluster"),
    (
        "enablePrometheusMerge",
        NoEffect,
        "a pod's own metrics stay its own",
    ),
    (
        "verifyCertificateAtClient",
        NoEffect,
        "Istio dropped it too",
    ),
    ("ca", NotYet, "the controller signs by itself"),
    (
        "extensionProviders",
        Honoured,
        "opentelemetry and envoyOtelAls (http.headers and grpc.initialMetadata too, by value or envName), prometheus, envoyFileAccessLog, envoyExtAuthzHttp, envoyExtAuthzGrpc; others are reported",
    ),
    (
        "defaultProviders",
        Honoured,
        "for traces, metrics and access logs where no Telemetry names providers",
    ),
    ("discoverySelectors", NotYet, "all namespaces are watched"),
    ("pathNormalization", NotYet, "needs a waypoint"),
    ("defaultHttpRetryPolicy", NotYet, "needs a waypoint"),
    (
        "tlsDefaults",
        NotYet,
        "TLS 1.3 with one set of ciphers is the only kind",
    ),
    (
        "meshMTLS",
        NotYet,
        "TLS 1.3 with one set of ciphers is the only kind",
    ),
    ("defaultTrafficPolicy", NotYet, "needs a waypoint"),
    (
        "serviceEntryVisibility",
        NotYet,
        "entries are visible to everyone unless they say otherwise",
    ),
];
