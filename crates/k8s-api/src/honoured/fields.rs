//! Fields of Istio's kinds.

use super::{
    FieldRow,
    Verdict::{self, Honoured, NoEffect, NotYet},
};
use crate::Kind::{
    self, AuthorizationPolicy, PeerAuthentication, RequestAuthentication, ServiceEntry, Telemetry,
    WorkloadEntry,
};

/// Shown for what a policy is attached to.
const TARGETS: &str = "Service, ServiceEntry and Gateway of the policy's namespace, GatewayClass from the root namespace: enforced by their waypoint, and the ports of such services accept nobody else";
/// Shown for conditions on requests.
const HTTP: &str = "by a waypoint, in a policy with targetRefs; in one for workloads an ALLOW rule with it allows nothing and a DENY rule denies without it, which is more";
/// Shown for what needs a verified token.
const TOKEN: &str = "by a waypoint, in a policy with targetRefs, of tokens that a RequestAuthentication believes; in one for workloads an ALLOW rule with it allows nothing and a DENY rule denies without it";
/// Shown for trust domains.
const DOMAINS: &str = "by a waypoint, in a policy with targetRefs, with `*` at the end at most and not beside principals; in one for workloads an ALLOW rule with it allows nothing and a DENY rule denies without it: use principals such as `example.org/*`";

