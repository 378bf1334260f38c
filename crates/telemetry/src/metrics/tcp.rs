//! Istio's metrics of TCP connections, under Istio's names and with its labels in its order, so that dashboards made
//! for it work unchanged.
//!
//! A connection asks for its [`Handles`] once and counts through them. Bytes are counted from the point of view of the
//! client at either reporter: `received` is what the client sent, `sent` is what it was answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use karst_model::telemetry::Metric;
use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{family::Family, gauge::Gauge},
};
use serde_json::Map;

use super::{
    Registry,
    plan::{Attributes, Changes, MetricPlan, folded_text, label_text},
    series::{Bounds, CounterOf, Party, Row, Series, Values, Wanted, write_counter},
    text::{self, UNKNOWN},
};

/// Which end counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The node of the client.
    Source,
    /// The node of the server.
    Destination,
    /// The waypoint between them.
    Waypoint,
}

impl Reporter {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

/// How the connection ended, as Istio's `response_flags` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// Nothing went wrong.
    None,
    /// A policy refused it.
    Deny,
    /// The upstream could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// Packets of the tunnel seem to be dropped on the way.
    NetworkPolicy,
    /// No certificate could be had for the workload.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl ResponseFlags {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// Whether the bytes travelled in mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Plain, or not known.
    Unknown,
    /// Mutual TLS.
    MutualTls,
}

/// What is known of the workload at one end. Empty means not known. Cheap to clone: hold one per workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Workload (Deployment) name.
    pub workload: Arc<str>,
    /// Canonical service.
    pub canonical_service: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// SPIFFE ID, with `spiffe://`; of the source only when TLS proved it.
    pub principal: Arc<str>,
    /// `app` label.
    pub app: Arc<str>,
    /// `version` label.
    pub version: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
}

/// The service that the client asked for. Empty means not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Host name.
    pub host: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

/// The labels of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    /// Which end counts.
    pub reporter: Reporter,
    /// The client.
    pub source: Peer,
    /// The server.
    pub destination: Peer,
    /// What the client asked for.
    pub service: ServiceLabels,
    /// How it ended.
    pub response_flags: ResponseFlags,
    /// Mutual TLS or not.
    pub security: Security,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::MutualTls => "mutual_tls",
        }
    }
}

impl Peer {
    /// How label sets of this workload are found when it is gone.
    pub(super) fn party(&self) -> Option<Party> {
        let known = !self.workload.is_empty();
        known.then(|| (self.namespace.clone(), self.workload.clone()))
    }
}

/// Names of the labels of connections, in Istio's order.
pub const LABELS: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

impl TcpLabels {
    fn pairs(&self) -> [(&'static str, &str); 27] {
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        let values: [&str; 27] = [
            self.reporter.as_str(),
            &source.workload,
            &source.canonical_service,
            &source.canonical_revision,
            &source.namespace,
            &source.principal,
            &source.app,
            &source.version,
            &source.cluster,
            &service.host,
            &service.namespace,
            &service.name,
            &destination.workload,
            &destination.canonical_service,
            &destination.canonical_revision,
            &destination.namespace,
            &destination.principal,
            &destination.app,
            &destination.version,
            &destination.cluster,
            "tcp",
            self.response_flags.as_str(),
            self.security.as_str(),
            &source.region,
            &source.zone,
            &destination.region,
            &destination.zone,
        ];
        std::array::from_fn(|index| (LABELS[index], values[index]))
    }

    /// The labels that stand for everybody whose own are folded away.
    fn folded(&self) -> Self {
        Self {
            reporter: self.reporter,
            source: Peer::default(),
            destination: Peer::default(),
            service: ServiceLabels::default(),
            response_flags: self.response_flags,
            security: self.security,
        }
    }
}

/// What is counted under one label set.
#[derive(Debug, Default)]
struct TcpValues {
    received: AtomicU64,
    sent: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
}

impl TcpValues {
    fn all(&self) -> [&AtomicU64; 5] {
        [
            &self.received,
            &self.sent,
            &self.opened,
            &self.closed,
            &self.failed,
        ]
    }
}

impl Values for TcpValues {
    const LINES: usize = 4;

