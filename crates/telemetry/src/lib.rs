//! What Karst programs say about themselves: log lines, metrics, traces, one access-log line per connection or request, and
//! where all of that is sent.
//!
//! ```text
//!   tracing event ──► logging (filter, changed live; bounded rate; text or JSON) ──► standard error
//!   Telemetry resources ──► hub (settings, merged) ──► Recording: what holds for a connection or request
//!   access_log::Record, request_log::RequestLine ──Recording::log──┬─► tracing event of target `access`
//!                                                 span::of ────────┴─► export (outboxes, OTLP) ──► collector
//!   metrics::Registry ──► OpenMetrics text ──► the admin endpoint `/metrics`, and by metrics::bridge to a collector
//! ```

pub mod access_log;
pub mod error_chain;
pub mod export;
pub mod expression;
pub mod format;
pub mod hub;
pub mod logging;
pub mod metrics;
pub mod observed;
pub mod request_log;
pub mod settings;
pub mod span;
pub mod trace;
