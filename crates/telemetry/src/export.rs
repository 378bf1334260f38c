//! What is recorded goes to OpenTelemetry collectors: spans, access logs, metrics, by OTLP over gRPC or HTTP.
//!
//! ```text
//!   request, connection ──push──► Outbox (bounded; full: dropped and counted) ──batches──► client ──► collector
//! ```
//!
//! Pushing never waits. A collector that is down, slow, or refuses costs what does not fit into its outbox, and nothing
//! else: the queues are bounded, every loss is counted by its reason.

mod client;
mod outbox;
mod run;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};

pub use self::{
    client::{Connect, Io, Reach, Securing, SendError},
    outbox::{ExportMetrics, Outbox, QUEUE_MAX, Signal},
    run::{Exporters, Identity, run},
};

/// An attribute whose value is text.
pub fn text_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// An attribute whose value is a whole number.
pub fn number_attribute(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Nanoseconds since the epoch, as OTLP has times.
pub fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
