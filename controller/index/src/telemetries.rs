//! From a Telemetry object to what agents and waypoints merge, and from the mesh configuration to its providers.
//!
//! What cannot be read is left out, so that what can be recorded is, and said in the object's status. Names of providers,
//! and what is targeted, are looked up by [`crate::index`].

use std::{collections::BTreeMap, sync::Arc};

use karst_k8s_api::{
    istio::{
        Telemetry,
        mesh_config::{HeaderValue, LogForm, Otlp, ProviderSpec, is_header_value},
        telemetry::{
            self as source, AccessLogging, CustomTag, Metric as Named, MetricsOverride as Change,
            WorkloadMode,
        },
    },
    labels,
};
use karst_model::{
    name::{PolicyKey, ServiceKey},
    telemetry::{
        AccessLog, Collector, LogFormat, Metric, Metrics, MetricsOverride, Mode, OtlpProtocol,
        ProviderKind, Scope, ScopedTelemetry, TagChange, TagValue, Tracing,
    },
    traffic::Secret,
};

use crate::{
    conditions::{Condition, ConditionType},
    facts::Created,
    request_policies::{TargetRef, target},
};

/// Longest expression, in bytes.
const EXPRESSION_BYTES_MAX: usize = 4096;

/// What comes of a Telemetry object by itself.
#[derive(Debug, PartialEq)]
pub(crate) struct TelemetryFacts {
    /// Its scope is right except for targets, which are looked up.
    pub(crate) scoped: ScopedTelemetry,
    /// `None`: it has no targets.
    pub(crate) targets: Option<Vec<TargetRef>>,
    /// Names of providers that it refers to.
    pub(crate) providers: Vec<Arc<str>>,
    pub(crate) complaints: Vec<Condition>,
}

/// A condition of an object that does not hold as written.
pub(crate) fn refused(reason: &'static str, message: String) -> Condition {
    Condition::no(ConditionType::Accepted, reason, message)
}

impl TelemetryFacts {
    pub(crate) fn new(key: PolicyKey, object: &Telemetry, root_namespace: &str) -> Self {
        let spec = &object.spec;
        let mut reader = Reader::default();
        let in_root = *key.namespace == *root_namespace;
        let selector = spec.selector.as_ref();
        let labels: Vec<(Arc<str>, Arc<str>)> = selector
            .iter()
            .flat_map(|selector| &selector.match_labels)
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect();
        let references: Vec<_> = spec.target_ref.iter().chain(&spec.target_refs).collect();
        let mut targets = Vec::new();
        for reference in &references {
            match target(&key.namespace, reference, root_namespace) {
                Ok(found) => targets.push(found),
                Err(message) => reader.refuse("Invalid", message),
            }
        }
        let scope = match (references.is_empty(), labels.is_empty(), in_root) {
            (false, ..) => Scope::Targets(Vec::new()),
            (true, false, everywhere) => Scope::Workloads { labels, everywhere },
            (true, true, true) => Scope::Mesh,
            (true, true, false) => Scope::Namespace,
        };
        let scoped = ScopedTelemetry {
            key,
            created: Created::of(&object.metadata).0,
            scope,
            tracing: spec.tracing.iter().map(|one| reader.tracing(one)).collect(),
            metrics: spec.metrics.iter().map(|one| reader.metrics(one)).collect(),
            access_logs: reader.access_logs(object),
        };
        Self {
            scoped,
            targets: (!references.is_empty()).then_some(targets),
            providers: reader.providers,
            complaints: reader.complaints,
        }
    }

    /// Keys of the labels by which it selects workloads.
    pub(crate) fn label_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let labels = match &self.scoped.scope {
            Scope::Workloads { labels, .. } => labels.as_slice(),
            _ => &[],
        };
        labels.iter().map(|(key, _)| key)
    }
}

#[derive(Default)]
struct Reader {
    providers: Vec<Arc<str>>,
    complaints: Vec<Condition>,
}

fn mode(mode: Option<WorkloadMode>) -> Mode {
    match mode {
        None | Some(WorkloadMode::ClientAndServer) => Mode::ClientAndServer,
        Some(WorkloadMode::Client) => Mode::Client,
        Some(WorkloadMode::Server) => Mode::Server,
    }
}

impl Reader {
    fn refuse(&mut self, reason: &'static str, message: String) {
        self.complaints.push(refused(reason, message));
    }

    fn named(&mut self, providers: &[source::ProviderRef]) -> Vec<Arc<str>> {
        let names: Vec<Arc<str>> = providers
            .iter()
            .map(|one| one.name.as_str().into())
            .collect();
        self.providers.extend(names.iter().cloned());
        names
    }

