//! Istio's metrics of requests, under Istio's names and with its labels in its order, so that dashboards made for it work
//! unchanged.
//!
//! A proxy asks for the [`Handles`] of a label set once and counts many requests through them.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use super::{
    Registry,
    tcp::{Peer, Reporter, SERIES_MAX, Security, ServiceLabels, encode_labels},
};

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
    /// A token or an external authorizer refused the request.
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

/// A number as a label's value, without an allocation.
struct Digits {
    text: [u8; 10],
    len: usize,
}

impl std::fmt::Write for Digits {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let room = self.text.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Digits {
    fn of(number: u32) -> Self {
        let mut digits = Self {
            text: [0; 10],
            len: 0,
        };
        // Ten digits hold every u32.
        let _fits = write!(digits, "{number}");
        digits
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

impl EncodeLabelSet for HttpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        let code = Digits::of(self.response_code.into());
        let grpc = self.grpc_status.map(Digits::of);
        let security = match self.security {
            Security::Unknown => "unknown",
            Security::MutualTls => "mutual_tls",
        };
        let labels: [(&str, &str); 27] = [
            ("reporter", self.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.app),
            ("source_version", &source.version),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.app),
            ("destination_version", &destination.version),
            ("destination_service", &service.host),
            (
                "destination_canonical_service",
                &destination.canonical_service,
            ),
            (
                "destination_canonical_revision",
                &destination.canonical_revision,
            ),
            ("destination_service_name", &service.name),
            ("destination_service_namespace", &service.namespace),
            ("destination_cluster", &destination.cluster),
            ("request_protocol", self.protocol.as_str()),
            ("response_code", code.as_str()),
            ("response_flags", self.flag.as_str()),
            ("connection_security_policy", security),
            ("source_zone", &source.zone),
            ("destination_zone", &destination.zone),
            // Istio leaves it empty for what is no gRPC; an empty value is what no label is.
            (
                "grpc_response_status",
                grpc.as_ref().map_or("", Digits::as_str),
            ),
        ];
        let known = if self.grpc_status.is_some() { 27 } else { 26 };
        encode_labels(encoder, labels[..known].iter())
    }
}

/// The families, registered once per program.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<HttpLabels, Counter>,
    durations: Family<HttpLabels, Histogram, fn() -> Histogram>,
    request_bytes: Family<HttpLabels, Histogram, fn() -> Histogram>,
    response_bytes: Family<HttpLabels, Histogram, fn() -> Histogram>,
    overflowed: Counter,
    /// Label sets in use: at most [`SERIES_MAX`].
    series: Arc<AtomicUsize>,
}

/// The counters of one label set.
#[derive(Clone)]
pub struct Handles {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl Handles {
    /// Counts one request; the duration in milliseconds, the bodies in bytes.
    pub fn count(&self, duration_ms: f64, request_bytes: u64, response_bytes: u64) {
        self.requests.inc();
        self.duration.observe(duration_ms);
        self.request_bytes.observe(request_bytes as f64);
        self.response_bytes.observe(response_bytes as f64);
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl HttpMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        let histograms = |name, help| {
            let family = Family::new_with_constructor(histogram as fn() -> Histogram);
            registry.register(name, help, family)
        };
        Self {
            requests: registry.register("istio_requests", "Requests", Family::default()),
            durations: histograms(
                "istio_request_duration_milliseconds",
                "Time from a request's head to its response's last byte",
            ),
            request_bytes: histograms("istio_request_bytes", "Sizes of request bodies"),
            response_bytes: histograms("istio_response_bytes", "Sizes of response bodies"),
            overflowed: registry.register(
                "karst_request_series_overflow",
                "Requests counted without workload labels because the label set bound was reached",
                Counter::default(),
            ),
            series: Arc::default(),
        }
    }

    /// The counters of requests with these labels.
    pub fn handles(&self, labels: &HttpLabels) -> Handles {
        let labels = &self.bounded(labels);
        Handles {
            requests: self.requests.get_or_create_owned(labels),
            duration: self.durations.get_or_create_owned(labels),
            request_bytes: self.request_bytes.get_or_create_owned(labels),
            response_bytes: self.response_bytes.get_or_create_owned(labels),
        }
    }

    fn bounded(&self, labels: &HttpLabels) -> HttpLabels {
        if self.requests.get(labels).is_some() {
            return labels.clone();
        }
        if self.series.fetch_add(1, Ordering::Relaxed) < SERIES_MAX {
            return labels.clone();
        }
        self.series.fetch_sub(1, Ordering::Relaxed);
        self.overflowed.inc();
        HttpLabels {
            source: Arc::default(),
            destination: Arc::default(),
            service: Arc::default(),
            ..labels.clone()
        }
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
        metrics.handles(&labels(None)).count(3.0, 0, 17);
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
        metrics.handles(&labels(Some(14))).count(1.0, 0, 0);
        assert!(registry.encode().contains("grpc_response_status=\"14\""));
    }
}
