//! Istio's metrics of requests, under Istio's names and with its labels in its order, so that dashboards made for it work
//! unchanged.
//!
//! A proxy asks for the [`Handles`] of a label set once and counts many requests through them.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use karst_model::telemetry::Metric;
use serde_json::Map;

use super::{
    Registry,
    plan::{Attributes, MetricPlan, folded_text, label_text},
    series::{Bounds, CounterOf, Party, Row, Series, Values, Wanted, write_counter},
    tcp::{Peer, Reporter, Security, ServiceLabels},
    text::{self, Lines},
};

/// Label sets of requests.
const SERIES_MAX: usize = 5_000;

/// Upper bounds of the buckets of Istio's histograms: milliseconds, or bytes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Http,
    Grpc,
}

impl RequestProtocol {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// How a request went wrong, as Envoy's `%RESPONSE_FLAGS%` and Istio's label have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RequestFlag {
    #[default]
    None,
    /// No route matched.
    NoRoute,
    /// The route's backend does not exist.
    NoCluster,
    /// The backend has no endpoint that may be chosen.
    NoHealthyUpstream,
    /// No connection to the endpoint.
    UpstreamFailure,
    /// The endpoint closed the connection.
    UpstreamTermination,
    /// The endpoint reset the request.
    UpstreamReset,
    /// The endpoint did not answer in time.
    UpstreamTimeout,
    /// The endpoint's answer is not HTTP.
    UpstreamProtocol,
    /// All tries failed.
    RetryLimit,
    /// A bound of one service was reached.
    Overflow,
    /// A bound of the whole program was reached.
    Overload,
    /// A rate limit was reached.
    RateLimited,
    /// A fault of a route answered it.
    FaultInjected,
    /// A fault of a route delayed it.
    DelayInjected,
    /// A token or an external authorizer refused the request, or a changed policy cut it while it was in flight.
    Unauthorized,
    /// The client went away.
    DownstreamTermination,
    /// The client's request is malformed.
    DownstreamProtocol,
}

impl RequestFlag {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamFailure => "UF",
            Self::UpstreamTermination => "UC",
            Self::UpstreamReset => "UR",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamProtocol => "UPE",
            Self::RetryLimit => "URX",
            Self::Overflow => "UO",
            Self::Overload => "OM",
            Self::RateLimited => "RL",
            Self::FaultInjected => "FI",
            Self::DelayInjected => "DI",
            Self::Unauthorized => "UAEX",
            Self::DownstreamTermination => "DC",
            Self::DownstreamProtocol => "DPE",
        }
    }
}

/// The labels of one kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpLabels {
    pub reporter: Reporter,
    pub source: Arc<Peer>,
    pub destination: Arc<Peer>,
    pub service: Arc<ServiceLabels>,
    pub protocol: RequestProtocol,
    /// 0: no response was sent.
    pub response_code: u16,
    pub grpc_status: Option<u32>,
    pub flag: RequestFlag,
    pub security: Security,
}

/// Names of the labels of requests, in Istio's order. The last is there for gRPC alone.
pub const LABELS: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "response_flags",
    "connection_security_policy",
    "source_zone",
    "destination_zone",
    "grpc_response_status",
];

impl HttpLabels {
    /// Hands the pairs to `work`.
    fn with_pairs<T>(&self, work: impl FnOnce(&[(&str, &str)]) -> T) -> T {
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        let code = self.response_code.to_string();
        let grpc = self.grpc_status.map(|status| status.to_string());
        let values: [&str; 27] = [
            self.reporter.as_str(),
            &source.workload,
            &source.canonical_service,
            &source.canonical_revision,
            &source.namespace,
            &source.principal,
            &source.app,
            &source.version,
            &source.cluster,
            &destination.workload,
            &destination.namespace,
            &destination.principal,
            &destination.app,
            &destination.version,
            &service.host,
            &destination.canonical_service,
            &destination.canonical_revision,
            &service.name,
            &service.namespace,
            &destination.cluster,
            self.protocol.as_str(),
            &code,
            self.flag.as_str(),
            self.security.as_str(),
            &source.zone,
            &destination.zone,
            grpc.as_deref().unwrap_or_default(),
        ];
        let pairs: [(&str, &str); 27] = std::array::from_fn(|index| (LABELS[index], values[index]));
        // Istio leaves it empty for what is no gRPC; an empty value is what no label is.
        let known = if self.grpc_status.is_some() { 27 } else { 26 };
        work(&pairs[..known])
    }

