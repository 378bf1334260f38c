//! Fields of the Gateway API's kinds, as far as something is to be said of them. A row speaks for what is below it.

use super::{
    FieldRow,
    Verdict::{self, Honoured, NoEffect, NotYet},
};
use crate::Kind::{
    self, BackendTlsPolicy, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute,
};

/// Shown for parents.
const PARENTS: &str = "Service with a cluster IP and ServiceEntry (group `networking.istio.io`), with port and sectionName; in its own namespace a route is for all clients (producer), elsewhere for clients of the route's namespace (consumer). Gateways are other controllers'; a waypoint's takes no routes";
/// Shown for backends.
const BACKENDS: &str = "Service and ServiceEntry. One of another namespace needs a ReferenceGrant there, unless it is a parent of the route; one that does not resolve keeps its share, which is answered with 500";
/// Shown for parents by default.
const DEFAULTS: &str = "a waypoint is nobody's default Gateway";
/// Shown for hosts.
const HOSTNAMES: &str = "a route of a service takes what is sent to its addresses, whatever the Host header says; the Accepted condition says so";
/// Shown for sessions.
const SESSIONS: &str = "Cookie and Header, with both timeouts; a session goes elsewhere when its endpoint is gone or unhealthy";
/// Shown for regular expressions.
const REGEX: &str = "regular expressions are RE2's, match the whole value, and are bounded in size";

/// In the order of the reference.
pub const GATEWAY_FIELDS: &[FieldRow] = &[
    row(HttpRoute, "spec.parentRefs", Honoured, PARENTS),
    row(HttpRoute, "spec.useDefaultGateways", NoEffect, DEFAULTS),
    row(HttpRoute, "spec.hostnames", NoEffect, HOSTNAMES),
    row(HttpRoute, "spec.rules[].name", Honoured, ""),
    row(HttpRoute, "spec.rules[].matches", Honoured, REGEX),
    row(
        HttpRoute,
        "spec.rules[].filters",
        Honoured,
        "in the order in which they are written; one that cannot be sent as written drops its rule",
    ),
    row(
        HttpRoute,
        "spec.rules[].filters[].requestMirror",
        Honoured,
        "several, each with percent or fraction",
    ),
    row(
        HttpRoute,
        "spec.rules[].filters[].externalAuth",
        NotYet,
        "requests of the rule are answered with 500, and ResolvedRefs says so",
    ),
    row(
        HttpRoute,
        "spec.rules[].filters[].extensionRef",
        NotYet,
        "requests of the rule are answered with 500, and ResolvedRefs says so",
    ),
    row(HttpRoute, "spec.rules[].backendRefs", Honoured, BACKENDS),
    row(
        HttpRoute,
        "spec.rules[].backendRefs[].filters",
        Honoured,
        "as filters of the rule, after them",
    ),
    row(
        HttpRoute,
        "spec.rules[].timeouts",
        Honoured,
        "a zero is no limit",
    ),
    row(
        HttpRoute,
        "spec.rules[].retry",
        Honoured,
        "2 attempts where none are given, 100 at most; connections that fail are tried again too",
    ),
    row(
        HttpRoute,
        "spec.rules[].sessionPersistence",
        Honoured,
        SESSIONS,
    ),
    row(GrpcRoute, "spec.parentRefs", Honoured, PARENTS),
    row(GrpcRoute, "spec.useDefaultGateways", NoEffect, DEFAULTS),
    row(GrpcRoute, "spec.hostnames", NoEffect, HOSTNAMES),
    row(GrpcRoute, "spec.rules[].matches", Honoured, REGEX),
    row(
        GrpcRoute,
        "spec.rules[].filters",
        Honoured,
        "header changes and mirrors; extensionRef as in HTTPRoute",
    ),
    row(GrpcRoute, "spec.rules[].backendRefs", Honoured, BACKENDS),
    row(
        GrpcRoute,
        "spec.rules[].sessionPersistence",
        Honoured,
        SESSIONS,
    ),
    row(TlsRoute, "spec.parentRefs", Honoured, PARENTS),
    row(
        TlsRoute,
        "spec.hostnames",
        Honoured,
        "names in the ClientHello, with `*.` at the start",
    ),
    row(TlsRoute, "spec.rules", Honoured, "one"),
    row(TlsRoute, "spec.rules[].backendRefs", Honoured, BACKENDS),
    row(TcpRoute, "spec.parentRefs", Honoured, PARENTS),
    row(TcpRoute, "spec.rules", Honoured, "one"),
    row(TcpRoute, "spec.rules[].backendRefs", Honoured, BACKENDS),
    row(
        BackendTlsPolicy,
        "spec.targetRefs",
        Honoured,
        "Service and ServiceEntry, with sectionName; `status.ancestors` says for each waypoint whether the policy holds; of two for one target the oldest does",
    ),
    row(
        BackendTlsPolicy,
        "spec.validation.hostname",
        Honoured,
        "sent as server name, and verified",
    ),
    row(
        BackendTlsPolicy,
        "spec.validation.subjectAltNames",
        Honoured,
        "one of them is verified instead of the hostname",
    ),
    row(
        BackendTlsPolicy,
        "spec.validation.wellKnownCACertificates",
        Honoured,
        "`System`: the file of roots in the waypoint's image or the one that SSL_CERT_FILE names",
    ),
    row(
        BackendTlsPolicy,
        "spec.validation.caCertificateRefs",
        Honoured,
        "ConfigMaps of the policy's namespace, with PEM under `ca.crt`; connections fail while there is none",
    ),
    row(BackendTlsPolicy, "spec.options", NoEffect, "none is known"),
    row(ReferenceGrant, "spec.from", Honoured, "routes"),
    row(
        ReferenceGrant,
        "spec.to",
        Honoured,
        "Service and ServiceEntry",
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
