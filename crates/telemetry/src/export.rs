//! What is recorded goes to OpenTelemetry collectors: spans, access logs, metrics, by OTLP over gRPC or HTTP.
//!
//! ```text
//!   request, connection ──push──► Outbox (bounded; full: dropped and counted) ──batches──► client ──► collector
//! ```
//!
//! Pushing never waits. A collector that is down, slow, or refuses costs what does not fit into its outbox, and nothing
//! else: the queues are bounded, every loss is counted by its reason.

mod client;
mod encode;
mod outbox;
mod run;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};

pub use self::{
    client::{Connect, Io, Reach, Securing, SendError},
    encode::Fields,
    outbox::{ExportMetrics, Outbox, QUEUE_MAX, Signal},
    run::{Exporters, Identity, run},
};

/// An attribute whose value is text.
pub(crate) fn text_attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// Nanoseconds since the epoch, as OTLP has times.
pub fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) use self::encode::tests::read;
