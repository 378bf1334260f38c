//! Counters by label set that do not grow for ever, and whose sums never fall.
//!
//! ```text
//!   labels ──row()──► Row (held while somebody counts) ──values──► lines of /metrics
//!                      │ idle, or its workload is gone, and nobody holds it
//!                      └──fold──► the row of the same kind without names (`unknown`), which takes its counts over
//! ```
//!
//! A sum over a metric is therefore exact whatever came and went. Past [`Bounds::sets`] label sets, whoever is new counts
//! in the row without names from the start.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::text::Lines;

/// How many label sets there may be, and how long they stay.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Label sets of one table.
    pub sets: usize,
    /// Text of labels, in bytes over all lines, past which sets of workloads that are gone leave at once.
    pub bytes: usize,
    /// A set that nobody has counted in for so long leaves.
    pub idle: Duration,
    /// A set of a workload that is gone stays for so long, so that whoever scrapes sees its last counts.
    pub gone: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            sets: 20_000,
            bytes: 1 << 20,
            idle: Duration::from_secs(15 * 60),
            gone: Duration::from_secs(60),
        }
    }
}

/// Namespace and name of a workload, by which label sets are found when it is gone.
pub type Party = (Arc<str>, Arc<str>);

/// What is counted under one label set.
pub trait Values: Default + Send + Sync + 'static {
    /// Adds everything that `other` has counted.
    fn absorb(&self, other: &Self);
    /// Differs whenever something was counted.
    fn mark(&self) -> u64;
    /// Lines of one label set.
    const LINES: usize;
}

/// One label set. It is not folded while somebody holds it.
#[derive(Debug)]
pub struct Row<V> {
    pub values: V,
    labels: Arc<str>,
    /// Bits of the metrics that have this label set.
    metrics: u32,
}

impl<V> Row<V> {
    /// `name="value",...`
    pub fn labels(&self) -> &str {
        &self.labels
    }

    /// Whether the metric of this bit has the label set.
    pub fn has(&self, metric: u32) -> bool {
        self.metrics & metric != 0
    }
}

/// What a label set is asked for with.
#[derive(Clone)]
pub struct Wanted<'a> {
    pub labels: &'a str,
    /// The same without the names of workloads and services.
    pub folded: &'a dyn Fn() -> String,
    pub metrics: u32,
    pub parties: [Option<Party>; 2],
}

struct Entry<V> {
    row: Arc<Row<V>>,
    parties: [Option<Party>; 2],
    /// The row that takes its counts; `None` for such a row itself.
    heir: Option<Arc<Row<V>>>,
    mark: u64,
    counted: Instant,
    gone: Option<Instant>,
}

/// A table of label sets.
pub struct Series<V> {
    inner: Mutex<Inner<V>>,
    bounds: Bounds,
}

struct Inner<V> {
    rows: HashMap<(Arc<str>, u32), Entry<V>>,
    /// Of rows with an heir.
    bytes: usize,
    named: usize,
    overflowed: u64,
    folded: u64,
}

impl<V: Values> Series<V> {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            inner: Mutex::new(Inner {
                rows: HashMap::new(),
                bytes: 0,
                named: 0,
                overflowed: 0,
                folded: 0,
            }),
            bounds,
        }
    }

    /// The row of a label set; of the set without names where there is no room.
    pub fn row(&self, wanted: &Wanted<'_>, now: Instant) -> Arc<Row<V>> {
        let mut inner = self.lock();
        if let Some(entry) = inner.find(wanted.labels, wanted.metrics) {
            entry.counted = now;
            entry.gone = None;
            return entry.row.clone();
        }
        let bytes = wanted.labels.len() * V::LINES;
        if inner.bytes + bytes > self.bounds.bytes {
            inner.fold(|entry| entry.gone.is_some());
        }
        let heir = inner.heir(wanted, now);
        if inner.named >= self.bounds.sets {
            inner.overflowed += 1;
            return heir;
        }
        if heir.labels() == wanted.labels {
            return heir;
        }
        inner.bytes += bytes;
        inner.named += 1;
        inner.insert(wanted.labels.into(), wanted, Some(heir), now)
    }

    /// Only these workloads are there: label sets that name others leave as soon as nobody counts in them.
    pub fn retire(&self, is_live: &dyn Fn(&Party) -> bool, now: Instant) {
        let mut inner = self.lock();
        for entry in inner.rows.values_mut() {
            let mut named = entry.parties.iter().flatten();
            if entry.gone.is_none() && named.any(|party| !is_live(party)) {
                entry.gone = Some(now);
            }
        }
    }

    /// Folds what has been idle for too long. Call it now and then.
    pub fn sweep(&self, now: Instant) {
        let bounds = self.bounds;
        let mut inner = self.lock();
        for entry in inner.rows.values_mut() {
            let mark = entry.row.values.mark();
            if mark != entry.mark {
                entry.mark = mark;
                entry.counted = now;
            }
        }
        inner.fold(|entry| {
            let gone = entry
                .gone
                .is_some_and(|since| now.saturating_duration_since(since) >= bounds.gone);
            gone || now.saturating_duration_since(entry.counted) >= bounds.idle
        });
    }

    /// Label sets with names, those that found no room, and those that were folded.
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts {
            sets: inner.named,
            overflowed: inner.overflowed,
            folded: inner.folded,
        }
    }

    /// Every row, each label set once for each metric that has it, in order.
    pub fn rows(&self) -> Vec<Arc<Row<V>>> {
        let inner = self.lock();
        // One that waits for what is folded has nothing to say before.
        let says = |entry: &&Entry<V>| entry.heir.is_some() || entry.row.values.mark() > 0;
        let entries = inner.rows.values().filter(says);
        let mut rows: Vec<Arc<Row<V>>> = entries.map(|entry| entry.row.clone()).collect();
        drop(inner);
        rows.sort_by(|a, b| (&a.labels, a.metrics).cmp(&(&b.labels, b.metrics)));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        // Nothing in it panics half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sets: usize,
    pub overflowed: u64,
    pub folded: u64,
}

