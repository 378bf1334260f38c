//! Sends what waits for the collectors, for as long as they are configured: one future for all of them.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue},
    metrics::v1::{Metric, metric::Data},
    resource::v1::Resource,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    client::{Batch, Client, Connect, SendError},
    encode::{self, Fields},
    nanoseconds,
    outbox::{Loss, Outbox, Signal},
    text_attribute,
};
use crate::{
    error_chain::Chain,
    metrics::{
        Registry,
        bridge::{self, Times},
    },
};

/// Spans, or log records, of one message.
pub(super) const BATCH: usize = 512;
/// Data points of one message: with Istio's labels about half a megabyte.
const POINTS: usize = 400;
/// How long a batch waits until it is full.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries of one batch.
const TRIES: u32 = 5;
/// After the first failure; twice as long after each further one.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Between two looks whether anybody is there, while nobody was, and while nothing was sent to one that was.
const PROBE: Duration = Duration::from_secs(1);
const PROBE_WELL: Duration = Duration::from_secs(30);
/// Between two pushes of metrics, where nobody says.
const INTERVAL: Duration = Duration::from_secs(60);
/// For what is left when the program ends.
const LAST: Duration = Duration::from_secs(3);

/// Who sends: attributes of the resource, by OpenTelemetry's names.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub attributes: Vec<(&'static str, String)>,
}

/// The collectors that are configured now.
#[derive(Clone, Default)]
pub struct Exporters {
    pub outboxes: Vec<Arc<Outbox>>,
    /// Names of those that get metrics.
    pub pushes: Vec<Arc<str>>,
    pub interval: Option<Duration>,
}

struct Sending {
    connect: Connect,
    /// Who sends, with every batch.
    resource: Fields,
    scope: Fields,
    registry: Registry,
    exporters: watch::Receiver<Exporters>,
    started: u64,
    /// The program ends: one last look.
    ending: watch::Receiver<bool>,
}

/// Sends until `shutdown`, then what is left within a moment.
pub async fn run(
    exporters: watch::Receiver<Exporters>,
    connect: Connect,
    identity: Identity,
    registry: Registry,
    shutdown: impl Future<Output = ()>,
) {
    let (end, ending) = watch::channel(false);
    let sending = Sending {
        connect,
        resource: Fields::of(&resource(&identity)),
        scope: Fields::of(&scope()),
        registry,
        exporters: exporters.clone(),
        started: nanoseconds(SystemTime::now()),
        ending,
    };
    let mut exporters = exporters;
    let known: Mutex<Vec<Arc<Outbox>>> = Mutex::default();
    let fresh = |exporters: &Exporters| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |one: &Arc<Outbox>| known.iter().any(|other| Arc::ptr_eq(one, other));
        let fresh: Vec<Arc<Outbox>> = exporters
            .outboxes
            .iter()
            .filter(|one| !is_known(one))
            .cloned()
            .collect();
        known.retain(|one| !one.is_closed());
        known.extend(fresh.iter().cloned());
        fresh
    };
    let mut running = FuturesUnordered::new();
    running.extend(
        fresh(&exporters.borrow_and_update())
            .into_iter()
            .map(|outbox| serve(outbox, &sending)),
    );
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            Some(()) = running.next(), if !running.is_empty() => {}
            changed = exporters.changed() => {
                if changed.is_err() {
                    break;
                }
                let fresh = fresh(&exporters.borrow_and_update());
                running.extend(fresh.into_iter().map(|outbox| serve(outbox, &sending)));
            }
            () = shutdown.as_mut() => break,
        }
    }
    end.send_replace(true);
    let rest = async { while running.next().await.is_some() {} };
    // What does not get through in this time is lost with the program.
    let _ = timeout(LAST, rest).await;
}

async fn serve(outbox: Arc<Outbox>, sending: &Sending) {
    let client = Client::new(&outbox.collector, &sending.connect);
    let mut ending = sending.ending.clone();
    let mut pushed = Instant::now();
    let mut told = false;
    let mut tried = None;
    loop {
        let is_ending = *ending.borrow_and_update() || outbox.is_closed();
        let batches = batches(&outbox, sending, &mut pushed, is_ending);
        let any = !batches.is_empty();
        for batch in batches {
            let sent = deliver(&outbox, &client, &batch, is_ending).await;
            tell(&outbox, sent.as_ref().err(), &mut told);
        }
        if any {
            tried = Some(Instant::now());
        }
        // What is less waits until it is a batch: sent at once, each would be a message of a few records.
        if outbox.has_batch() || (is_ending && any) {
            continue;
        }
        if is_ending {
            return;
        }
        let is_due = |at: Instant| at.elapsed() >= probe_pause(&outbox);
        if tried.is_none_or(is_due) {
            tried = Some(Instant::now());
            probe(&outbox, &client).await;
            continue;
        }
        tokio::select! {
            () = outbox.some.notified() => {}
            () = sleep(PAUSE) => {}
            _ended = ending.changed() => {}
        }
    }
}

fn probe_pause(outbox: &Outbox) -> Duration {
    match outbox.is_troubled() {
        true => PROBE,
        false => PROBE_WELL,
    }
}

/// Whether anybody is there, while there is nothing to send: a wrong endpoint is to be told before it is needed.
async fn probe(outbox: &Outbox, client: &Client) {
    match client.reach().await {
        Ok(()) => outbox.reached(),
        Err(error) => outbox.troubled(&error),
    }
}

