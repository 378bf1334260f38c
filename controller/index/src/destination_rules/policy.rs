//! `trafficPolicy`: each of its parts lowered alone, since merging takes or leaves them whole.
//!
//! What a port says replaces all four of its parts, said or not; what a subset says replaces the parts that it says.
//! Source: Istio reference, "TrafficPolicy.PortTrafficPolicy": settings of the destination are not inherited.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use karst_k8s_api::istio::destination_rule::{
    ConnectionPool, OutlierDetection, PortTrafficPolicy, RetryBudget as BudgetSpec,
    TrafficPolicy as Spec, UpgradePolicy,
};
use karst_model::traffic::{
    Balance, BalanceAlgorithm, Connections, Http2Upgrade, LocalityBalance, Outlier, RetryBudget,
    San, TcpKeepalive, TlsMode, TrafficPolicy, UpstreamTls, WarmUp,
};

use super::{
    balance,
    tls::{self, TlsWish},
    values::Place,
};
use crate::credentials::Lookup;

/// `loadBalancer`, before it is known whether anything ejects endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BalanceWish {
    pub(super) algorithm: BalanceAlgorithm,
    pub(super) warm_up: Option<WarmUp>,
    /// `None`: not said; `Some(None)`: off.
    pub(super) locality: Option<Option<LocalityBalance>>,
}

/// The four parts that a port has as well.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) balance: Option<BalanceWish>,
    pub(super) connections: Option<Connections>,
    pub(super) outlier: Option<Outlier>,
    pub(super) tls: Option<TlsWish>,
}

/// One `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Partial {
    pub(super) parts: Parts,
    pub(super) retry_budget: Option<RetryBudget>,
    pub(super) ports: BTreeMap<u16, Parts>,
}

impl Partial {
    pub(super) fn new(spec: &Spec, place: &mut Place<'_>) -> Self {
        let parts = Parts {
            balance: spec
                .load_balancer
                .as_ref()
                .map(|one| balance::lower(one, &mut place.below("loadBalancer"))),
            connections: spec
                .connection_pool
                .as_ref()
                .map(|one| connections(one, &mut place.below("connectionPool"))),
            outlier: spec
                .outlier_detection
                .as_ref()
                .map(|one| outlier(one, &mut place.below("outlierDetection"))),
            tls: spec
                .tls
                .as_ref()
                .map(|one| tls::lower(one, &mut place.below("tls"))),
        };
        let mut ports = BTreeMap::new();
        for (index, port) in spec.port_level_settings.iter().enumerate() {
            let mut below = place.below(&format!("portLevelSettings[{index}]"));
            let number = port.port.as_ref().and_then(|port| port.number);
            let Some(number) = number
                .and_then(|number| u16::try_from(number).ok())
                .filter(|number| *number != 0)
            else {
                below.fault("port.number", "a port from 1 to 65535 is needed: left out");
                continue;
            };
            let parts = of_port(port, &mut below);
            if let Entry::Vacant(free) = ports.entry(number) {
                free.insert(parts);
            } else {
                below.fault(
                    "port.number",
                    format!("port {number} has settings already: the first hold"),
                );
            }
        }
        Self {
            parts,
            retry_budget: spec
                .retry_budget
                .as_ref()
                .map(|one| budget(one, &mut place.below("retryBudget"))),
            ports,
        }
    }

    /// Labels that say how near an endpoint is.
    pub(super) fn priorities(&self, take: &mut dyn FnMut(&Arc<str>)) {
        let parts = std::iter::once(&self.parts).chain(self.ports.values());
        let localities =
            parts.filter_map(|parts| parts.balance.as_ref()?.locality.as_ref()?.as_ref());
        localities
            .flat_map(|one| &one.priority)
            .for_each(|one| take(&one.label));
    }

    /// Secrets that its TLS names.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        let parts = std::iter::once(&self.parts).chain(self.ports.values());
        parts.filter_map(|parts| parts.tls.as_ref()?.secret.as_ref())
    }

    /// What holds for `port` (or for those without settings of their own) of this alone.
    fn at(&self, port: Option<u16>) -> (Parts, Option<RetryBudget>) {
        let of_port = port.and_then(|port| self.ports.get(&port));
        (of_port.unwrap_or(&self.parts).clone(), self.retry_budget)
    }
}

/// What holds for a port, of a rule's own policy and of one of its subsets.
pub(super) fn merged(
    base: Option<&Partial>,
    subset: Option<&Partial>,
    port: Option<u16>,
    sans: &[Arc<str>],
    lookup: &mut Lookup<'_>,
) -> TrafficPolicy {
    let (mut parts, mut budget) = base.map(|base| base.at(port)).unwrap_or_default();
    if let Some(subset) = subset {
        let own = &subset.parts;
        parts.balance = own.balance.clone().or(parts.balance);
        parts.connections = own.connections.clone().or(parts.connections);
        parts.outlier = own.outlier.clone().or(parts.outlier);
        parts.tls = own.tls.clone().or(parts.tls);
        budget = subset.retry_budget.or(budget);
        if let Some(of_port) = port.and_then(|port| subset.ports.get(&port)) {
            parts = of_port.clone();
        }
    }
    finish(parts, budget, sans, lookup)
}

fn finish(
    parts: Parts,
    budget: Option<RetryBudget>,
    sans: &[Arc<str>],
    lookup: &mut Lookup<'_>,
) -> TrafficPolicy {
    let balance = parts.balance.unwrap_or_default();
    // As in Istio, where localities count by default as soon as anything notices that endpoints fail.
    let by_default = || parts.outlier.is_some().then(LocalityBalance::default);
    TrafficPolicy {
        balance: Balance {
            algorithm: balance.algorithm,
            warm_up: balance.warm_up,
            locality: balance.locality.unwrap_or_else(by_default),
        },
        connections: parts.connections.unwrap_or_default(),
        outlier: parts.outlier,
        retry_budget: budget,
        tls: parts.tls.map(|wish| with_sans(wish.secured(lookup), sans)),
        ..TrafficPolicy::default()
    }
}