    /// The labels that stand for everybody whose own are folded away.
    fn folded(&self) -> Self {
        Self {
            source: Arc::default(),
            destination: Arc::default(),
            service: Arc::default(),
            ..self.clone()
        }
    }
}

/// A histogram of whole numbers: the buckets are exact, and so is the sum.
#[derive(Debug, Default)]
struct Histogram {
    /// One per bound, and one beyond all.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts `value` whole units, of which `per_unit` are one of the bounds.
    fn observe(&self, value: u64, bounds: &[u64; BUCKETS.len()]) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn absorb(&self, other: &Self) {
        for (to, from) in self.buckets.iter().zip(&other.buckets) {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.sum
            .fetch_add(other.sum.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn load(&self) -> ([u64; BUCKETS.len() + 1], u64) {
        let buckets = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        (buckets, self.sum.load(Ordering::Relaxed))
    }
}

/// Bounds in bytes. None is a whole number below one.
const BYTES: [u64; BUCKETS.len()] = scaled(1.0);
/// Bounds in nanoseconds.
const NANOSECONDS: [u64; BUCKETS.len()] = scaled(1e6);

const fn scaled(by: f64) -> [u64; BUCKETS.len()] {
    let mut bounds = [0; BUCKETS.len()];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (BUCKETS[index] * by) as u64;
        index += 1;
    }
    bounds
}

/// What is counted under one label set.
#[derive(Debug, Default)]
struct HttpValues {
    requests: AtomicU64,
    duration: Histogram,
    request: Histogram,
    response: Histogram,
}

impl Values for HttpValues {
    const LINES: usize = 3 * (BUCKETS.len() + 3) + 1;

    fn absorb(&self, other: &Self) {
        self.requests
            .fetch_add(other.requests.load(Ordering::Relaxed), Ordering::Relaxed);
        self.duration.absorb(&other.duration);
        self.request.absorb(&other.request);
        self.response.absorb(&other.response);
    }

    fn mark(&self) -> u64 {
        // Whatever else is counted, one of these is: metrics that are off have no row.
        let histograms = [&self.duration, &self.request, &self.response];
        let counted = histograms.iter().flat_map(|one| &one.buckets);
        counted.fold(self.requests.load(Ordering::Relaxed), |sum, one| {
            sum.wrapping_add(one.load(Ordering::Relaxed))
        })
    }
}

/// The metrics that the Telemetry API can name, with their bits.
const NAMED: [(Metric, u32); 4] = [
    (Metric::RequestCount, 1),
    (Metric::RequestDuration, 2),
    (Metric::RequestSize, 4),
    (Metric::ResponseSize, 8),
];

const REQUESTS: CounterOf<HttpValues> = CounterOf {
    bit: 1,
    name: "istio_requests",
    help: "Requests",
    value: |values| values.requests.load(Ordering::Relaxed),
};

struct HistogramOf {
    bit: u32,
    name: &'static str,
    help: &'static str,
    of: fn(&HttpValues) -> &Histogram,
    /// Units that are one of the bounds.
    per_unit: f64,
}

const HISTOGRAMS: [HistogramOf; 3] = [
    HistogramOf {
        bit: 2,
        name: "istio_request_duration_milliseconds",
        help: "Time from a request's head to its response's last byte",
        of: |values| &values.duration,
        per_unit: 1e6,
    },
    HistogramOf {
        bit: 4,
        name: "istio_request_bytes",
        help: "Sizes of request bodies",
        of: |values| &values.request,
        per_unit: 1.0,
    },
    HistogramOf {
        bit: 8,
        name: "istio_response_bytes",
        help: "Sizes of response bodies",
        of: |values| &values.response,
        per_unit: 1.0,
    },
];

/// Writes the lines of a histogram. Label sets that different rows share are one.
fn write_histogram(rows: &[Arc<Row<HttpValues>>], metric: &HistogramOf, out: &mut Lines) {
    let mut of = rows.iter().filter(|row| row.has(metric.bit)).peekable();
    if of.peek().is_none() {
        return;
    }
    let name = metric.name;
    let out = &mut out.0;
    // Writing into a String cannot fail.
    let _ = write!(
        out,
        "# HELP {name} {}.\n# TYPE {name} histogram\n",
        metric.help
    );
    while let Some(row) = of.next() {
        let (mut buckets, mut sum) = (metric.of)(&row.values).load();
        while let Some(same) = of.next_if(|other| other.labels() == row.labels()) {
            let (more, further) = (metric.of)(&same.values).load();
            buckets.iter_mut().zip(more).for_each(|(to, by)| *to += by);
            sum += further;
        }
        let (labels, mut count) = (row.labels(), 0);
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, bound) in buckets.iter().zip(BUCKETS) {
            count += bucket;
            let _ = writeln!(
                out,
                "{name}_bucket{{{labels}{comma}le=\"{bound:?}\"}} {count}"
            );
        }
        count += buckets[BUCKETS.len()];
        let sum = sum as f64 / metric.per_unit;
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n\
             {name}_sum{{{labels}}} {sum:?}\n{name}_count{{{labels}}} {count}"
        );
    }
}

