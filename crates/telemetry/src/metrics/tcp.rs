//! Istio's metrics of TCP connections, under Istio's names and with its labels in its order, so that dashboards made
//! for it work unchanged.
//!
//! A connection asks for its [`Handles`] once and counts through them. Bytes are counted from the point of view of the
//! client at either reporter: `received` is what the client sent, `sent` is what it was answered.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::Registry;

/// How many label sets one metric may have. Beyond it, connections are counted under [`overflow`] labels.
pub const SERIES_MAX: usize = 20_000;

/// The value of a label that is not known.
const UNKNOWN: &str = "unknown";

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

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        let security = match self.security {
            Security::Unknown => UNKNOWN,
            Security::MutualTls => "mutual_tls",
        };
        let labels: [(&str, &str); 27] = [
            ("reporter", self.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.app),
            ("source_version", &source.version),
            ("source_cluster", &source.cluster),
            ("destination_service", &service.host),
            ("destination_service_namespace", &service.namespace),
            ("destination_service_name", &service.name),
            ("destination_workload", &destination.workload),
            (
                "destination_canonical_service",
                &destination.canonical_service,
            ),
            (
                "destination_canonical_revision",
                &destination.canonical_revision,
            ),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.app),
            ("destination_version", &destination.version),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", "tcp"),
            ("response_flags", self.response_flags.as_str()),
            ("connection_security_policy", security),
            ("source_region", &source.region),
            ("source_zone", &source.zone),
            ("destination_region", &destination.region),
            ("destination_zone", &destination.zone),
        ];
        encode_labels(encoder, labels.iter())
    }
}

pub(super) fn encode_labels<'a>(
    encoder: &mut LabelSetEncoder<'_>,
    labels: impl Iterator<Item = &'a (&'a str, &'a str)>,
) -> Result<(), std::fmt::Error> {
    use prometheus_client::encoding::EncodeLabel as _;
    for &(name, value) in labels {
        let value = if value.is_empty() { UNKNOWN } else { value };
        (name, value).encode(encoder.encode_label())?;
    }
    Ok(())
}

/// The labels that stand for everything past [`SERIES_MAX`].
fn overflow(labels: &TcpLabels) -> TcpLabels {
    TcpLabels {
        source: Peer::default(),
        destination: Peer::default(),
        service: ServiceLabels::default(),
        ..*labels
    }
}

/// The families, registered once per program.
#[derive(Clone)]
pub struct TcpMetrics {
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    failed: Family<TcpLabels, Counter>,
    sockets: Family<SocketLabels, Gauge>,
    overflowed: Counter,
    /// Label sets in use: at most [`SERIES_MAX`] in `opened` and `failed` together.
    series: Arc<AtomicUsize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SocketLabels(Reporter);

impl EncodeLabelSet for SocketLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_labels(encoder, [("reporter", self.0.as_str())].iter())
    }
}

/// The counters of one connection, held while it lives: each count is one atomic add.
#[derive(Clone)]
pub struct Handles {
    /// `istio_tcp_received_bytes_total`: bytes from client to server.
    pub received: Counter,
    /// `istio_tcp_sent_bytes_total`: bytes from server to client.
    pub sent: Counter,
    /// `istio_tcp_connections_opened_total`.
    pub opened: Counter,
    /// `istio_tcp_connections_closed_total`.
    pub closed: Counter,
}

impl TcpMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        let family =
            |name, help| registry.register(name, help, Family::<TcpLabels, Counter>::default());
        Self {
            opened: family("istio_tcp_connections_opened", "TCP connections opened"),
            closed: family("istio_tcp_connections_closed", "TCP connections closed"),
            received: family("istio_tcp_received_bytes", "Bytes from clients to servers"),
            sent: family("istio_tcp_sent_bytes", "Bytes from servers to clients"),
            failed: family("istio_tcp_connections_failed", "TCP connections that failed"),
            sockets: registry.register("istio_tcp_sockets_open", "Open sockets of proxied connections", Family::default()),
            overflowed: registry.register(
                "karst_metric_series_overflow",
                "Connections counted without workload labels because the label set bound was reached",
                Counter::default(),
            ),
            series: Arc::default(),
        }
    }

    /// The counters of a connection with these labels.
    pub fn handles(&self, labels: &TcpLabels) -> Handles {
        let labels = &self.bounded(&self.opened, labels);
        Handles {
            received: self.received.get_or_create_owned(labels),
            sent: self.sent.get_or_create_owned(labels),
            opened: self.opened.get_or_create_owned(labels),
            closed: self.closed.get_or_create_owned(labels),
        }
    }

    /// Counts a connection that failed; one that ended well is not counted.
    pub fn failed(&self, labels: &TcpLabels) {
        if labels.response_flags != ResponseFlags::None {
            let labels = self.bounded(&self.failed, labels);
            self.failed.get_or_create(&labels).inc();
        }
    }

    /// The gauge of open sockets.
    pub fn sockets_open(&self, reporter: Reporter) -> Gauge {
        self.sockets.get_or_create_owned(&SocketLabels(reporter))
    }

    /// Forgets the series of a workload that is gone, so that they do not stay for ever.
    pub fn forget(&self, labels: &TcpLabels) {
        let bounded = [&self.opened, &self.failed].map(|family| family.remove(labels));
        let freed = bounded.into_iter().filter(|&removed| removed).count();
        self.series.fetch_sub(freed, Ordering::Relaxed);
        for family in [&self.closed, &self.received, &self.sent] {
            family.remove(labels);
        }
    }

    fn bounded(&self, family: &Family<TcpLabels, Counter>, labels: &TcpLabels) -> TcpLabels {
        if family.get(labels).is_some() {
            return labels.clone();
        }
        if self.series.fetch_add(1, Ordering::Relaxed) < SERIES_MAX {
            return labels.clone();
        }
        self.series.fetch_sub(1, Ordering::Relaxed);
        self.overflowed.inc();
        overflow(labels)
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
        let metrics = TcpMetrics::register(&registry);
        for index in 0..SERIES_MAX + 5 {
            metrics.handles(&labels(&format!("w{index}"))).opened.inc();
        }
        assert_eq!(metrics.overflowed.get(), 5);
        let lines = registry.encode();
        let opened = lines
            .lines()
            .filter(|line| line.starts_with("istio_tcp_connections_opened_total"));
        assert_eq!(opened.count(), SERIES_MAX + 1);
        metrics.forget(&labels("w0"));
        metrics.handles(&labels("new"));
        assert_eq!(metrics.overflowed.get(), 5, "a forgotten series makes room");
    }
}
