//! What the agent counts: Istio's L4 metrics (`karst-telemetry`), and its own.

use std::{fmt, sync::Arc};

use karst_hbone::Flag;
use karst_identity::Store;
use karst_model::{identity::SpiffeId, service::Service, workload::Workload};
use karst_telemetry::metrics::{
    Registry,
    tcp::{Peer, ResponseFlags, ServiceLabels, TcpMetrics},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
    },
};

use crate::capture::datapath::Datapath;

/// All counters of the agent.
pub(crate) struct Metrics {
    pub(crate) tcp: TcpMetrics,
    /// Connections that found the queue of every data-path thread full.
    pub(crate) worker_queue_full: Counter,
    /// Captured connections for which the kernel had no original destination: somebody dialled a listener itself.
    pub(crate) no_original_destination: Counter,
    /// Live connections cut because policy changed.
    pub(crate) cut_by_policy: Counter,
    /// HBONE connections closed at once because their peer address had too many.
    pub(crate) peer_connections_refused: Counter,
    pub(crate) captured_pods: Gauge,
    pub(crate) leaving_pods: Gauge,
    pub(crate) pending_pods: Gauge,
    /// While it is not 0, everything that pods dial goes through the agent.
    pub(crate) destinations_without_room: Gauge,
    /// 1 while karst-cni is in the node's CNI chain, 0 while it cannot be put there.
    pub(crate) cni_installed: Gauge,
    /// Times that another program had taken it out.
    pub(crate) cni_repairs: Counter,
    pub(crate) dns_queries: Counter,
    pub(crate) dns_forwarded: Counter,
    pub(crate) dns_failures: Counter,
    pub(crate) dns_overload: Counter,
    pub(crate) dns_strangers: Counter,
}

impl Metrics {
    /// Creates the counters and registers them under their public names.
    pub(crate) fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.register(name, help, Counter::default());
        let gauge = |name, help| registry.register(name, help, Gauge::default());
        Self {
            tcp: TcpMetrics::register(registry),
            worker_queue_full: counter(
                "karst_worker_queue_full",
                "Connections refused because a data-path thread's queue was full",
            ),
            no_original_destination: counter(
                "karst_no_original_destination",
                "Connections to an outbound listener that the kernel did not capture",
            ),
            cut_by_policy: counter(
                "karst_connections_cut_by_policy",
                "Live connections ended because policy changed",
            ),
            peer_connections_refused: counter(
                "karst_peer_connections_refused",
                "HBONE connections refused because their peer address had too many",
            ),
            captured_pods: gauge("workload_manager_active_proxy_count", "Pods captured now"),
            leaving_pods: gauge(
                "karst_pods_leaving",
                "Pods that have left the mesh, whose last connections still find what they need",
            ),
            pending_pods: gauge(
                "workload_manager_pending_proxy_count",
                "Pods that should be captured and are not",
            ),
            destinations_without_room: gauge(
                "karst_destinations_without_room",
                "Mesh destinations that the kernel's map has no room for",
            ),
            cni_installed: gauge(
                "karst_cni_installed",
                "Whether karst-cni is in the node's CNI chain",
            ),
            cni_repairs: counter(
                "karst_cni_repairs",
                "Times that another program had taken karst-cni out of the node's CNI chain",
            ),
            dns_queries: counter("istio_dns_requests", "DNS queries of captured pods"),
            dns_forwarded: counter(
                "istio_dns_upstream_requests",
                "DNS queries forwarded to the cluster's resolver",
            ),
            dns_failures: counter(
                "istio_dns_upstream_failures",
                "Forwarded DNS queries that failed",
            ),
            dns_overload: counter(
                "karst_dns_overload",
                "DNS queries dropped because too many were in flight or waited to be read",
            ),
            dns_strangers: counter(
                "karst_dns_strangers",
                "DNS queries dropped because they came from outside of the pod",
            ),
        }
    }
}

