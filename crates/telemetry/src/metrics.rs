//! The metrics registry of a program, and the families that proxies share ([`tcp`], [`http`]).
//!
//! Metrics are registered once at start; handles are kept per connection, so that counting is one atomic add. The
//! registry is encoded as OpenMetrics text when somebody scrapes the program.

pub mod http;
pub mod tcp;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::text,
    registry::{Metric, Registry as Inner},
};

/// The content type of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a program. Cheap to clone; every clone is the same registry.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `metric` under `name` and gives it back. A counter's name is given without its `_total`.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.with(|inner| inner.register(name, help, metric.clone()));
        metric
    }

    /// Registers a metric whose values are read when the program is scraped.
    pub fn register_collector(&self, collector: impl prometheus_client::collector::Collector) {
        self.with(|inner| inner.register_collector(Box::new(collector)));
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let encoded = self.with(|inner| text::encode(&mut out, inner));
        if encoded.is_err() {
            tracing::error!(
                "a metric failed to encode: this is a bug in Karst, the scrape is incomplete"
            );
        }
        out
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic in an encoder leaves the registry as it was: there is nothing half-written to protect.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_registered_counter_is_encoded_with_its_value() {
        let registry = Registry::new();
        let counter: Counter = registry.register("karst_things", "Things seen", Counter::default());
        counter.inc_by(3);
        let text = registry.encode();
        assert!(text.contains("karst_things_total 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