/// Every field, each kind's in the order of Istio's reference.
pub const FIELDS: &[FieldRow] = &[
    // --- AuthorizationPolicy
    row(
        AuthorizationPolicy,
        "spec",
        Honoured,
        "enforced at the destination's node, for new and for live connections; with targetRefs by a waypoint, for each request",
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
    row(
        AuthorizationPolicy,
        "spec.targetRef",
        Honoured,
        "as targetRefs",
    ),
    row(AuthorizationPolicy, "spec.targetRefs", Honoured, TARGETS),
    row(AuthorizationPolicy, "spec.targetRefs[].group", Honoured, ""),
    row(AuthorizationPolicy, "spec.targetRefs[].kind", Honoured, ""),
    row(AuthorizationPolicy, "spec.targetRefs[].name", Honoured, ""),
    row(
        AuthorizationPolicy,
        "spec.targetRefs[].namespace",
        Honoured,
        "its own, or left out",
    ),
    row(AuthorizationPolicy, "spec.targetRef.group", Honoured, ""),
    row(AuthorizationPolicy, "spec.targetRef.kind", Honoured, ""),
    row(AuthorizationPolicy, "spec.targetRef.name", Honoured, ""),
    row(
        AuthorizationPolicy,
        "spec.targetRef.namespace",
        Honoured,
        "its own, or left out",
    ),
    row(
        AuthorizationPolicy,
        "spec.action",
        Honoured,
        "ALLOW and DENY; AUDIT and CUSTOM by a waypoint, in a policy with targetRefs",
    ),
    row(
        AuthorizationPolicy,
        "spec.provider",
        Honoured,
        "an envoyExtAuthzHttp or envoyExtAuthzGrpc of the mesh configuration; without it what matches is denied",
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
        Honoured,
        TOKEN,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notRequestPrincipals",
        Honoured,
        TOKEN,
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
        Honoured,
        DOMAINS,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notTrustDomains",
        Honoured,
        DOMAINS,
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
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].from[].source.notRemoteIpBlocks",
        Honoured,
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
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notHosts",
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.ports",
        Honoured,
        "ports of the workload, not of the service; with targetRefs, ports of the service",
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
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notMethods",
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.paths",
        Honoured,
        HTTP,
    ),
    row(
        AuthorizationPolicy,
        "spec.rules[].to[].operation.notPaths",
        Honoured,
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
        "`source.ip`, `source.namespace`, `source.principal`, `destination.ip`, `destination.port`; with targetRefs also `source.serviceAccount`, `remote.ip`, `connection.sni`, `request.headers[]`, and `request.auth.principal` as requestPrincipals; other keys of requests are never fulfilled in ALLOW and always in DENY; all others are refused",
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
    row(
        RequestAuthentication,
        "spec",
        Honoured,
        "tokens are verified by the waypoints of what targetRefs name; the ports of such services accept nobody else",
    ),
    row(
        RequestAuthentication,
        "spec.selector",
        NotYet,
        "tokens are verified by waypoints: name a Service, ServiceEntry, Gateway or GatewayClass in targetRefs",
    ),
    row(
        RequestAuthentication,
        "spec.targetRef",
        Honoured,
        "as targetRefs",
    ),
    row(
        RequestAuthentication,
        "spec.targetRefs",
        Honoured,
        "as in AuthorizationPolicy",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules",
        Honoured,
        "a request without a token passes without a principal; one with a token that no rule accepts is answered with 401, or with 403 if only its audience is wrong",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].issuer",
        Honoured,
        "needed: a rule without it believes nobody",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].audiences",
        Honoured,
        "compared without scheme and final slash",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].jwksUri",
        Honoured,
        "fetched by the controller, every five minutes unless told otherwise; private addresses only with --jwks-allow-private",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].jwks_uri",
        Honoured,
        "as jwksUri",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].jwks",
        Honoured,
        "RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519; shared secrets are refused",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].fromHeaders",
        Honoured,
        "the letters of a prefix may be large or small",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].fromParams",
        Honoured,
        "",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].fromCookies",
        Honoured,
        "",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].outputPayloadToHeader",
        Honoured,
        "what a client sends in it is taken away",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].outputClaimToHeaders",
        Honoured,
        "texts, numbers and truth values; what a client sends in it is taken away",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].forwardOriginalToken",
        Honoured,
        "without it the token is taken out of the request",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].spaceDelimitedClaims",
        Honoured,
        "beside scope and permission",
    ),
    row(
        RequestAuthentication,
        "spec.jwtRules[].timeout",
        NoEffect,
        "the controller fetches keys, within ten seconds",
    ),
    // --- ServiceEntry
    row(ServiceEntry, "spec", Honoured, ""),
    row(
        ServiceEntry,
        "spec.hosts",
        Honoured,
        "one service per host; `*.` at the start only, and with an address of its own only for DYNAMIC_DNS",
    ),
    row(
        ServiceEntry,
        "spec.addresses",
        Honoured,
        "IPs and CIDRs; without any, addresses of 240.240.0.0/16 and 2001:2::/48; status.addresses is read and not written yet",
    ),
    row(ServiceEntry, "spec.ports", Honoured, "TCP"),
    row(ServiceEntry, "spec.ports[].number", Honoured, ""),
    row(
        ServiceEntry,
        "spec.ports[].protocol",
        Honoured,
        "what a waypoint takes the port for; nothing depends on it without one",
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
        "DNS kinds at a waypoint, which resolves the names (TTL from 5s to 300s); without one such connections fail. NONE needs addresses. DYNAMIC_DNS: HTTP by the host of each request",
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
        "identities that are accepted from endpoints, and names that their certificates must have where a DestinationRule originates TLS and names none",
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
    // --- Telemetry
    row(
        Telemetry,
        "spec",
        Honoured,
        "by agents for connections, by waypoints for requests; the nearest scope wins, of two the older",
    ),
    row(
        Telemetry,
        "spec.selector",
        Honoured,
        "connections of these workloads, at their nodes; in the root namespace, of all namespaces",
    ),
    row(Telemetry, "spec.targetRef", Honoured, "as targetRefs"),
    row(
        Telemetry,
        "spec.targetRefs",
        Honoured,
        "Service, ServiceEntry and Gateway of the namespace, GatewayClass from the root namespace: requests that waypoints serve",
    ),
    row(
        Telemetry,
        "spec.tracing",
        Honoured,
        "by waypoints; agents make no spans, here as in Istio. useRequestIdForTraceSampling is reported; enableIstioTags has no effect",
    ),
    row(
        Telemetry,
        "spec.metrics",
        Honoured,
        "at L4 too; expressions are CEL. Metrics of gRPC messages and custom metrics are reported",
    ),
    row(
        Telemetry,
        "spec.accessLogging",
        Honoured,
        "at L4 too; filters are CEL",
    ),
    row(Telemetry, "spec.selector.*", Honoured, ""),
    row(Telemetry, "spec.targetRef.*", Honoured, ""),
    row(Telemetry, "spec.targetRefs.*", Honoured, ""),
    row(
        Telemetry,
        "spec.tracing[].useRequestIdForTraceSampling",
        NotYet,
        "the trace's own id decides",
    ),
    row(
        Telemetry,
        "spec.tracing[].enableIstioTags",
        NoEffect,
        "Istio's tags are always there",
    ),
    row(Telemetry, "spec.tracing.*", Honoured, ""),
    row(Telemetry, "spec.metrics.*", Honoured, ""),
    row(Telemetry, "spec.accessLogging.*", Honoured, ""),
];

const fn row(kind: Kind, path: &'static str, verdict: Verdict, note: &'static str) -> FieldRow {
    FieldRow {
        kind,
        path,
        verdict,
        note,
    }
}
