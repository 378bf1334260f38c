//! What Karst programs say about themselves: log lines, metrics, one access-log line per connection.
//!
//! ```text
//!   tracing event ──► logging (filter, changed live; text or JSON) ──► standard error
//!   access_log::Record ──► tracing event of target `access` ──┘
//!   metrics::Registry ──► OpenMetrics text ──► the admin endpoint `/metrics`
//! ```

pub mod access_log;
pub mod error_chain;
pub mod logging;
pub mod metrics;
pub mod observed;
pub mod request_log;
