//! The metrics registry of a program, and the families that proxies share ([`tcp`], [`http`]).
//!
//! Metrics are registered once at start; handles are kept per connection, so that counting is one atomic add. The
//! registry is encoded as OpenMetrics text when somebody scrapes the program.

pub mod bridge;
pub mod http;
pub mod plan;
pub mod series;
pub mod tcp;
pub mod text;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::text as openmetrics,
    registry::{Metric, Registry as Inner},
};

use self::text::Lines;

/// The content type of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a program. Cheap to clone; every clone is the same registry.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    texts: Arc<Mutex<Vec<Writer>>>,
}

/// Writes the lines of some metrics.
type Writer = Box<dyn Fn(&mut Lines) + Send>;

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
        let encoded = self.with(|inner| openmetrics::encode(&mut out, inner));
        self.encode_texts(&mut out);
        if encoded.is_err() {
            tracing::error!(
                "a metric failed to encode: this is a bug in Karst, the scrape is incomplete"
            );
        }
        out
    }

    /// Registers metrics that write their own lines.
    pub fn register_text(&self, write: impl Fn(&mut Lines) + Send + 'static) {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.push(Box::new(write));
    }

    /// Before the end of the page.
    fn encode_texts(&self, out: &mut String) {
        const END: &str = "# EOF\n";
        out.truncate(out.strip_suffix(END).map_or(out.len(), str::len));
        let mut lines = Lines(std::mem::take(out));
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.iter().for_each(|write| write(&mut lines));
        *out = lines.0;
        out.push_str(END);
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