/// A rule that names nobody pins whom the ServiceEntry names.
fn with_sans(mut tls: UpstreamTls, sans: &[Arc<str>]) -> UpstreamTls {
    if tls.sans.is_empty() && matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual) {
        tls.sans = sans.iter().cloned().map(San::Any).collect();
    }
    tls
}

fn of_port(spec: &PortTrafficPolicy, place: &mut Place<'_>) -> Parts {
    Parts {
        balance: spec
            .load_balancer
            .as_ref()
            .map(|one| balance::lower(one, &mut place.below("loadBalancer"))),
        connections: spec
            .connection_pool
            .as_ref()
            .map(|one| connections(one, &mut place.below("connectionPool"))),
        outlier: spec
            .outlier_detection
            .as_ref()
            .map(|one| outlier(one, &mut place.below("outlierDetection"))),
        tls: spec
            .tls
            .as_ref()
            .map(|one| tls::lower(one, &mut place.below("tls"))),
    }
}

fn connections(spec: &ConnectionPool, place: &mut Place<'_>) -> Connections {
    let mut found = Connections::default();
    if let Some(tcp) = &spec.tcp {
        let mut place = place.below("tcp");
        found.max = place.limit("maxConnections", tcp.max_connections);
        found.connect_timeout = place.duration("connectTimeout", tcp.connect_timeout.as_ref());
        found.max_age = place.duration(
            "maxConnectionDuration",
            tcp.max_connection_duration.as_ref(),
        );
        found.tcp_idle_timeout = place.duration("idleTimeout", tcp.idle_timeout.as_ref());
        found.keepalive = tcp.tcp_keepalive.as_ref().map(|spec| {
            let mut place = place.below("tcpKeepalive");
            // The operating system counts in seconds.
            let second = Duration::from_secs(1);
            TcpKeepalive {
                time: place.duration_from("time", spec.time.as_ref(), second),
                interval: place.duration_from("interval", spec.interval.as_ref(), second),
                probes: spec.probes.filter(|probes| *probes != 0),
            }
        });
    }
    if let Some(http) = &spec.http {
        let mut place = place.below("http");
        found.max_pending = place.limit("http1MaxPendingRequests", http.http1_max_pending_requests);
        found.max_requests = place.limit("http2MaxRequests", http.http2_max_requests);
        found.max_requests_per_connection =
            place.limit("maxRequestsPerConnection", http.max_requests_per_connection);
        found.max_retries = place.limit("maxRetries", http.max_retries);
        found.idle_timeout = place.duration("idleTimeout", http.idle_timeout.as_ref());
        found.max_streams = place.limit("maxConcurrentStreams", http.max_concurrent_streams);
        found.upgrade = match http.h2_upgrade_policy {
            Some(UpgradePolicy::Upgrade) => Http2Upgrade::Upgrade,
            Some(UpgradePolicy::DoNotUpgrade) => Http2Upgrade::Never,
            Some(UpgradePolicy::Default) | None => Http2Upgrade::Default,
        };
    }
    found
}

fn outlier(spec: &OutlierDetection, place: &mut Place<'_>) -> Outlier {
    let standard = Outlier::default();
    let mut statuses = Vec::new();
    for code in &spec.outlier_detection_http_error_codes {
        match u16::try_from(*code)
            .ok()
            .filter(|code| (100..=599).contains(code))
        {
            // From 500 on they count anyway.
            Some(code) if code < 500 => statuses.push(code),
            Some(_) => {}
            None => place.fault(
                "outlierDetectionHttpErrorCodes",
                format!("{code} is no status of HTTP: left out"),
            ),
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    let some = |number: u32| (number != 0).then_some(number);
    let split = spec.split_external_local_origin_errors == Some(true);
    let local = spec.consecutive_local_origin_failures;
    if local.is_some() && !split {
        place.fault(
            "consecutiveLocalOriginFailures",
            "has no effect without splitExternalLocalOriginErrors",
        );
    }
    let interval = place.duration("interval", spec.interval.as_ref());
    let base = place.duration("baseEjectionTime", spec.base_ejection_time.as_ref());
    let ejected = place.percent("maxEjectionPercent", spec.max_ejection_percent);
    Outlier {
        consecutive_errors: spec
            .consecutive5xx_errors
            .map_or(standard.consecutive_errors, some),
        consecutive_gateway_errors: spec.consecutive_gateway_errors.and_then(some),
        statuses,
        split_local: split,
        consecutive_local_errors: local.map_or(standard.consecutive_local_errors, some),
        interval: interval.unwrap_or(standard.interval),
        base_ejection: base.unwrap_or(standard.base_ejection),
        max_ejected_percent: ejected
            .filter(|percent| *percent != 0)
            .unwrap_or(standard.max_ejected_percent),
        min_health_percent: place
            .percent("minHealthPercent", spec.min_health_percent)
            .unwrap_or(0),
    }
}

fn budget(spec: &BudgetSpec, place: &mut Place<'_>) -> RetryBudget {
    let standard = RetryBudget::default();
    RetryBudget {
        share_ppm: place
            .share("percent", spec.percent, 10_000.0)
            .unwrap_or(standard.share_ppm),
        min_concurrent: spec
            .min_retry_concurrency
            .unwrap_or(standard.min_concurrent),
    }
}
