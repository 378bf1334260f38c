//! Fields of Istio's kinds.

use super::{
    FieldRow,
    Verdict::{self, Honoured, NoEffect, NotYet, Refused},
};
use crate::Kind::{
    self, AuthorizationPolicy, DestinationRule, PeerAuthentication, RequestAuthentication,
    ServiceEntry, Telemetry, VirtualService, WorkloadEntry,
};

/// Shown for conditions on requests.
const HTTP: &str = "needs a waypoint, and this version has none: an ALLOW rule with it allows nothing, a DENY rule denies without it, which is more";
/// Shown for routes.
const ROUTES: &str = "needs a waypoint, and this version has none: traffic goes as without it";
/// Shown for policies of waypoints.
const WAYPOINT: &str = "is enforced by a waypoint, and this version has none: the object is refused, so that nobody takes it for enforced";

/// Every field, each kind's in the order of Istio's reference.
pub const FIELDS: &[FieldRow] = &[
    // --- AuthorizationPolicy
    row(
        AuthorizationPolicy,
        "spec",
        Honoured,
        "enforced at the destination's node, for new and for live connections",
    ),
    row(
        AuthorizationPolicy,
        "spec.selector",
        Honoured,
        "pods of the namespace; in the root namespace, of all namespaces",
    ),
    row(
        AuthorizationPolicy,
        "spec.selector.matchLabels",
        Honoured,
        "no wildcards",
    ),
    row(AuthorizationPolicy, "spec.targetRef", Refused, WAYPOINT),
    row(AuthorizationPolicy, "spec.targetRefs", Refused, WAYPOINT),
    row(
        AuthorizationPolicy,
        "spec.action",
        Honoured,
        "ALLOW and DENY; AUDIT records nothing and says so; CUSTOM is refused",
    ),
    row(
        AuthorizationPolicy,
        "spec.provider",
        Refused,
        "external authorization needs a waypoint, and this version has none",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules",
        Honoured,
        "any of them; a DENY without rules is refused, since it would deny nothing",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from",
        Honoured,
        "any of them",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source",
        Honoured,
        "all of its fields; an empty one is refused",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.principals",
        Honoured,
        "`*` at one end; a text that can never be an identity is refused",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notPrincipals",
        Honoured,
        "as principals",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.requestPrincipals",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notRequestPrincipals",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.namespaces",
        Honoured,
        "`*` at one end",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notNamespaces",
        Honoured,
        "as namespaces",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.serviceAccounts",
        Honoured,
        "`name` of the policy's namespace, or `namespace/name`",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notServiceAccounts",
        Honoured,
        "as serviceAccounts",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.trustDomains",
        NotYet,
        "is not compared yet: an ALLOW rule with it allows nothing, a DENY rule denies without it, which is more; use principals such as `example.org/*`",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notTrustDomains",
        NotYet,
        "is not compared yet: an ALLOW rule with it allows nothing, a DENY rule denies without it, which is more; use notPrincipals such as `example.org/*`",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.ipBlocks",
        Honoured,
        "the address that the connection comes from",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notIpBlocks",
        Honoured,
        "as ipBlocks",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.remoteIpBlocks",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notRemoteIpBlocks",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to",
        Honoured,
        "any of them",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation",
        Honoured,
        "all of its fields; an empty one is refused",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.hosts",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notHosts",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.ports",
        Honoured,
        "ports of the workload, not of the service",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notPorts",
        Honoured,
        "as ports",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.methods",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notMethods",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.paths",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notPaths",
        NotYet,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].when",
        Honoured,
        "all of them",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].when[].key",
        Honoured,
        "`source.ip`, `source.namespace`, `source.principal`, `destination.ip`, `destination.port`; keys of requests as fields of requests; others are refused",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].when[].values",
        Honoured,
        "any of them",
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].when[].notValues",
        Honoured,
        "none of them",
    ),
    // --- PeerAuthentication
    row(
        PeerAuthentication,
        "spec",
        Honoured,
        "enforced at the destination's node, for new and for live connections",
    ),
    row(
        PeerAuthentication,
        "spec.selector",
        Honoured,
        "pods of the namespace; refused in the root namespace, where Istio ignores it",
    ),
    row(
        PeerAuthentication,
        "spec.selector.matchLabels",
        Honoured,
        "no wildcards",
    ),
    row(
        PeerAuthentication,
        "spec.mtls",
        Honoured,
        "the narrowest that is not UNSET holds",
    ),
    row(
        PeerAuthentication,
        "spec.mtls.mode",
        Honoured,
        "DISABLE reads like PERMISSIVE: what arrives by HBONE is always encrypted",
    ),
    row(
        PeerAuthentication,
        "spec.portLevelMtls",
        Honoured,
        "ports of the workload; needs a selector",
    ),
    row(PeerAuthentication, "spec.portLevelMtls{}", Honoured, ""),
    row(
        PeerAuthentication,
        "spec.portLevelMtls{}.mode",
        Honoured,
        "as mtls.mode",
    ),
    // --- RequestAuthentication
    row(RequestAuthentication, "spec", Refused, WAYPOINT),
    // --- ServiceEntry
    row(ServiceEntry, "spec", Honoured, ""),
    row(
        ServiceEntry,
        "spec.hosts",
        Honoured,
        "one service per host; `*.` at the start only",
    ),
    row(
        ServiceEntry,
        "spec.addresses",
        Honoured,
        "IPs and CIDRs; without any, addresses of 240.240.0.0/16 and 2001:2::/48",
    ),
    row(ServiceEntry, "spec.ports", Honoured, "TCP"),
    row(ServiceEntry, "spec.ports[].number", Honoured, ""),
    row(
        ServiceEntry,
        "spec.ports[].protocol",
        Honoured,
        "told to peers; nothing depends on it without a waypoint",
    ),
    row(
        ServiceEntry,
        "spec.ports[].name",
        Honoured,
        "names the port in endpoints",
    ),
    row(ServiceEntry, "spec.ports[].targetPort", Honoured, ""),
    row(
        ServiceEntry,
        "spec.location",
        Honoured,
        "has no effect at L4: what an endpoint speaks follows from the endpoint",
    ),
    row(
        ServiceEntry,
        "spec.resolution",
        Honoured,
        "NONE and STATIC; DNS kinds as far as the agent resolves names",
    ),
    row(
        ServiceEntry,
        "spec.endpoints",
        Honoured,
        "one workload each",
    ),
    row(
        ServiceEntry,
        "spec.endpoints[].address",
        Honoured,
        "IP or name; a Unix socket is refused",
    ),
    row(ServiceEntry, "spec.endpoints[].ports", Honoured, ""),
    row(
        ServiceEntry,
        "spec.endpoints[].labels",
        Honoured,
        "tunnel protocol, canonical name and revision",
    ),
    row(ServiceEntry, "spec.endpoints[].network", Honoured, ""),
    row(
        ServiceEntry,
        "spec.endpoints[].locality",
        Honoured,
        "region/zone/subzone",
    ),
    row(
        ServiceEntry,
        "spec.endpoints[].weight",
        Honoured,
        "share of connections",
    ),
    row(
        ServiceEntry,
        "spec.endpoints[].serviceAccount",
        Honoured,
        "the identity that is expected there",
    ),
    row(
        ServiceEntry,
        "spec.workloadSelector",
        Honoured,
        "pods and WorkloadEntries of the namespace",
    ),
    row(ServiceEntry, "spec.workloadSelector.labels", Honoured, ""),
    row(
        ServiceEntry,
        "spec.exportTo",
        Honoured,
        "`*` and `.`; a list of namespaces is read as everyone, with a condition",
    ),
    row(
        ServiceEntry,
        "spec.subjectAltNames",
        Honoured,
        "identities that are accepted from endpoints",
    ),
    // --- WorkloadEntry
    row(
        WorkloadEntry,
        "spec",
        Honoured,
        "an endpoint of the Services and ServiceEntries of its namespace that pick its labels; no policy is enforced there, \
         as no agent runs there",
    ),
    row(
        WorkloadEntry,
        "spec.address",
        Honoured,
        "an IP; a name is known and not dialled yet; `unix://` is left out",
    ),
    row(
        WorkloadEntry,
        "spec.ports",
        Honoured,
        "by the name of the service's port",
    ),
    row(
        WorkloadEntry,
        "spec.labels",
        Honoured,
        "with those of the object; the spec's win",
    ),
    row(WorkloadEntry, "spec.network", Honoured, ""),
    row(WorkloadEntry, "spec.locality", Honoured, ""),
    row(WorkloadEntry, "spec.weight", Honoured, ""),
    row(
        WorkloadEntry,
        "spec.serviceAccount",
        Honoured,
        "the identity that is expected there",
    ),
    // --- DestinationRule
    row(DestinationRule, "spec", NotYet, ROUTES),
    row(DestinationRule, "spec.host", NotYet, ROUTES),
    row(DestinationRule, "spec.trafficPolicy", NotYet, ROUTES),
    row(
        DestinationRule,
        "spec.trafficPolicy.loadBalancer",
        NotYet,
        ROUTES,
    ),
    row(
        DestinationRule,
        "spec.trafficPolicy.connectionPool",
        NotYet,
        ROUTES,
    ),
    row(
        DestinationRule,
        "spec.trafficPolicy.outlierDetection",
        NotYet,
        ROUTES,
    ),
    row(
        DestinationRule,
        "spec.trafficPolicy.tls",
        NotYet,
        "traffic inside the mesh is encrypted whatever it says; TLS towards the outside is left to the application",
    ),
    row(
        DestinationRule,
        "spec.trafficPolicy.portLevelSettings",
        NotYet,
        ROUTES,
    ),
    row(DestinationRule, "spec.trafficPolicy.tunnel", NotYet, ROUTES),
    row(
        DestinationRule,
        "spec.trafficPolicy.proxyProtocol",
        NotYet,
        ROUTES,
    ),
    row(
        DestinationRule,
        "spec.trafficPolicy.retryBudget",
        NotYet,
        ROUTES,
    ),
    row(DestinationRule, "spec.subsets", NotYet, ROUTES),
    row(DestinationRule, "spec.exportTo", NotYet, ROUTES),
    row(DestinationRule, "spec.workloadSelector", NotYet, ROUTES),
    // --- VirtualService
    row(VirtualService, "spec", NotYet, ROUTES),
    row(VirtualService, "spec.hosts", NotYet, ROUTES),
    row(VirtualService, "spec.gateways", NotYet, ROUTES),
    row(VirtualService, "spec.http", NotYet, ROUTES),
    row(VirtualService, "spec.tls", NotYet, ROUTES),
    row(VirtualService, "spec.tcp", NotYet, ROUTES),
    row(VirtualService, "spec.exportTo", NotYet, ROUTES),
    // --- Telemetry
    row(
        Telemetry,
        "spec",
        NotYet,
        "metrics and access logs of L4 are always on, for every workload",
    ),
    row(Telemetry, "spec.selector", NotYet, "see spec"),
    row(
        Telemetry,
        "spec.targetRef",
        NotYet,
        "needs a waypoint, and this version has none",
    ),
    row(
        Telemetry,
        "spec.targetRefs",
        NotYet,
        "needs a waypoint, and this version has none",
    ),
    row(
        Telemetry,
        "spec.tracing",
        NoEffect,
        "spans belong to requests: L4 makes none, here as in Istio",
    ),
    row(
        Telemetry,
        "spec.metrics",
        NotYet,
        "metrics of L4 are always on",
    ),
    row(
        Telemetry,
        "spec.accessLogging",
        NotYet,
        "access logs of L4 are always on",
    ),
];

const fn row(kind: Kind, path: &'static str, verdict: Verdict, note: &'static str) -> FieldRow {
    FieldRow {
        kind,
        path,
        verdict,
        note,
    }
}
