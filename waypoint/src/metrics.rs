//! What the waypoint counts: Istio's metrics of connections and requests (`karst-telemetry`), and its own.

use karst_telemetry::metrics::{Registry, http::HttpMetrics, tcp::TcpMetrics};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// All counters of the waypoint.
pub(crate) struct Metrics {
    pub(crate) tcp: TcpMetrics,
    pub(crate) http: HttpMetrics,
    /// HBONE connections closed at once because their peer address had too many.
    pub(crate) peer_connections_refused: Counter,
    /// Client connections refused because too many were open.
    pub(crate) connections_refused: Counter,
    /// Requests answered 503 because too many were in flight.
    pub(crate) requests_shed: Counter,
    /// Connections that found the queue of a data-path thread full.
    pub(crate) worker_queue_full: Counter,
    /// Requests sent again after a try that failed.
    pub(crate) retries: Counter,
    /// Copies of requests that were not sent: the body was too large, or too many were under way.
    pub(crate) mirrors_dropped: Counter,
    /// Requests of clients refused as malformed.
    pub(crate) malformed: Counter,
    /// Client connections open now.
    pub(crate) connections: Gauge,
}

impl Metrics {
    /// Creates the counters and registers them under their public names.
    pub(crate) fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.register(name, help, Counter::default());
        Self {
            tcp: TcpMetrics::register(registry),
            http: HttpMetrics::register(registry),
            peer_connections_refused: counter(
                "karst_peer_connections_refused",
                "HBONE connections refused because their peer address had too many",
            ),
            connections_refused: counter(
                "karst_waypoint_connections_refused",
                "Client connections refused because too many were open",
            ),
            requests_shed: counter(
                "karst_waypoint_requests_shed",
                "Requests answered 503 because too many were in flight",
            ),
            worker_queue_full: counter(
                "karst_worker_queue_full",
                "Connections refused because a data-path thread's queue was full",
            ),
            retries: counter(
                "karst_waypoint_retries",
                "Requests sent again after a try that failed",
            ),
            mirrors_dropped: counter(
                "karst_waypoint_mirrors_dropped",
                "Copies of requests that were not sent because of a bound",
            ),
            malformed: counter(
                "karst_waypoint_malformed_requests",
                "Requests refused as malformed",
            ),
            connections: registry.register(
                "karst_waypoint_connections",
                "Client connections open now",
                Gauge::default(),
            ),
        }
    }
}
