//! What the waypoint counts: Istio's metrics of connections and requests (`karst-telemetry`), and its own.

use karst_telemetry::metrics::{Registry, http::HttpMetrics, tcp::TcpMetrics};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

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
    /// Requests and connections that were cut because a changed policy does not allow them any more.
    pub(crate) revoked: Counter,
    /// Requests of clients refused as malformed.
    pub(crate) malformed: Counter,
    /// Requests refused by a rate limit.
    pub(crate) requests_limited: Counter,
    /// Requests that a rate limit in shadow mode would have refused.
    pub(crate) requests_over_shadow_limits: Counter,
    /// Requests counted with others because their limit had no place for another key.
    pub(crate) limit_keys_shared: Counter,
    /// Requests whose tokens were refused, by reason.
    pub(crate) tokens_rejected: Family<[(&'static str, &'static str); 1], Counter>,
    /// Requests that an external authorizer denied.
    pub(crate) external_denied: Counter,
    /// Questions that an external authorizer did not answer.
    pub(crate) external_failed: Counter,
    /// Headers that an external authorizer wished for and may not set.
    pub(crate) external_headers_refused: Counter,
    /// Requests that a CUSTOM policy in dry run would have asked about.
    pub(crate) external_dry_run: Counter,
    /// Health checks that an endpoint did not pass.
    pub(crate) health_checks_failed: Counter,
    /// Endpoints that were not asked because too many are.
    pub(crate) health_checks_dropped: Counter,
    /// Clients that were asked to connect again because this replica had more than its share.
    pub(crate) connections_moved: Counter,
    /// Client connections open now.
    pub(crate) connections: Gauge,
}

impl Metrics {
    /// Counts a request whose token is refused.
    pub(crate) fn token_rejected(&self, reason: &'static str) {
        self.tokens_rejected
            .get_or_create(&[("reason", reason)])
            .inc();
    }

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
            revoked: counter(
                "karst_waypoint_revoked",
                "Requests and connections cut because a changed policy does not allow them any more",
            ),
            malformed: counter(
                "karst_waypoint_malformed_requests",
                "Requests refused as malformed",
            ),
            requests_limited: counter(
                "karst_waypoint_requests_limited",
                "Requests refused by a rate limit",
            ),
            requests_over_shadow_limits: counter(
                "karst_waypoint_requests_over_shadow_limits",
                "Requests that a rate limit in shadow mode would have refused",
            ),
            limit_keys_shared: counter(
                "karst_waypoint_limit_keys_shared",
                "Requests counted with others because their rate limit had no place for another key",
            ),
            tokens_rejected: registry.register(
                "karst_waypoint_tokens_rejected",
                "Requests refused because of a token, by reason",
                Family::default(),
            ),
            external_denied: counter(
                "karst_waypoint_external_denied",
                "Requests denied by an external authorizer",
            ),
            external_failed: counter(
                "karst_waypoint_external_failed",
                "Questions to external authorizers that were not answered",
            ),
            external_headers_refused: counter(
                "karst_waypoint_external_headers_refused",
                "Headers that external authorizers may not set and asked for",
            ),
            external_dry_run: counter(
                "karst_waypoint_external_dry_run",
                "Requests that a CUSTOM policy in dry run would have asked about",
            ),
            health_checks_failed: counter(
                "karst_waypoint_health_checks_failed",
                "Health checks that an endpoint did not pass",
            ),
            health_checks_dropped: counter(
                "karst_waypoint_health_checks_dropped",
                "Times that an endpoint was not asked because too many are",
            ),
            connections_moved: counter(
                "karst_waypoint_connections_moved",
                "Client connections asked to reconnect because this replica had more than its share",
            ),
            connections: registry.register(
                "karst_waypoint_connections",
                "Client connections open now",
                Gauge::default(),
            ),
        }
    }
}