/// What the kernel programs counted, read when the program is scraped: `karst_kernel_events_total`, by event. Those that
/// end in `_full` say that a map was at its bound.
pub(crate) struct KernelEvents(pub(crate) Arc<dyn Datapath>);

impl fmt::Debug for KernelEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelEvents")
    }
}

impl Collector for KernelEvents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = MetricType::Counter;
        let help = "What the kernel programs did with connections, by event";
        let mut family = encoder.encode_descriptor("karst_kernel_events", help, None, kind)?;
        for (event, count) in self.0.counters() {
            let value = ConstCounter::new(count);
            value.encode(family.encode_family(&[("event", event)])?)?;
        }
        Ok(())
    }
}

/// How the certificates of this node's pods stand, read when the program is scraped.
pub(crate) struct Certificates(pub(crate) Store);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let statuses = self.0.statuses();
        let failing = statuses.iter().filter(|status| status.last_error.is_some());
        let mut gauge = |name: &str, help: &str, value: i64| {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family)
        };
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        gauge(
            "karst_certificates",
            "Identities of this node's pods",
            count(statuses.len()),
        )?;
        gauge(
            "karst_certificates_failing",
            "Identities whose certificate could not be had or renewed at the last try",
            count(failing.count()),
        )?;
        let Some(soonest) = self.0.soonest_expiry() else {
            return Ok(());
        };
        let end = soonest.duration_since(std::time::UNIX_EPOCH);
        gauge(
            "karst_certificate_expiry_timestamp_seconds",
            "When the first of the held certificates ends, in seconds since the epoch",
            end.map_or(0, |end| i64::try_from(end.as_secs()).unwrap_or(i64::MAX)),
        )
    }
}

/// One end of a connection, for metrics and the access log. `principal` only where TLS proved it.
pub(crate) fn peer(workload: Option<&Workload>, principal: Option<&SpiffeId>) -> Peer {
    let principal = principal
        .map(|id| id.to_string().into())
        .unwrap_or_default();
    let Some(workload) = workload else {
        return Peer {
            principal,
            ..Peer::default()
        };
    };
    let owner = if workload.workload_name.is_empty() {
        &workload.name
    } else {
        &workload.workload_name
    };
    Peer {
        workload: owner.clone(),
        canonical_service: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        namespace: workload.namespace.clone(),
        principal,
        app: workload.canonical_name.clone(),
        version: workload.canonical_revision.clone(),
        cluster: workload.cluster_id.clone(),
        region: workload.locality.region.clone(),
        zone: workload.locality.zone.clone(),
    }
}

pub(crate) fn service_labels(service: Option<&Service>) -> ServiceLabels {
    service.map_or_else(ServiceLabels::default, |service| ServiceLabels {
        host: service.key.hostname.clone(),
        namespace: service.key.namespace.clone(),
        name: service.name.clone(),
    })
}

/// The tunnel's word for a failure as metrics have it.
pub(crate) fn response_flags(flag: Flag) -> ResponseFlags {
    match flag {
        Flag::None => ResponseFlags::None,
        Flag::Connect => ResponseFlags::Connect,
        Flag::Deny => ResponseFlags::Deny,
        Flag::TlsFailure => ResponseFlags::TlsFailure,
        Flag::H2HandshakeFailure => ResponseFlags::H2HandshakeFailure,
        Flag::NetworkPolicy => ResponseFlags::NetworkPolicy,
        Flag::IdentityError => ResponseFlags::IdentityError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::tests::Kernel;

    #[test]
    fn what_the_kernel_counted_is_scraped() {
        let registry = Registry::new();
        let kernel = Kernel::counting("orig_dst_full", 7);
        registry.register_collector(KernelEvents(Arc::new(kernel)));
        let page = registry.encode();
        let line = "karst_kernel_events_total{event=\"orig_dst_full\"} 7";
        assert!(page.contains(line), "{page}");
    }
}