    fn tracing(&mut self, from: &source::Tracing) -> Tracing {
        let mut sampling = None;
        if let Some(percent) = from.random_sampling_percentage {
            match (0.0..=100.0).contains(&percent) {
                true => sampling = Some((percent * 100.0).round() as u32),
                false => self.refuse(
                    "UnsupportedValue",
                    format!(
                        "tracing.randomSamplingPercentage {percent} is no percentage: as if unset"
                    ),
                ),
            }
        }
        if from.use_request_id_for_trace_sampling == Some(true) {
            self.refuse(
                "UnsupportedValue",
                "tracing.useRequestIdForTraceSampling is not honoured: traceparent and the percentage decide".to_owned(),
            );
        }
        let tags = from
            .custom_tags
            .iter()
            .filter_map(|(name, tag)| Some((name.as_str().into(), self.tag(name, tag)?)));
        let tags = tags.collect();
        Tracing {
            mode: mode(from.r#match.as_ref().and_then(|one| one.mode)),
            providers: self.named(&from.providers),
            sampling,
            disabled: from.disable_span_reporting,
            propagation_disabled: from.disable_context_propagation,
            istio_tags: from.enable_istio_tags,
            tags,
        }
    }

    fn tag(&mut self, name: &str, tag: &CustomTag) -> Option<TagValue> {
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        if let Some(literal) = &tag.literal {
            return Some(TagValue::Literal(literal.value.as_str().into()));
        }
        if let Some(header) = &tag.header {
            return Some(TagValue::Header {
                name: header.name.to_ascii_lowercase().into(),
                default: text(&header.default_value),
            });
        }
        if let Some(variable) = &tag.environment {
            return Some(TagValue::Environment {
                name: variable.name.as_str().into(),
                default: text(&variable.default_value),
            });
        }
        if let Some(formatter) = &tag.formatter {
            return Some(TagValue::Formatter(formatter.value.as_str().into()));
        }
        self.refuse(
            "UnsupportedValue",
            format!("tracing.customTags {name} has no value: left out"),
        );
        None
    }

    fn metrics(&mut self, from: &source::Metrics) -> Metrics {
        Metrics {
            providers: self.named(&from.providers),
            overrides: from
                .overrides
                .iter()
                .filter_map(|change| self.change(change))
                .collect(),
            interval_ms: from
                .reporting_interval
                .as_ref()
                .and_then(|interval| self.interval(&interval.0)),
        }
    }

    fn interval(&mut self, text: &str) -> Option<u32> {
        let read = karst_k8s_api::istio::mesh_config::milliseconds(text);
        if read.is_none() {
            self.refuse(
                "UnsupportedValue",
                format!(
                    "metrics.reportingInterval {text:?} is no duration such as 15s: as if unset"
                ),
            );
        }
        read
    }

    fn change(&mut self, from: &Change) -> Option<MetricsOverride> {
        let of = from.r#match.as_ref();
        if let Some(custom) = of.and_then(|of| of.custom_metric.as_deref()) {
            self.refuse(
                "UnsupportedValue",
                format!(
                    "metrics.overrides of customMetric {custom}: there is no such metric, left out"
                ),
            );
            return None;
        }
        let metric = match of.and_then(|of| of.metric) {
            None | Some(Named::AllMetrics) => None,
            Some(Named::RequestCount) => Some(Metric::RequestCount),
            Some(Named::RequestDuration) => Some(Metric::RequestDuration),
            Some(Named::RequestSize) => Some(Metric::RequestSize),
            Some(Named::ResponseSize) => Some(Metric::ResponseSize),
            Some(Named::TcpOpenedConnections) => Some(Metric::TcpOpenedConnections),
            Some(Named::TcpClosedConnections) => Some(Metric::TcpClosedConnections),
            Some(Named::TcpSentBytes) => Some(Metric::TcpSentBytes),
            Some(Named::TcpReceivedBytes) => Some(Metric::TcpReceivedBytes),
            Some(Named::GrpcRequestMessages | Named::GrpcResponseMessages) => {
                self.refuse(
                    "UnsupportedValue",
                    "metrics.overrides of gRPC messages: these are not counted, left out"
                        .to_owned(),
                );
                return None;
            }
        };
        Some(MetricsOverride {
            metric,
            mode: mode(of.and_then(|of| of.mode)),
            disabled: from.disabled,
            tags: self.label_changes(&from.tag_overrides),
        })
    }

    fn label_changes(
        &mut self,
        from: &BTreeMap<String, source::TagOverride>,
    ) -> Vec<(Arc<str>, TagChange)> {
        let mut changes = Vec::new();
        for (name, change) in from {
            let to = match (change.operation, change.value.as_deref()) {
                (Some(source::TagOperation::Remove), _) => TagChange::Remove,
                (_, Some(expression)) if !expression.is_empty() => {
                    match self.expression("metrics.overrides.tagOverrides", expression) {
                        Some(expression) => TagChange::Set(expression),
                        None => continue,
                    }
                }
                _ => {
                    self.refuse(
                        "UnsupportedValue",
                        format!("metrics.overrides.tagOverrides {name} has no value: left out"),
                    );
                    continue;
                }
            };
            changes.push((name.as_str().into(), to));
        }
        changes
    }

    fn access_log(&mut self, from: &AccessLogging) -> AccessLog {
        let expression = from
            .filter
            .as_ref()
            .and_then(|one| one.expression.as_deref());
        let filter =
            expression.and_then(|text| self.expression("accessLogging.filter.expression", text));
        AccessLog {
            mode: mode(from.r#match.as_ref().and_then(|one| one.mode)),
            providers: self.named(&from.providers),
            disabled: from.disabled,
            filter,
            sampling: None,
        }
    }

    /// The share of the access log that the object's annotation asks for; the Telemetry API has no field for it.
    fn log_sampling(&mut self, object: &Telemetry) -> Option<u32> {
        let annotations = object.metadata.annotations.as_ref()?;
        let text = annotations.get(labels::ACCESS_LOG_SAMPLING)?;
        let percent = text.trim().parse::<f64>().ok();
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        if percent.is_none() {
            self.refuse(
                "UnsupportedValue",
                format!(
                    "annotation {} {text:?} is no percentage: as if unset",
                    labels::ACCESS_LOG_SAMPLING
                ),
            );
        }
        percent.map(|percent| (percent * 100.0).round() as u32)
    }

    /// The rules for access logs, each with the object's share; a share without a rule is one.
    fn access_logs(&mut self, object: &Telemetry) -> Vec<AccessLog> {
        let sampling = self.log_sampling(object);
        let rules = object.spec.access_logging.iter();
        let mut rules: Vec<AccessLog> = rules.map(|one| self.access_log(one)).collect();
        if rules.is_empty() && sampling.is_some() {
            rules.push(AccessLog::default());
        }
        rules.iter_mut().for_each(|rule| rule.sampling = sampling);
        rules
    }

    /// A CEL expression that can be compiled.
    fn expression(&mut self, field: &str, text: &str) -> Option<Arc<str>> {
        let wrong = match text.len() > EXPRESSION_BYTES_MAX {
            true => Some(format!("is longer than {EXPRESSION_BYTES_MAX} bytes")),
            false => cel::Program::compile(text)
                .err()
                .map(|error| format!("is no CEL expression: {error}")),
        };
        match wrong {
            None => Some(text.into()),
            Some(wrong) => {
                self.refuse(
                    "UnsupportedValue",
                    format!("{field} {wrong}; it holds as if unset"),
                );
                None
            }
        }
    }
}

/// The headers of exports, with what stands in the environment put in.
fn headers(
    otlp: &Otlp,
    environment: &BTreeMap<Arc<str>, Secret>,
) -> Result<Vec<(Arc<str>, Secret)>, String> {
    let value = |name: &str, value: &HeaderValue| match value {
        HeaderValue::Text(text) => Ok(Secret::new(text)),
        HeaderValue::Environment(variable) => match environment.get(variable.as_str()) {
            Some(value) if is_header_value(value.expose()) => Ok(value.clone()),
            Some(_) => Err(format!(
                "variable {variable} of the controller's environment has a value that header {name} cannot have: nothing is sent"
            )),
            None => Err(format!(
                "header {name} is to be in variable {variable} of the controller's environment (chart value controller.env), which is not set: nothing is sent"
            )),
        },
    };
    let headers = otlp.headers.iter();
    headers
        .map(|(name, source)| Ok((name.as_str().into(), value(name, source)?)))
        .collect()
}

/// A provider as proxies know it; `service`: the one that a collector names. `None`: it is nothing to record for.
pub(crate) fn provider(
    spec: &ProviderSpec,
    environment: &BTreeMap<Arc<str>, Secret>,
    service: impl FnOnce(&str, u16) -> Result<ServiceKey, String>,
) -> Result<Option<ProviderKind>, String> {
    Ok(match spec {
        ProviderSpec::Prometheus => Some(ProviderKind::Prometheus),
        ProviderSpec::AccessLogFile(form) => Some(ProviderKind::AccessLogFile(log_format(form))),
        ProviderSpec::Opentelemetry(otlp) => Some(ProviderKind::Opentelemetry(Collector {
            service: service(&otlp.service, otlp.port)?,
            port: otlp.port,
            protocol: match &otlp.http_path {
                None => OtlpProtocol::Grpc,
                Some(path) => OtlpProtocol::Http {
                    path: path.as_str().into(),
                },
            },
            timeout_ms: otlp.timeout_ms,
            headers: headers(otlp, environment)?,
            tls: None,
        })),
        ProviderSpec::ExtAuthzHttp(_) | ProviderSpec::ExtAuthzGrpc(_) => None,
    })
}

fn log_format(form: &LogForm) -> LogFormat {
    match form {
        LogForm::Istio => LogFormat::Istio,
        LogForm::Text(text) => LogFormat::Text(text.as_str().into()),
        LogForm::Json(fields) => LogFormat::Json(
            fields
                .iter()
                .map(|(key, text)| (key.as_str().into(), text.as_str().into()))
                .collect(),
        ),
    }
}
