//! Fields of DestinationRule.
//!
//! A subset and a port have policies of the same shape: their fields stand under `spec.trafficPolicy`, see [`canonical`].

use std::borrow::Cow;

use super::{
    FieldRow,
    Verdict::{self, Honoured, NotYet},
};
use crate::Kind;

const POLICY: &str = "spec.trafficPolicy";
const OF_SUBSET: &str = "spec.subsets[].trafficPolicy";
const OF_PORT: &str = "spec.trafficPolicy.portLevelSettings[].";

/// The path whose row speaks for a path.
pub(super) fn canonical(path: &str) -> Cow<'_, str> {
    let path = match path.strip_prefix(OF_SUBSET) {
        Some(rest) if rest.starts_with('.') => Cow::Owned(format!("{POLICY}{rest}")),
        _ => Cow::Borrowed(path),
    };
    match path.strip_prefix(OF_PORT) {
        Some(rest) if !rest.starts_with("port") => Cow::Owned(format!("{POLICY}.{rest}")),
        _ => path,
    }
}

/// Every field, in the order of Istio's reference.
pub const DESTINATION_RULE: &[FieldRow] = &[
    row(
        "spec",
        Honoured,
        "at waypoints, for the services that are bound to them and for those that their routes send to; what holds where is in the status",
    ),
    row(
        "spec.host",
        Honoured,
        "short names are of the rule's namespace; the exact host before wildcards, the longest of these first",
    ),
    row(
        "spec.trafficPolicy",
        Honoured,
        "subsets: part by part; ports: their four parts as a whole, as in Istio",
    ),
    row("spec.trafficPolicy.loadBalancer", Honoured, ""),
    row(
        "spec.trafficPolicy.loadBalancer.simple",
        Honoured,
        "LEAST_CONN is LEAST_REQUEST, which is the default too",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash",
        Honoured,
        "exactly one key; two, or none, are no hash, and status says so",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.path",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl",
        Honoured,
        "0s: a cookie of the session",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[].name",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[].value",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.useSourceIp",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.ringHash",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
        Honoured,
        "1024 where unset; up to 8388608",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.maglev",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        Honoured,
        "a prime up to 5000011; 65537 where unset",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
        Honoured,
        "as ringHash.minimumRingSize",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting",
        Honoured,
        "without it nearness counts as soon as the rule has outlierDetection",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute",
        Honoured,
        "shares of each `from` add up to 100",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[].from",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[].to",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[].to{}",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover",
        Honoured,
        "names of regions",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[].from",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[].to",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
        Honoured,
        "labels of endpoints, with or without a value",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.localityLbSetting.enabled",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting",
        Honoured,
        "the own zone first, as localityLbSetting",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.enabled",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.failover",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.failover[].from",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.failover[].to",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.failoverPriority",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize",
        NotYet,
        "the own zone is first however few endpoints there are",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.warmupDurationSecs",
        Honoured,
        "as warmup.duration",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.warmup",
        Honoured,
        "not with consistentHash or PASSTHROUGH",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.warmup.duration",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.warmup.minimumPercent",
        Honoured,
        "10 where unset",
    ),
    row(
        "spec.trafficPolicy.loadBalancer.warmup.aggression",
        Honoured,
        "1 where unset",
    ),
    row(
        "spec.trafficPolicy.connectionPool",
        Honoured,
        "counted by each waypoint instance; spans from 1ms to 24h",
    ),
    row("spec.trafficPolicy.connectionPool.tcp", Honoured, ""),
    row(
        "spec.trafficPolicy.connectionPool.tcp.maxConnections",
        Honoured,
        "0 is no limit",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time",
        Honoured,
        "from 1s on",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval",
        Honoured,
        "from 1s on",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.tcp.idleTimeout",
        Honoured,
        "",
    ),
    row("spec.trafficPolicy.connectionPool.http", Honoured, ""),
    row(
        "spec.trafficPolicy.connectionPool.http.http1MaxPendingRequests",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.http2MaxRequests",
        Honoured,
        "requests of HTTP/1 count too",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.maxRequestsPerConnection",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.maxRetries",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.idleTimeout",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.h2UpgradePolicy",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.maxConcurrentStreams",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.useClientProtocol",
        NotYet,
        "the protocol of the port decides",
    ),
    row(
        "spec.trafficPolicy.connectionPool.http.http2KeepAlive",
        NotYet,
        "connections are kept alive by TCP",
    ),
    row("spec.trafficPolicy.outlierDetection", Honoured, ""),
    row(
        "spec.trafficPolicy.outlierDetection.consecutiveErrors",
        NotYet,
        "Istio left it too: use consecutive5xxErrors or consecutiveGatewayErrors",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        Honoured,
        "with splitExternalLocalOriginErrors",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.consecutiveGatewayErrors",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.consecutive5xxErrors",
        Honoured,
        "5 where unset, 0 is never",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.interval",
        Honoured,
        "10s where unset",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.baseEjectionTime",
        Honoured,
        "30s where unset",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
        Honoured,
        "10 where unset; one of two may always be ejected",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.minHealthPercent",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes",
        Honoured,
        "statuses below 500 that count as errors too",
    ),
    row(
        "spec.trafficPolicy.tls",
        Honoured,
        "towards endpoints outside of the mesh",
    ),
    row(
        "spec.trafficPolicy.tls.mode",
        Honoured,
        "DISABLE, SIMPLE, MUTUAL (with credentialName), ISTIO_MUTUAL (the mesh's own)",
    ),
    row(
        "spec.trafficPolicy.tls.clientCertificate",
        NotYet,
        "a file, and a waypoint's pod has none of yours: connections fail, and status says so; use credentialName",
    ),
    row(
        "spec.trafficPolicy.tls.privateKey",
        NotYet,
        "a file, and a waypoint's pod has none of yours: connections fail, and status says so; use credentialName",
    ),
    row(
        "spec.trafficPolicy.tls.credentialName",
        Honoured,
        "a Secret of the waypoint's namespace that the chart's value `credentials` permits to read; tls.crt, tls.key, ca.crt, ca.crl or cert, key, cacert, crl; roots may lie in NAME-cacert, which is read where the Secret has none; without any connections fail unless caCertificates is `system`",
    ),
    row(
        "spec.trafficPolicy.tls.caCrl",
        NotYet,
        "a file, and a waypoint's pod has none of yours: connections fail, and status says so; use credentialName",
    ),
    row(
        "spec.trafficPolicy.tls.caCertificates",
        NotYet,
        "`system` or nothing are the well-known roots; anything else is a file, and connections fail: use credentialName or a BackendTLSPolicy",
    ),
    row(
        "spec.trafficPolicy.tls.subjectAltNames",
        Honoured,
        "those of the ServiceEntry where unset",
    ),
    row(
        "spec.trafficPolicy.tls.sni",
        Honoured,
        "the host of the request where unset",
    ),
    row("spec.trafficPolicy.tls.insecureSkipVerify", Honoured, ""),
    row(
        "spec.trafficPolicy.portLevelSettings",
        Honoured,
        "the rows of trafficPolicy hold for its four parts",
    ),
    row("spec.trafficPolicy.portLevelSettings[].port", Honoured, ""),
    row(
        "spec.trafficPolicy.portLevelSettings[].port.number",
        Honoured,
        "",
    ),
    row(
        "spec.trafficPolicy.tunnel",
        NotYet,
        "connections go directly",
    ),
    row(
        "spec.trafficPolicy.proxyProtocol",
        NotYet,
        "no PROXY header is sent",
    ),
    row("spec.trafficPolicy.retryBudget", Honoured, ""),
    row(
        "spec.trafficPolicy.retryBudget.percent",
        Honoured,
        "20 where unset",
    ),
    row(
        "spec.trafficPolicy.retryBudget.minRetryConcurrency",
        Honoured,
        "3 where unset",
    ),
    row(
        "spec.trafficPolicy.retryBudget.budgetInterval",
        NotYet,
        "requests in flight are counted, not those of a span",
    ),
    row(
        "spec.subsets",
        Honoured,
        "requests for one that does not exist are answered 503",
    ),
    row("spec.subsets[].name", Honoured, "each once"),
    row(
        "spec.subsets[].labels",
        Honoured,
        "of endpoints; without any it is every endpoint",
    ),
    row("spec.subsets[].labels{}", Honoured, ""),
    row(
        "spec.subsets[].trafficPolicy",
        Honoured,
        "the rows of trafficPolicy",
    ),
    row(
        "spec.exportTo",
        Honoured,
        "`.`, `*` and names of namespaces: of waypoints",
    ),
    row(
        "spec.workloadSelector",
        NotYet,
        "picks clients with a proxy of their own: the rule holds nowhere, and status says so",
    ),
];

const fn row(path: &'static str, verdict: Verdict, note: &'static str) -> FieldRow {
    FieldRow {
        kind: Kind::DestinationRule,
        path,
        verdict,
        note,
    }
}