impl<V: Values> Inner<V> {
    fn find(&mut self, labels: &str, metrics: u32) -> Option<&mut Entry<V>> {
        self.rows.get_mut(&ByText(labels, metrics))
    }

    fn heir(&mut self, wanted: &Wanted<'_>, now: Instant) -> Arc<Row<V>> {
        let labels = (wanted.folded)();
        if let Some(entry) = self.find(&labels, wanted.metrics) {
            return entry.row.clone();
        }
        self.insert(labels.into(), wanted, None, now)
    }

    fn insert(
        &mut self,
        labels: Arc<str>,
        wanted: &Wanted<'_>,
        heir: Option<Arc<Row<V>>>,
        now: Instant,
    ) -> Arc<Row<V>> {
        let row = Arc::new(Row {
            values: V::default(),
            labels: labels.clone(),
            metrics: wanted.metrics,
        });
        let parties = match heir {
            Some(_) => wanted.parties.clone(),
            None => [None, None],
        };
        let entry = Entry {
            row: row.clone(),
            parties,
            heir,
            mark: row.values.mark(),
            counted: now,
            gone: None,
        };
        self.rows.insert((labels, wanted.metrics), entry);
        row
    }

    /// Hands on the counts of rows that nobody holds.
    fn fold(&mut self, which: impl Fn(&Entry<V>) -> bool) {
        let (mut bytes, mut folded) = (0, 0);
        self.rows.retain(|(labels, _), entry| {
            let Some(heir) = &entry.heir else { return true };
            // Nobody else can take a row while the table is locked.
            if !which(entry) || Arc::strong_count(&entry.row) > 1 {
                return true;
            }
            heir.values.absorb(&entry.row.values);
            bytes += labels.len() * V::LINES;
            folded += 1;
            false
        });
        self.bytes -= bytes;
        self.named -= folded;
        self.folded += folded as u64;
    }
}

/// A row's key, borrowed.
#[derive(PartialEq, Eq, Hash)]
struct ByText<'a>(&'a str, u32);

impl hashbrown::Equivalent<(Arc<str>, u32)> for ByText<'_> {
    fn equivalent(&self, key: &(Arc<str>, u32)) -> bool {
        *key.0 == *self.0 && key.1 == self.1
    }
}

/// A counter of a metric: its name without `_total`, its help, and its value in a row.
pub struct CounterOf<V> {
    pub bit: u32,
    pub name: &'static str,
    pub help: &'static str,
    pub value: fn(&V) -> u64,
}

/// Writes the lines of a counter. Label sets that different rows share are one line.
pub fn write_counter<V: Values>(rows: &[Arc<Row<V>>], metric: &CounterOf<V>, out: &mut Lines) {
    let mut of = rows.iter().filter(|row| row.has(metric.bit)).peekable();
    if of.peek().is_none() {
        return;
    }
    let _ = write!(
        out.0,
        "# HELP {0} {1}.\n# TYPE {0} counter\n",
        metric.name, metric.help
    );
    while let Some(row) = of.next() {
        let mut value = (metric.value)(&row.values);
        while let Some(same) = of.next_if(|other| other.labels == row.labels) {
            value += (metric.value)(&same.values);
        }
        let _ = writeln!(out.0, "{}_total{{{}}} {value}", metric.name, row.labels);
    }
}

#[cfg(test)]
mod tests;
