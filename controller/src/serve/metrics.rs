//! What the served side counts.

use std::{fmt, sync::Arc};

use karst_telemetry::metrics::Registry;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        gauge::{ConstGauge, Gauge},
    },
};

use super::{acks::Acks, resources::Resources};

/// Handles to the metrics; clones share the numbers.
#[derive(Clone, Debug, Default)]
pub struct ServeMetrics {
    pub streams: Gauge,
    pub responses: Counter,
    pub resources_sent: Counter,
    pub bytes_sent: Counter,
    pub nacks: Counter,
    pub cut_off: Counter,
    pub streams_refused: Counter,
    pub certificates: Counter,
    pub certificates_refused: Counter,
    pub joins: Counter,
    pub joins_refused: Counter,
    pub withdrawals_timed_out: Counter,
}

impl ServeMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let Self {
            streams,
            responses,
            resources_sent,
            bytes_sent,
            nacks,
            cut_off,
            streams_refused,
            ..
        } = &metrics;
        let gauge = "karst_discovery_streams";
        registry.register(gauge, "Discovery streams that are open", streams.clone());
        let counters = [
            (
                "karst_discovery_responses",
                "Discovery responses sent",
                responses,
            ),
            (
                "karst_discovery_resources_sent",
                "Resources sent, over all streams",
                resources_sent,
            ),
            (
                "karst_discovery_bytes_sent",
                "Bytes of resources sent, over all streams",
                bytes_sent,
            ),
            (
                "karst_discovery_nacks",
                "Responses that a client rejected in part or as a whole",
                nacks,
            ),
            (
                "karst_discovery_cut_off",
                "Streams ended because the client was too far behind",
                cut_off,
            ),
            (
                "karst_discovery_streams_refused",
                "Streams refused because there were too many",
                streams_refused,
            ),
            (
                "karst_ca_certificates",
                "Certificates issued",
                &metrics.certificates,
            ),
            (
                "karst_ca_refused",
                "Certificate requests refused",
                &metrics.certificates_refused,
            ),
            ("karst_nodes_joined", "Join tokens redeemed", &metrics.joins),
            (
                "karst_nodes_join_refused",
                "Join attempts refused",
                &metrics.joins_refused,
            ),
            (
                "karst_withdrawals_timed_out",
                "Un-enrolments that went on before every agent had acknowledged the withdrawal",
                &metrics.withdrawals_timed_out,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        metrics
    }
}

/// How far agents are behind, read when the program is scraped: nodes that follow this replica, and the published
/// changes that the furthest behind of them has not acknowledged.
pub struct Lag {
    pub resources: Arc<Resources>,
    pub acks: Arc<Acks>,
}

impl fmt::Debug for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lag")
    }
}

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let revision = self.resources.read().revision();
        let acked = self.acks.by_node();
        let behind = acked
            .values()
            .map(|node| revision.saturating_sub(node.acked));
        let mut gauge = |name: &str, help: &str, value: u64| {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family)
        };
        let behind = behind.max().unwrap_or(0);
        gauge(
            "karst_agents_behind_changes",
            "Published changes that the agent furthest behind has not acknowledged",
            behind,
        )?;
        gauge(
            "karst_agents_connected",
            "Nodes whose agent follows this replica",
            u64::try_from(acked.len()).unwrap_or(u64::MAX),
        )
    }
}
