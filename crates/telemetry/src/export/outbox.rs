//! What waits for one collector.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use karst_model::telemetry::Collector;
use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::Notify;

use super::{client::SendError, encode::Fields};
use crate::{error_chain::Chain, metrics::Registry};

/// Spans, and access logs, that may wait for one collector.
pub const QUEUE_MAX: usize = 8192;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    Spans,
    Logs,
    Metrics,
}

impl Signal {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }

    /// Path of the service that takes it.
    pub(super) fn rpc(self) -> &'static str {
        match self {
            Self::Spans => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

/// Why something did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Loss {
    /// The queue was full.
    QueueFull,
    /// The collector refused it.
    Refused,
    /// Every try failed.
    GaveUp,
}

impl Loss {
    fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::GaveUp => "gave_up",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels {
    provider: Arc<str>,
    signal: Signal,
    loss: Option<Loss>,
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeLabel as _;
        ("provider", &*self.provider).encode(encoder.encode_label())?;
        ("signal", self.signal.as_str()).encode(encoder.encode_label())?;
        match self.loss {
            Some(loss) => ("reason", loss.as_str()).encode(encoder.encode_label()),
            None => Ok(()),
        }
    }
}

/// What became of what was recorded.
#[derive(Clone)]
pub struct ExportMetrics {
    sent: Family<Labels, Counter>,
    lost: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
}

impl ExportMetrics {
    /// Registers the counters.
    pub fn register(registry: &Registry) -> Self {
        let family = |name, help| registry.register(name, help, Family::default());
        Self {
            sent: family(
                "karst_telemetry_sent",
                "Spans, logs and data points that a collector has taken",
            ),
            lost: family(
                "karst_telemetry_dropped",
                "Spans, logs and data points that no collector got, by reason",
            ),
            failed: family(
                "karst_telemetry_failed_sends",
                "Tries to send a batch to a collector that failed",
            ),
        }
    }
}

impl ExportMetrics {
    /// Losses count from zero: of a series that begins with its first loss, no rate and no alert would see that.
    fn begin(&self, provider: &Arc<str>) {
        for signal in [Signal::Spans, Signal::Logs, Signal::Metrics] {
            for loss in [Loss::QueueFull, Loss::Refused, Loss::GaveUp] {
                let labels = Labels {
                    provider: provider.clone(),
                    signal,
                    loss: Some(loss),
                };
                drop(self.lost.get_or_create(&labels));
            }
        }
    }
}

/// Two queues and their collector. Pushing never waits.
pub struct Outbox {
    pub name: Arc<str>,
    pub collector: Collector,
    spans: Mutex<VecDeque<Fields>>,
    logs: Mutex<VecDeque<Fields>>,
    pub(super) some: Notify,
    /// Nobody pushes any more.
    closed: AtomicBool,
    metrics: ExportMetrics,
    trouble: Mutex<Option<Trouble>>,
}

/// The collector does not take what is sent.
struct Trouble {
    /// With its causes.
    error: Arc<str>,
    /// It could not be reached at all: whoever reaches it knows that this is over.
    unreached: bool,
    /// Once may be an accident.
    is_sure: bool,
}

impl Outbox {
    pub fn new(name: Arc<str>, collector: Collector, metrics: ExportMetrics) -> Arc<Self> {
        metrics.begin(&name);
        Arc::new(Self {
            name,
            collector,
            spans: Mutex::default(),
            logs: Mutex::default(),
            some: Notify::new(),
            closed: AtomicBool::new(false),
            metrics,
            trouble: Mutex::default(),
        })
    }

    /// Queues a span (`Span`), or drops it where the queue is full.
    pub fn push_span(&self, span: Fields) {
        self.push(&self.spans, span, Signal::Spans);
    }

    /// Queues a log record (`LogRecord`), or drops it where the queue is full.
    pub fn push_log(&self, record: Fields) {
        self.push(&self.logs, record, Signal::Logs);
    }

    fn push(&self, queue: &Mutex<VecDeque<Fields>>, one: Fields, signal: Signal) {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= QUEUE_MAX {
            drop(queue);
            return self.lost(signal, Loss::QueueFull, 1);
        }
        queue.push_back(one);
        let enough = queue.len() == super::run::BATCH;
        drop(queue);
        if enough {
            self.some.notify_one();
        }
    }

    /// Whether a whole batch waits.
    pub(super) fn has_batch(&self) -> bool {
        is_batch(&self.spans) || is_batch(&self.logs)
    }

    /// What waits, at most one batch of each kind.
    pub(super) fn take(&self) -> [(Signal, Vec<Fields>); 2] {
        [
            (Signal::Spans, take(&self.spans)),
            (Signal::Logs, take(&self.logs)),
        ]
    }

    /// Ends its sending once it is empty.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.some.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Why the collector does not take what is sent, as long as it does not.
    pub fn failing(&self) -> Option<Arc<str>> {
        let trouble = self.trouble();
        let sure = trouble.as_ref().filter(|trouble| trouble.is_sure);
        sure.map(|trouble| trouble.error.clone())
    }

    pub(super) fn troubled(&self, error: &SendError) {
        let mut trouble = self.trouble();
        let at_once = matches!(error, SendError::TimedOut(_) | SendError::Refused(_));
        *trouble = Some(Trouble {
            error: Chain(error).to_string().into(),
            unreached: matches!(
                error,
                SendError::Nowhere(_) | SendError::Unreachable(_) | SendError::Insecure(_)
            ),
            is_sure: at_once || trouble.is_some(),
        });
    }

    /// It was reached: what it makes of a batch is not known.
    pub(super) fn reached(&self) {
        self.trouble().take_if(|trouble| trouble.unreached);
    }

    /// It took a batch.
    pub(super) fn took(&self) {
        self.trouble().take();
    }

    pub(super) fn is_troubled(&self) -> bool {
        self.trouble().is_some()
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels(&self, signal: Signal, loss: Option<Loss>) -> Labels {
        Labels {
            provider: self.name.clone(),
            signal,
            loss,
        }
    }

    pub(super) fn lost(&self, signal: Signal, loss: Loss, count: usize) {
        let labels = self.labels(signal, Some(loss));
        self.metrics
            .lost
            .get_or_create(&labels)
            .inc_by(count as u64);
    }

    pub(super) fn sent(&self, signal: Signal, count: usize) {
        let labels = self.labels(signal, None);
        self.metrics
            .sent
            .get_or_create(&labels)
            .inc_by(count as u64);
    }

    pub(super) fn failed(&self, signal: Signal) {
        let labels = self.labels(signal, None);
        self.metrics.failed.get_or_create(&labels).inc();
    }
}

fn is_batch(queue: &Mutex<VecDeque<Fields>>) -> bool {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.len() >= super::run::BATCH
}

fn take(queue: &Mutex<VecDeque<Fields>>) -> Vec<Fields> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let count = queue.len().min(super::run::BATCH);
    queue.drain(..count).collect()
}
