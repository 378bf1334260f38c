//! What is to be recorded now, for everyone who records: settings, merged and cached, and the outboxes of the collectors.
//!
//! ```text
//!   discovery ──configure()──► Hub ──for_workload(), for_requests()──► Recording (held while nothing changes)
//!                               └──exporters()──► export::run
//! ```

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use karst_model::{
    name::{GatewayKey, ServiceKey},
    telemetry::{LogFormat, TagValue, Telemetry},
};
use tokio::sync::watch;

use crate::{
    export::{ExportMetrics, Exporters, Outbox},
    expression::Expression,
    format::{self, Logged},
    metrics::Registry,
    settings::{Chain, LogTo, Plan, Settings, Side},
    trace::ALWAYS,
};

/// Most headers that one scope may ask for.
const HEADERS_MAX: usize = 32;

/// One per process.
pub struct Hub {
    current: RwLock<Arc<Current>>,
    generation: AtomicU64,
    exporters: watch::Sender<Exporters>,
    metrics: ExportMetrics,
}

#[derive(Default)]
struct Current {
    settings: Settings,
    outboxes: Vec<Arc<Outbox>>,
    recordings: Mutex<HashMap<(Chain, Side), Arc<Recording>>>,
}

/// What is recorded of one kind of connection or request.
pub struct Recording {
    pub plan: Plan,
    /// Collectors of spans. None: nobody traces.
    pub spans: Vec<Arc<Outbox>>,
    /// Headers, in lower case, that a log, a filter or a tag asks for.
    pub headers: Vec<Arc<str>>,
    logs: Vec<Sink>,
    /// The access log is the program's own, whole, and nothing else.
    only_own: bool,
}

struct Sink {
    to: To,
    filter: Option<Arc<Expression>>,
    sample: Sample,
}

/// A share of what comes, in no pattern that traffic could have too.
struct Sample {
    /// Hundredths of a percent.
    share: u32,
    seen: AtomicU64,
}

impl Sample {
    fn new(share: u32) -> Self {
        Self {
            share,
            seen: AtomicU64::new(0),
        }
    }

    fn takes(&self) -> bool {
        self.share >= ALWAYS || {
            let number = self.seen.fetch_add(1, Ordering::Relaxed);
            mixed(number) % u64::from(ALWAYS) < u64::from(self.share)
        }
    }
}

/// SplitMix64: <https://prng.di.unimi.it/splitmix64.c>.
fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

enum To {
    Own,
    Lines(LogFormat),
    Outbox(Arc<Outbox>),
}

impl Hub {
    /// Records as without any configuration.
    pub fn new(registry: &Registry) -> Self {
        Self {
            current: RwLock::default(),
            generation: AtomicU64::new(0),
            exporters: watch::Sender::new(Exporters::default()),
            metrics: ExportMetrics::register(registry),
        }
    }

    /// Takes what discovery has now. Outboxes of collectors that stay are kept, with what waits in them.
    pub fn configure(&self, resources: Vec<Arc<Telemetry>>) {
        let settings = Settings::new(resources);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let outbox = |(name, collector)| {
            let mut known = current.outboxes.iter();
            let same =
                known.find(|one: &&Arc<Outbox>| one.name == name && one.collector == collector);
            same.cloned()
                .unwrap_or_else(|| Outbox::new(name, collector, self.metrics.clone()))
        };
        let outboxes: Vec<Arc<Outbox>> = settings.collectors().into_iter().map(outbox).collect();
        let is_gone = |one: &&Arc<Outbox>| !outboxes.iter().any(|other| Arc::ptr_eq(one, other));
        current
            .outboxes
            .iter()
            .filter(is_gone)
            .for_each(|one| one.close());
        let (pushes, interval) = settings.pushes();
        self.exporters.send_replace(Exporters {
            outboxes: outboxes.clone(),
            pushes,
            interval: interval.map(|ms| Duration::from_millis(ms.max(100).into())),
        });
        *current = Arc::new(Current {
            settings,
            outboxes,
            recordings: Mutex::default(),
        });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Differs after every change: a recording of another generation is out of date.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The collectors, for [`crate::export::run`].
    pub fn exporters(&self) -> watch::Receiver<Exporters> {
        self.exporters.subscribe()
    }

    /// Collectors that do not take what is sent now: name, and why.
    pub fn failing(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let current = self.current();
        let failing = current.outboxes.iter().filter_map(|outbox| {
            let error = outbox.failing()?;
            Some((outbox.name.clone(), error))
        });
        failing.collect()
    }

    /// What is recorded of connections of a local workload.
    pub fn for_workload<'a>(
        &self,
        namespace: &str,
        label: impl Fn(&str) -> Option<&'a str>,
        side: Side,
    ) -> Arc<Recording> {
        let current = self.current();
        let chain = current.settings.of_workload(namespace, label);
        current.recording(chain, side)
    }