/// The metrics of a program.
#[derive(Clone)]
pub struct HttpMetrics {
    series: Arc<Series<HttpValues>>,
}

/// The counters of one label set.
#[derive(Clone)]
pub struct Handles {
    /// In the order of [`NAMED`]; `None`: the metric is off.
    rows: [Option<Arc<Row<HttpValues>>>; 4],
}

impl Handles {
    /// Counts one request and the bodies in bytes.
    pub fn count(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        let [count, time, request, response] = &self.rows;
        if let Some(row) = count {
            row.values.requests.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(row) = time {
            let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            row.values.duration.observe(nanoseconds, &NANOSECONDS);
        }
        if let Some(row) = request {
            row.values.request.observe(request_bytes, &BYTES);
        }
        if let Some(row) = response {
            row.values.response.observe(response_bytes, &BYTES);
        }
    }
}

impl HttpMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        Self::bounded(
            registry,
            Bounds {
                // A label set is more than sixty lines.
                sets: SERIES_MAX,
                bytes: 16 << 20,
                ..Bounds::default()
            },
        )
    }

    /// The same with other bounds.
    pub fn bounded(registry: &Registry, bounds: Bounds) -> Self {
        let series = Arc::new(Series::new(bounds));
        let of_page = series.clone();
        registry.register_text(move |out| {
            let rows = of_page.rows();
            write_counter(&rows, &REQUESTS, out);
            HISTOGRAMS
                .iter()
                .for_each(|metric| write_histogram(&rows, metric, out));
            let counts = of_page.counts();
            text::fullness("karst_request_series", "Requests", &counts, out);
        });
        Self { series }
    }

    /// The counters of requests with these labels.
    pub fn handles(&self, labels: &HttpLabels) -> Handles {
        self.handles_for(labels, &MetricPlan::default(), &Map::new)
    }

    /// The same as the Telemetry API has it for these requests.
    pub fn handles_for(
        &self,
        labels: &HttpLabels,
        plan: &MetricPlan,
        attributes: Attributes<'_>,
    ) -> Handles {
        let mut rows: [Option<Arc<Row<HttpValues>>>; 4] = Default::default();
        for (bits, changes) in plan.groups(&NAMED) {
            let changes = changes.as_deref();
            let text = labels.with_pairs(|pairs| label_text(pairs, changes, attributes));
            let folded = || {
                labels
                    .folded()
                    .with_pairs(|pairs| folded_text(pairs, changes))
            };
            let wanted = Wanted {
                labels: &text,
                folded: &folded,
                metrics: bits,
                parties: [labels.source.party(), labels.destination.party()],
            };
            let row = self.series.row(&wanted, Instant::now());
            for ((_, bit), slot) in NAMED.iter().zip(&mut rows) {
                if bits & bit != 0 {
                    *slot = Some(row.clone());
                }
            }
        }
        Handles { rows }
    }

    /// Only these workloads are there: series of others leave, and their counts stay in the sums.
    pub fn retire(&self, is_live: &dyn Fn(&Party) -> bool) {
        self.series.retire(is_live, Instant::now());
    }

    /// Lets series go that nobody counts in any more. Call it now and then.
    pub fn sweep(&self) {
        self.series.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(grpc_status: Option<u32>) -> HttpLabels {
        HttpLabels {
            reporter: Reporter::Waypoint,
            source: Arc::default(),
            destination: Arc::new(Peer {
                workload: "orders".into(),
                ..Peer::default()
            }),
            service: Arc::default(),
            protocol: RequestProtocol::Http,
            response_code: 503,
            grpc_status,
            flag: RequestFlag::NoHealthyUpstream,
            security: Security::MutualTls,
        }
    }

    #[test]
    fn a_request_is_counted_under_istios_names() {
        let registry = Registry::new();
        let metrics = HttpMetrics::register(&registry);
        metrics
            .handles(&labels(None))
            .count(Duration::from_millis(3), 0, 17);
        let text = registry.encode();
        let requests = text
            .lines()
            .find(|line| line.starts_with("istio_requests_total{reporter=\"waypoint\""))
            .unwrap();
        assert!(
            requests.contains("response_code=\"503\",response_flags=\"UH\""),
            "{requests}"
        );
        assert!(!requests.contains("grpc_response_status"), "{requests}");
        for name in [
            "istio_request_duration_milliseconds_sum{",
            "istio_response_bytes_sum{",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn only_grpc_has_a_grpc_status() {
        let registry = Registry::new();
        let metrics = HttpMetrics::register(&registry);
        metrics
            .handles(&labels(Some(14)))
            .count(Duration::from_millis(1), 0, 0);
        assert!(registry.encode().contains("grpc_response_status=\"14\""));
    }

    #[test]
    fn a_histogram_is_exact() {
        let registry = Registry::new();
        let metrics = HttpMetrics::register(&registry);
        let handles = metrics.handles(&labels(None));
        handles.count(Duration::from_micros(500), 0, 1);
        handles.count(Duration::from_nanos(500_001), 5, 6);
        handles.count(Duration::from_secs(7200), 0, 4_000_000);
        let text = registry.encode();
        let value = |name: &str, le: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| line.contains(le)).unwrap();
            line.rsplit_once(' ').unwrap().1.to_owned()
        };
        let time = "istio_request_duration_milliseconds_bucket{";
        assert_eq!(value(time, "le=\"0.5\""), "1");
        assert_eq!(value(time, "le=\"1.0\""), "2");
        assert_eq!(value(time, "le=\"3600000.0\""), "2");
        assert_eq!(value(time, "le=\"+Inf\""), "3");
        let sum = value("istio_request_duration_milliseconds_sum{", "");
        assert_eq!(sum, "7200001.000001");
        assert_eq!(value("istio_response_bytes_bucket{", "le=\"5.0\""), "1");
        assert_eq!(value("istio_response_bytes_sum{", ""), "4000007.0");
        assert_eq!(value("istio_requests_total{", ""), "3");
    }
}