    fn absorb(&self, other: &Self) {
        for (to, from) in self.all().into_iter().zip(other.all()) {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn mark(&self) -> u64 {
        let add = |sum: u64, one: &AtomicU64| sum.wrapping_add(one.load(Ordering::Relaxed));
        self.all().into_iter().fold(0, add)
    }
}

const FAILED: u32 = 16;

/// The metrics that the Telemetry API can name, with their bits.
const NAMED: [(Metric, u32); 4] = [
    (Metric::TcpOpenedConnections, 1),
    (Metric::TcpClosedConnections, 2),
    (Metric::TcpReceivedBytes, 4),
    (Metric::TcpSentBytes, 8),
];

/// In the order of the page.
const METRICS: [CounterOf<TcpValues>; 5] = [
    CounterOf {
        bit: 1,
        name: "istio_tcp_connections_opened",
        help: "TCP connections opened",
        value: |values| values.opened.load(Ordering::Relaxed),
    },
    CounterOf {
        bit: 2,
        name: "istio_tcp_connections_closed",
        help: "TCP connections closed",
        value: |values| values.closed.load(Ordering::Relaxed),
    },
    CounterOf {
        bit: 4,
        name: "istio_tcp_received_bytes",
        help: "Bytes from clients to servers",
        value: |values| values.received.load(Ordering::Relaxed),
    },
    CounterOf {
        bit: 8,
        name: "istio_tcp_sent_bytes",
        help: "Bytes from servers to clients",
        value: |values| values.sent.load(Ordering::Relaxed),
    },
    CounterOf {
        bit: FAILED,
        name: "istio_tcp_connections_failed",
        help: "TCP connections that failed",
        value: |values| values.failed.load(Ordering::Relaxed),
    },
];

/// The metrics of a program.
#[derive(Clone)]
pub struct TcpMetrics {
    series: Arc<Series<TcpValues>>,
    sockets: Family<SocketLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SocketLabels(Reporter);

impl EncodeLabelSet for SocketLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeLabel as _;
        ("reporter", self.0.as_str()).encode(encoder.encode_label())
    }
}

/// A counter of one connection: each count is one atomic add; nothing where the metric is off.
#[derive(Clone)]
pub struct Count {
    row: Option<Arc<Row<TcpValues>>>,
    of: fn(&TcpValues) -> &AtomicU64,
}

impl Count {
    /// Counts one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts so many.
    pub fn inc_by(&self, by: u64) {
        if let Some(row) = &self.row {
            (self.of)(&row.values).fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// The counters of one connection, held while it lives.
#[derive(Clone)]
pub struct Handles {
    /// `istio_tcp_received_bytes_total`: bytes from client to server.
    pub received: Count,
    /// `istio_tcp_sent_bytes_total`: bytes from server to client.
    pub sent: Count,
    /// `istio_tcp_connections_opened_total`.
    pub opened: Count,
    /// `istio_tcp_connections_closed_total`.
    pub closed: Count,
}

impl TcpMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        Self::bounded(registry, Bounds::default())
    }

    /// The same with other bounds.
    pub fn bounded(registry: &Registry, bounds: Bounds) -> Self {
        let series = Arc::new(Series::new(bounds));
        let of_page = series.clone();
        registry.register_text(move |out| {
            let rows = of_page.rows();
            METRICS
                .iter()
                .for_each(|metric| write_counter(&rows, metric, out));
            let counts = of_page.counts();
            text::fullness("karst_metric_series", "Connections", &counts, out);
        });
        Self {
            series,
            sockets: registry.register(
                "istio_tcp_sockets_open",
                "Open sockets of proxied connections",
                Family::default(),
            ),
        }
    }

    /// The counters of a connection with these labels.
    pub fn handles(&self, labels: &TcpLabels) -> Handles {
        self.handles_for(labels, &MetricPlan::default(), &Map::new)
    }

    /// The same as the Telemetry API has it for this connection.
    pub fn handles_for(
        &self,
        labels: &TcpLabels,
        plan: &MetricPlan,
        attributes: Attributes<'_>,
    ) -> Handles {
        let mut rows: [Option<Arc<Row<TcpValues>>>; 4] = Default::default();
        for (bits, changes) in plan.groups(&NAMED) {
            let row = self.row(labels, bits, changes.as_deref(), attributes);
            for ((_, bit), slot) in NAMED.iter().zip(&mut rows) {
                if bits & bit != 0 {
                    *slot = Some(row.clone());
                }
            }
        }
        let [opened, closed, received, sent] = rows;
        Handles {
            opened: Count {
                row: opened,
                of: |values| &values.opened,
            },
            closed: Count {
                row: closed,
                of: |values| &values.closed,
            },
            received: Count {
                row: received,
                of: |values| &values.received,
            },
            sent: Count {
                row: sent,
                of: |values| &values.sent,
            },
        }
    }

    /// Counts a connection that failed; one that ended well is not counted.
    pub fn failed(&self, labels: &TcpLabels) {
        if labels.response_flags != ResponseFlags::None {
            let row = self.row(labels, FAILED, None, &Map::new);
            row.values.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The gauge of open sockets.
    pub fn sockets_open(&self, reporter: Reporter) -> Gauge {
        self.sockets.get_or_create_owned(&SocketLabels(reporter))
    }

    /// Only these workloads are there: series of others leave, and their counts stay in the sums.
    pub fn retire(&self, is_live: &dyn Fn(&Party) -> bool) {
        self.series.retire(is_live, Instant::now());
    }

    /// Lets series go that nobody counts in any more. Call it now and then.
    pub fn sweep(&self) {
        self.series.sweep(Instant::now());
    }

    fn row(
        &self,
        labels: &TcpLabels,
        metrics: u32,
        changes: Option<&Changes>,
        attributes: Attributes<'_>,
    ) -> Arc<Row<TcpValues>> {
        let text = label_text(&labels.pairs(), changes, attributes);
        let folded = || folded_text(&labels.folded().pairs(), changes);
        let wanted = Wanted {
            labels: &text,
            folded: &folded,
            metrics,
            parties: [labels.source.party(), labels.destination.party()],
        };
        self.series.row(&wanted, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str) -> TcpLabels {
        TcpLabels {
            reporter: Reporter::Source,
            source: Peer {
                workload: workload.into(),
                ..Peer::default()
            },
            destination: Peer::default(),
            service: ServiceLabels::default(),
            response_flags: ResponseFlags::None,
            security: Security::MutualTls,
        }
    }

    #[test]
    fn labels_stand_in_istios_order_and_absent_ones_are_unknown() {
        let registry = Registry::new();
        let metrics = TcpMetrics::register(&registry);
        metrics.handles(&labels("web")).received.inc_by(7);
        let text = registry.encode();
        let line = text
            .lines()
            .find(|line| line.starts_with("istio_tcp_received_bytes_total{"))
            .unwrap();
        assert!(
            line.contains(
                "{reporter=\"source\",source_workload=\"web\",source_canonical_service=\"unknown\","
            ),
            "{line}"
        );
        assert!(line.ends_with(
            "request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",\
             source_region=\"unknown\",source_zone=\"unknown\",destination_region=\"unknown\",destination_zone=\"unknown\"} 7"
        ), "{line}");
        assert_eq!(line.matches("=\"").count(), 27);
    }

    #[test]
    fn only_failures_are_counted_as_failed() {
        let registry = Registry::new();
        let metrics = TcpMetrics::register(&registry);
        metrics.failed(&labels("fine"));
        metrics.failed(&TcpLabels {
            response_flags: ResponseFlags::Deny,
            ..labels("denied")
        });
        let text = registry.encode();
        assert!(
            !text.contains("fine") && text.contains("response_flags=\"DENY\""),
            "{text}"
        );
    }

    #[test]
    fn past_the_bound_series_fold_into_one_and_are_counted() {
        let registry = Registry::new();
        let bounds = Bounds {
            sets: 20,
            ..Bounds::default()
        };
        let metrics = TcpMetrics::bounded(&registry, bounds);
        for index in 0..25 {
            metrics.handles(&labels(&format!("w{index}"))).opened.inc();
        }
        let text = registry.encode();
        let opened = text
            .lines()
            .filter(|line| line.starts_with("istio_tcp_connections_opened_total"));
        assert_eq!(opened.count(), 21);
        assert!(
            text.contains("karst_metric_series_overflow_total 5\n"),
            "{text}"
        );
    }

    #[test]
    fn a_metric_that_is_off_counts_nothing() {
        let registry = Registry::new();
        let metrics = TcpMetrics::register(&registry);
        let off = Changes::off();
        let mut fewer = Changes::default();
        fewer.remove(&"source_workload".into());
        let plan = MetricPlan::new(vec![
            (Metric::TcpOpenedConnections, off),
            (Metric::TcpSentBytes, fewer),
        ]);
        for workload in ["a", "b"] {
            let handles = metrics.handles_for(&labels(workload), &plan, &Map::new);
            handles.opened.inc();
            handles.sent.inc_by(5);
            handles.received.inc_by(7);
        }
        let text = registry.encode();
        assert!(!text.contains("istio_tcp_connections_opened"), "{text}");
        let sent: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("istio_tcp_sent_bytes_total"))
            .collect();
        assert_eq!(sent.len(), 1, "{text}");
        assert!(sent[0].ends_with("} 10") && !sent[0].contains("source_workload="));
        assert_eq!(text.matches("istio_tcp_received_bytes_total{").count(), 2);
    }
}