/// A log line when a collector stops and when it begins again to take what is sent.
fn tell(outbox: &Outbox, error: Option<&SendError>, told: &mut bool) {
    match (error, *told) {
        (Some(error), false) => {
            *told = true;
            tracing::warn!(provider = %outbox.name, error = %Chain(error), "a collector does not take what is recorded; what does not fit into the queue is dropped and counted");
        }
        (None, true) => {
            *told = false;
            tracing::info!(provider = %outbox.name, "the collector takes what is recorded again");
        }
        (Some(_), true) | (None, false) => {}
    }
}

fn batches(
    outbox: &Outbox,
    sending: &Sending,
    pushed: &mut Instant,
    is_ending: bool,
) -> Vec<Batch> {
    let waiting = outbox.take().into_iter();
    let mut batches: Vec<Batch> = waiting
        .filter(|(_, items)| !items.is_empty())
        .map(|(signal, items)| sending.batch(signal, &items, items.len()))
        .collect();
    let (interval, pushes) = {
        let exporters = sending.exporters.borrow();
        let pushes = exporters.pushes.contains(&outbox.name);
        (exporters.interval.unwrap_or(INTERVAL), pushes)
    };
    if pushes
        && (pushed.elapsed() >= interval
            || (is_ending
                && !pushed.elapsed().is_zero()
                && batches.is_empty()
                && pushed.elapsed() >= PAUSE))
    {
        *pushed = Instant::now();
        batches.extend(sending.metrics());
    }
    batches
}

impl Sending {
    fn batch(&self, signal: Signal, items: &[Fields], count: usize) -> Batch {
        Batch {
            signal,
            request: encode::request(&self.resource, &self.scope, items),
            count,
        }
    }

    fn metrics(&self) -> Vec<Batch> {
        let times = Times {
            start: self.started,
            now: nanoseconds(SystemTime::now()),
        };
        let chunks = chunks(bridge::metrics(&self.registry.encode(), times));
        let batch = |(metrics, points): (Vec<Metric>, usize)| {
            let items: Vec<Fields> = metrics.iter().map(Fields::of).collect();
            self.batch(Signal::Metrics, &items, points)
        };
        chunks.into_iter().map(batch).collect()
    }
}

/// Metrics in messages of a bounded size; a metric of many points is in several.
fn chunks(metrics: Vec<Metric>) -> Vec<(Vec<Metric>, usize)> {
    let mut chunks: Vec<(Vec<Metric>, usize)> = Vec::new();
    for metric in metrics {
        for (part, points) in parts(metric) {
            match chunks.last_mut() {
                Some((list, count)) if *count + points <= POINTS => {
                    list.push(part);
                    *count += points;
                }
                _ => chunks.push((vec![part], points)),
            }
        }
    }
    chunks
}

fn parts(metric: Metric) -> Vec<(Metric, usize)> {
    let of = |data: Data| Metric {
        name: metric.name.clone(),
        description: metric.description.clone(),
        data: Some(data),
        ..Metric::default()
    };
    match metric.data.clone() {
        Some(Data::Sum(sum)) => sum
            .data_points
            .chunks(POINTS)
            .map(|points| {
                let data_points = points.to_vec();
                let sum = opentelemetry_proto::tonic::metrics::v1::Sum { data_points, ..sum };
                (of(Data::Sum(sum)), points.len())
            })
            .collect(),
        Some(Data::Histogram(histogram)) => histogram
            .data_points
            .chunks(POINTS)
            .map(|points| {
                let data_points = points.to_vec();
                let histogram = opentelemetry_proto::tonic::metrics::v1::Histogram {
                    data_points,
                    ..histogram
                };
                (of(Data::Histogram(histogram)), points.len())
            })
            .collect(),
        Some(Data::Gauge(gauge)) => {
            let points = gauge.data_points.len();
            vec![(of(Data::Gauge(gauge)), points)]
        }
        _ => Vec::new(),
    }
}

fn resource(identity: &Identity) -> Resource {
    let attributes: Vec<KeyValue> = identity
        .attributes
        .iter()
        .map(|(key, value)| text_attribute(key, value))
        .collect();
    Resource {
        attributes,
        ..Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "karst".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Sends a batch, again where that may help; what is lost in the end is counted.
async fn deliver(
    outbox: &Outbox,
    client: &Client,
    batch: &Batch,
    is_ending: bool,
) -> Result<(), SendError> {
    let (signal, count) = (batch.signal, batch.count);
    let mut pause = BACKOFF;
    let tries = if is_ending { 1 } else { TRIES };
    for number in 1.. {
        let error = match client.send(batch).await {
            Ok(rejected) => {
                let rejected = usize::try_from(rejected).unwrap_or(0).min(count);
                outbox.took();
                outbox.sent(signal, count - rejected);
                if rejected > 0 {
                    outbox.lost(signal, Loss::Refused, rejected);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        outbox.failed(signal);
        outbox.troubled(&error);
        let loss = match error.may_retry() {
            false => Loss::Refused,
            true if number >= tries => Loss::GaveUp,
            true => {
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
                continue;
            }
        };
        outbox.lost(signal, loss, count);
        return Err(error);
    }
    Ok(())
}
