//! What is recorded of connections and requests: Telemetry objects and the providers of the mesh configuration, in the
//! form that agents and waypoints merge.
//!
//! Each Telemetry object stays a resource of its own; whoever records merges those that hold for it, from the mesh to the
//! service, and the nearest wins. `karst_telemetry::settings` says how.
//!
//! Source of the semantics: Istio's reference of Telemetry and of MeshConfig.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    name::{PolicyKey, ServiceKey},
    traffic::{Secret, UpstreamTls},
    waypoint_policy::PolicyTarget,
};

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Telemetry {
    /// The providers, and which of them hold where nobody says. There is one.
    Mesh(MeshTelemetry),
    /// A Telemetry object.
    Scoped(ScopedTelemetry),
}

/// Name of the resource that holds [`MeshTelemetry`]; a name without a slash is no object's.
pub const MESH: &str = "mesh";

impl Telemetry {
    /// Its name on the wire: `mesh`, or `<namespace>/<name>`.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Mesh(_) => MESH.into(),
            Self::Scoped(scoped) => scoped.key.to_string().into(),
        }
    }
}

/// What the mesh configuration says: `extensionProviders` and `defaultProviders`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshTelemetry {
    pub providers: Vec<Provider>,
    /// Names of providers.
    pub default_tracing: Vec<Arc<str>>,
    pub default_metrics: Vec<Arc<str>>,
    pub default_access_logging: Vec<Arc<str>>,
    /// `defaultConfig.tracing.sampling`, in hundredths of a percent; `None`: 1 %.
    pub sampling: Option<u32>,
}

/// Somebody who takes what is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    pub name: Arc<str>,
    pub kind: ProviderKind,
}

/// What a provider is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderKind {
    /// An OTLP receiver: traces, access logs, metrics.
    Opentelemetry(Collector),
    /// Whoever scrapes `/metrics`.
    Prometheus,
    /// Standard error of the proxy.
    AccessLogFile(LogFormat),
}

/// An OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collector {
    /// A service of the mesh.
    pub service: ServiceKey,
    /// Port of the service.
    pub port: u16,
    pub protocol: OtlpProtocol,
    /// Of one export, milliseconds.
    pub timeout_ms: u32,
    /// Headers of each export (metadata, with gRPC), in their order; what gives access often stands there.
    pub headers: Vec<(Arc<str>, Secret)>,
    /// How connections to it are secured, as a DestinationRule or a BackendTLSPolicy of its service says; `None`: in
    /// plain text.
    pub tls: Option<Box<UpstreamTls>>,
}

/// How OTLP is spoken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtlpProtocol {
    Grpc,
    /// HTTP/protobuf; of traces as the provider has it, of logs and metrics beside it.
    Http {
        path: Arc<str>,
    },
}

/// The form of access-log lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// As the program logs everything else.
    #[default]
    Own,
    /// Istio's default line, of Envoy's fields.
    Istio,
    /// Envoy's `%COMMANDS%` in a text.
    Text(Arc<str>),
    /// One JSON object: key, and a text with Envoy's `%COMMANDS%`.
    Json(Vec<(Arc<str>, Arc<str>)>),
}

/// A Telemetry object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopedTelemetry {
    pub key: PolicyKey,
    /// Seconds since the epoch: of two for the same, the older holds.
    pub created: i64,
    pub scope: Scope,
    pub tracing: Vec<Tracing>,
    pub metrics: Vec<Metrics>,
    pub access_logs: Vec<AccessLog>,
}

/// Whom a Telemetry object is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Everybody: without selector, in the root namespace.
    Mesh,
    /// Everybody of its namespace.
    Namespace,
    /// Workloads of its namespace (of all, in the root namespace) with these labels.
    Workloads {
        labels: Vec<(Arc<str>, Arc<str>)>,
        everywhere: bool,
    },
    /// Requests that waypoints serve.
    Targets(Vec<PolicyTarget>),
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

/// Traces. What is `None` or empty is as the next wider scope has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracing {
    pub mode: Mode,
    pub providers: Vec<Arc<str>>,
    /// Hundredths of a percent, up to 10,000.
    pub sampling: Option<u32>,
    /// No span is sent; the context is passed on.
    pub disabled: Option<bool>,
    /// The context is left as it came.
    pub propagation_disabled: Option<bool>,
    /// Tags without those that Istio adds of itself.
    pub istio_tags: Option<bool>,
    pub tags: Vec<(Arc<str>, TagValue)>,
}

/// The value of a span's further tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagValue {
    Literal(Arc<str>),
    Header {
        /// In lower case.
        name: Arc<str>,
        default: Arc<str>,
    },
    /// A variable of the waypoint.
    Environment {
        name: Arc<str>,
        default: Arc<str>,
    },
    /// Envoy's `%COMMANDS%`.
    Formatter(Arc<str>),
}

/// Changes of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    pub providers: Vec<Arc<str>>,
    pub overrides: Vec<MetricsOverride>,
    /// Between two pushes, milliseconds.
    pub interval_ms: Option<u32>,
}

/// A change of one metric, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsOverride {
    /// `None`: all.
    pub metric: Option<Metric>,
    pub mode: Mode,
    pub disabled: Option<bool>,
    pub tags: Vec<(Arc<str>, TagChange)>,
}

/// Istio's metrics that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Metric {
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
}

/// What happens to a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagChange {
    Remove,
    /// A CEL expression.
    Set(Arc<str>),
}

/// Access logs. What is `None` or empty is as the next wider scope has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLog {
    pub mode: Mode,
    pub providers: Vec<Arc<str>>,
    pub disabled: Option<bool>,
    /// A CEL expression: only what it is true of is logged.
    pub filter: Option<Arc<str>>,
    /// Hundredths of a percent, up to 10,000, of what the filter takes.
    pub sampling: Option<u32>,
}