    /// What is recorded of requests that a waypoint serves.
    pub fn for_requests(
        &self,
        waypoint: &GatewayKey,
        class: &str,
        service: Option<&ServiceKey>,
    ) -> Arc<Recording> {
        let current = self.current();
        let chain = current.settings.of_requests(waypoint, class, service);
        current.recording(chain, Side::Server)
    }

    fn current(&self) -> Arc<Current> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Current {
    fn recording(&self, chain: Chain, side: Side) -> Arc<Recording> {
        let mut recordings = self
            .recordings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // As many as there are combinations of objects that hold together.
        let entry = recordings.entry((chain, side));
        let chain = entry.key().0.clone();
        entry
            .or_insert_with(|| Arc::new(self.compile(self.settings.plan(&chain, side))))
            .clone()
    }

    fn outbox(&self, name: &str) -> Option<Arc<Outbox>> {
        let mut found = self.outboxes.iter().filter(|one| *one.name == *name);
        found.next().cloned()
    }

    fn compile(&self, plan: Plan) -> Recording {
        let mut logs = Vec::new();
        for log in &plan.logs {
            let to = match &log.to {
                LogTo::Lines(LogFormat::Own) => Some(To::Own),
                LogTo::Lines(format) => Some(To::Lines(format.clone())),
                LogTo::Collector(name) => self.outbox(name).map(To::Outbox),
            };
            logs.extend(to.map(|to| Sink {
                to,
                filter: log.filter.clone(),
                sample: Sample::new(log.sampling),
            }));
        }
        let spans = plan.tracing.collectors.iter();
        Recording {
            spans: spans.filter_map(|name| self.outbox(name)).collect(),
            headers: headers(&plan),
            only_own: matches!(
                logs.as_slice(),
                [Sink {
                    to: To::Own,
                    filter: None,
                    sample: Sample { share: ALWAYS, .. }
                }]
            ),
            logs,
            plan,
        }
    }
}

/// Names of headers in texts, expressions and tags.
fn headers(plan: &Plan) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut add = |name: &str| {
        let name: Arc<str> = name.to_ascii_lowercase().into();
        let wanted = !name.is_empty() && !name.starts_with(':') && !format::is_secret(&name);
        if wanted && names.len() < HEADERS_MAX && !names.contains(&name) {
            names.push(name);
        }
    };
    let of_commands = |text: &str, add: &mut dyn FnMut(&str)| {
        for part in text.split("%REQ(").skip(1) {
            let argument = part.split([')', '%']).next().unwrap_or_default();
            argument.split('?').for_each(&mut *add);
        }
    };
    for log in &plan.logs {
        match &log.to {
            LogTo::Lines(LogFormat::Text(text)) => of_commands(text, &mut add),
            LogTo::Lines(LogFormat::Json(fields)) => fields
                .iter()
                .for_each(|(_, text)| of_commands(text, &mut add)),
            LogTo::Lines(LogFormat::Istio) => add("x-forwarded-for"),
            LogTo::Lines(LogFormat::Own) | LogTo::Collector(_) => {}
        }
        if let Some(filter) = &log.filter {
            in_expression(filter.text(), &mut add);
        }
    }
    plan.metrics
        .expressions()
        .for_each(|one| in_expression(one.text(), &mut add));
    for (_, tag) in &plan.tracing.tags {
        match tag {
            TagValue::Header { name, .. } => add(name),
            TagValue::Formatter(text) => of_commands(text, &mut add),
            TagValue::Literal(_) | TagValue::Environment { .. } => {}
        }
    }
    names
}

/// Names in `headers['name']`.
fn in_expression(text: &str, add: &mut impl FnMut(&str)) {
    for part in text.split("headers[").skip(1) {
        let quoted = part.trim_start().trim_start_matches(['\'', '"']);
        add(quoted.split(['\'', '"']).next().unwrap_or_default());
    }
}

impl Recording {
    /// Whether a connection or request that went well leaves a trace in any log.
    pub fn logs_anything(&self) -> bool {
        match self.only_own {
            true => crate::request_log::is_wanted(),
            false => !self.logs.is_empty(),
        }
    }

    /// Writes what has ended into every log that takes it.
    pub fn log(&self, logged: &dyn Logged) {
        if self.only_own {
            return logged.own();
        }
        let mut attributes = None;
        for sink in &self.logs {
            let takes = sink.filter.as_ref().is_none_or(|filter| {
                filter.is_true(attributes.get_or_insert_with(|| logged.attributes()))
            });
            if !takes || !sink.sample.takes() {
                continue;
            }
            match &sink.to {
                To::Own => logged.own(),
                To::Lines(format) => {
                    let line = format::line(logged, format);
                    tracing::info!(target: "access.line", "{line}");
                }
                To::Outbox(outbox) => outbox.push_log(format::record(logged)),
            }
        }
    }
}
