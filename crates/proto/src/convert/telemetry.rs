//! `karst.v1.Telemetry`. Recording protects nothing, so what this version does not know of a resource is left out, and the
//! rest of it holds; what it knows and cannot read refuses the resource.

use karst_model::{
    name::PolicyKey,
    telemetry::{
        AccessLog, Collector, LogFormat, MeshTelemetry, Metric, Metrics, MetricsOverride, Mode,
        OtlpProtocol, Provider, ProviderKind, Scope, ScopedTelemetry, TagChange, TagValue,
        Telemetry, Tracing,
    },
    traffic::Secret,
};

use super::{
    ConvertError, Interner, Problem,
    error::decode,
    traffic::{tls_from, tls_to},
    waypoint_policy::{target_from, target_to},
    workload::indexed,
};
use crate::karst as wire;

type Pair = (std::sync::Arc<str>, std::sync::Arc<str>);

/// Reads a resource of type Telemetry.
pub fn decode_telemetry(bytes: &[u8], interner: &mut Interner) -> Result<Telemetry, ConvertError> {
    use wire::telemetry::Kind;
    let message: wire::Telemetry = decode("karst.v1.Telemetry", bytes)?;
    match message.kind.ok_or_else(|| Problem::Missing.at("kind"))? {
        Kind::Mesh(mesh) => Ok(Telemetry::Mesh(mesh_from(&mesh, interner)?)),
        Kind::Scoped(scoped) => Ok(Telemetry::Scoped(scoped_from(&scoped, interner)?)),
    }
}

fn texts(list: &[String], interner: &mut Interner) -> Vec<std::sync::Arc<str>> {
    list.iter().map(|text| interner.get(text)).collect()
}

fn pairs(list: &[wire::NamedText], interner: &mut Interner) -> Vec<Pair> {
    list.iter()
        .map(|pair| (interner.get(&pair.name), interner.get(&pair.value)))
        .collect()
}

fn mesh_from(
    mesh: &wire::MeshTelemetry,
    interner: &mut Interner,
) -> Result<MeshTelemetry, ConvertError> {
    let mut providers = Vec::new();
    for (index, provider) in mesh.providers.iter().enumerate() {
        let kind = provider_from(provider, interner)
            .map_err(|problem| problem.at(format_args!("providers[{index}]")))?;
        providers.extend(kind.map(|kind| Provider {
            name: interner.get(&provider.name),
            kind,
        }));
    }
    Ok(MeshTelemetry {
        providers,
        default_tracing: texts(&mesh.default_tracing, interner),
        default_metrics: texts(&mesh.default_metrics, interner),
        default_access_logging: texts(&mesh.default_access_logging, interner),
        sampling: mesh.sampling,
    })
}

/// `None`: of a kind that this version does not know.
fn provider_from(
    provider: &wire::TelemetryProvider,
    interner: &mut Interner,
) -> Result<Option<ProviderKind>, Problem> {
    use wire::telemetry_provider::Kind;
    Ok(Some(match &provider.kind {
        None => return Ok(None),
        Some(Kind::Prometheus(wire::Scraped {})) => ProviderKind::Prometheus,
        Some(Kind::Opentelemetry(collector)) => ProviderKind::Opentelemetry(Collector {
            service: collector.service.parse()?,
            port: u16::try_from(collector.port)
                .map_err(|_too_large| Problem::Port(collector.port))?,
            protocol: match &collector.http_path {
                Some(path) => OtlpProtocol::Http {
                    path: interner.get(path),
                },
                None => OtlpProtocol::Grpc,
            },
            timeout_ms: collector.timeout_ms,
            headers: collector
                .headers
                .iter()
                .map(|header| (interner.get(&header.name), Secret::new(&header.value)))
                .collect(),
            tls: match &collector.tls {
                Some(tls) => Some(Box::new(tls_from(tls)?)),
                None => None,
            },
        }),
        Some(Kind::AccessLogFile(format)) => ProviderKind::AccessLogFile(match &format.text {
            _ if format.istio => LogFormat::Istio,
            Some(text) => LogFormat::Text(interner.get(text)),
            None if format.json.is_empty() => LogFormat::Own,
            None => LogFormat::Json(pairs(&format.json, interner)),
        }),
    }))
}

fn scoped_from(
    scoped: &wire::ScopedTelemetry,
    interner: &mut Interner,
) -> Result<ScopedTelemetry, ConvertError> {
    use wire::scoped_telemetry::Scope as Kind;
    if scoped.name.is_empty() {
        return Err(Problem::Missing.at("name"));
    }
    let scope = match &scoped.scope {
        None => return Err(Problem::Missing.at("scope")),
        Some(Kind::Mesh(wire::WholeMesh {})) => Scope::Mesh,
        Some(Kind::WholeNamespace(wire::WholeNamespace {})) => Scope::Namespace,
        Some(Kind::Workloads(scope)) => Scope::Workloads {
            labels: pairs(&scope.labels, interner),
            everywhere: scope.everywhere,
        },
        Some(Kind::Targets(scope)) => {
            Scope::Targets(indexed("targets", &scope.targets, |target| {
                target_from(target, interner)
            })?)
        }
    };
    Ok(ScopedTelemetry {
        key: PolicyKey {
            namespace: interner.get(&scoped.namespace),
            name: interner.get(&scoped.name),
        },
        created: scoped.created,
        scope,
        tracing: indexed("tracing", &scoped.tracing, |rule| {
            tracing_from(rule, interner)
        })?,
        metrics: indexed("metrics", &scoped.metrics, |rule| {
            metrics_from(rule, interner)
        })?,
        access_logs: indexed("access_logs", &scoped.access_logs, |rule| {
            Ok(AccessLog {
                mode: mode_from(rule.mode)?,
                providers: texts(&rule.providers, interner),
                disabled: rule.disabled,
                filter: rule.filter.as_deref().map(|text| interner.get(text)),
                sampling: rule.sampling,
            })
        })?,
    })
}

fn mode_from(mode: i32) -> Result<Mode, Problem> {
    match wire::TelemetryMode::try_from(mode) {
        Ok(wire::TelemetryMode::ClientAndServer) => Ok(Mode::ClientAndServer),
        Ok(wire::TelemetryMode::Client) => Ok(Mode::Client),
        Ok(wire::TelemetryMode::Server) => Ok(Mode::Server),
        Err(_) => Err(Problem::UnknownValue(mode)),
    }
}

fn tracing_from(rule: &wire::TracingRule, interner: &mut Interner) -> Result<Tracing, Problem> {
    use wire::span_tag::Value;
    let mut tags = Vec::new();
    for tag in &rule.tags {
        let value = match tag.value.as_ref().ok_or(Problem::Missing)? {
            Value::Literal(text) => TagValue::Literal(interner.get(text)),
            Value::Header(header) => TagValue::Header {
                name: interner.get(&header.name),
                default: interner.get(&header.default_value),
            },
            Value::Environment(variable) => TagValue::Environment {
                name: interner.get(&variable.name),
                default: interner.get(&variable.default_value),
            },
            Value::Formatter(text) => TagValue::Formatter(interner.get(text)),
        };
        tags.push((interner.get(&tag.name), value));
    }
    Ok(Tracing {
        mode: mode_from(rule.mode)?,
        providers: texts(&rule.providers, interner),
        sampling: rule.sampling,
        disabled: rule.disabled,
        propagation_disabled: rule.propagation_disabled,
        istio_tags: rule.istio_tags,
        tags,
    })
}

fn metrics_from(rule: &wire::MetricsRule, interner: &mut Interner) -> Result<Metrics, Problem> {
    let mut overrides = Vec::new();
    for change in &rule.overrides {
        let tags = change.tags.iter().map(|tag| {
            let to = match &tag.expression {
                Some(expression) => TagChange::Set(interner.get(expression)),
                None => TagChange::Remove,
            };
            (interner.get(&tag.name), to)
        });
        overrides.push(MetricsOverride {
            metric: metric_from(change.metric)?,
            disabled: change.disabled,
            tags: tags.collect(),
            mode: mode_from(change.mode)?,
        });
    }
    Ok(Metrics {
        providers: texts(&rule.providers, interner),
        overrides,
        interval_ms: rule.interval_ms,
    })
}

fn metric_from(metric: i32) -> Result<Option<Metric>, Problem> {
    use wire::MetricName as Name;
    let name = Name::try_from(metric).map_err(|_unknown| Problem::UnknownValue(metric))?;
    Ok(Some(match name {
        Name::AllMetrics => return Ok(None),
        Name::RequestCount => Metric::RequestCount,
        Name::RequestDuration => Metric::RequestDuration,
        Name::RequestSize => Metric::RequestSize,
        Name::ResponseSize => Metric::ResponseSize,
        Name::TcpOpenedConnections => Metric::TcpOpenedConnections,
        Name::TcpClosedConnections => Metric::TcpClosedConnections,
        Name::TcpSentBytes => Metric::TcpSentBytes,
        Name::TcpReceivedBytes => Metric::TcpReceivedBytes,
    }))
}

/// The resource as it goes out.
pub fn telemetry_to(telemetry: &Telemetry) -> wire::Telemetry {
    use wire::telemetry::Kind;
    wire::Telemetry {
        kind: Some(match telemetry {
            Telemetry::Mesh(mesh) => Kind::Mesh(mesh_to(mesh)),
            Telemetry::Scoped(scoped) => Kind::Scoped(scoped_to(scoped)),
        }),
    }
}

fn names_to(list: &[std::sync::Arc<str>]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn pairs_to(list: &[Pair]) -> Vec<wire::NamedText> {
    let pair = |(name, value): &Pair| wire::NamedText {
        name: name.to_string(),
        value: value.to_string(),
    };
    list.iter().map(pair).collect()
}

fn mesh_to(mesh: &MeshTelemetry) -> wire::MeshTelemetry {
    let provider = |provider: &Provider| wire::TelemetryProvider {
        name: provider.name.to_string(),
        kind: Some(provider_to(&provider.kind)),
    };
    wire::MeshTelemetry {
        providers: mesh.providers.iter().map(provider).collect(),
        default_tracing: names_to(&mesh.default_tracing),
        default_metrics: names_to(&mesh.default_metrics),
        default_access_logging: names_to(&mesh.default_access_logging),
        sampling: mesh.sampling,
    }
}

fn provider_to(kind: &ProviderKind) -> wire::telemetry_provider::Kind {
    use wire::telemetry_provider::Kind;
    match kind {
        ProviderKind::Prometheus => Kind::Prometheus(wire::Scraped {}),
        ProviderKind::Opentelemetry(collector) => Kind::Opentelemetry(wire::Collector {
            service: collector.service.to_string(),
            port: collector.port.into(),
            http_path: match &collector.protocol {
                OtlpProtocol::Grpc => None,
                OtlpProtocol::Http { path } => Some(path.to_string()),
            },
            timeout_ms: collector.timeout_ms,
            headers: collector
                .headers
                .iter()
                .map(|(name, value)| wire::NamedText {
                    name: name.to_string(),
                    value: value.expose().to_owned(),
                })
                .collect(),
            tls: collector.tls.as_deref().map(tls_to),
        }),
        ProviderKind::AccessLogFile(format) => {
            let mut to = wire::AccessLogFormat::default();
            match format {
                LogFormat::Own => {}
                LogFormat::Istio => to.istio = true,
                LogFormat::Text(text) => to.text = Some(text.to_string()),
                LogFormat::Json(fields) => to.json = pairs_to(fields),
            }
            Kind::AccessLogFile(to)
        }
    }
}

fn scoped_to(scoped: &ScopedTelemetry) -> wire::ScopedTelemetry {
    use wire::scoped_telemetry::Scope as Kind;
    wire::ScopedTelemetry {
        namespace: scoped.key.namespace.to_string(),
        name: scoped.key.name.to_string(),
        created: scoped.created,
        scope: Some(match &scoped.scope {
            Scope::Mesh => Kind::Mesh(wire::WholeMesh {}),
            Scope::Namespace => Kind::WholeNamespace(wire::WholeNamespace {}),
            Scope::Workloads { labels, everywhere } => Kind::Workloads(wire::WorkloadScope {
                labels: pairs_to(labels),
                everywhere: *everywhere,
            }),
            Scope::Targets(targets) => Kind::Targets(wire::TargetScope {
                targets: targets.iter().map(target_to).collect(),
            }),
        }),
        tracing: scoped.tracing.iter().map(tracing_to).collect(),
        metrics: scoped.metrics.iter().map(metrics_to).collect(),
        access_logs: scoped
            .access_logs
            .iter()
            .map(|rule| wire::AccessLogRule {
                mode: mode_to(rule.mode).into(),
                providers: names_to(&rule.providers),
                disabled: rule.disabled,
                filter: rule.filter.as_deref().map(str::to_owned),
                sampling: rule.sampling,
            })
            .collect(),
    }
}

fn mode_to(mode: Mode) -> wire::TelemetryMode {
    match mode {
        Mode::ClientAndServer => wire::TelemetryMode::ClientAndServer,
        Mode::Client => wire::TelemetryMode::Client,
        Mode::Server => wire::TelemetryMode::Server,
    }
}

fn tracing_to(rule: &Tracing) -> wire::TracingRule {
    use wire::span_tag::Value;
    let with_default = |name: &str, default: &str| wire::WithDefault {
        name: name.to_owned(),
        default_value: default.to_owned(),
    };
    let tags = rule.tags.iter().map(|(name, value)| wire::SpanTag {
        name: name.to_string(),
        value: Some(match value {
            TagValue::Literal(text) => Value::Literal(text.to_string()),
            TagValue::Header { name, default } => Value::Header(with_default(name, default)),
            TagValue::Environment { name, default } => {
                Value::Environment(with_default(name, default))
            }
            TagValue::Formatter(text) => Value::Formatter(text.to_string()),
        }),
    });
    wire::TracingRule {
        mode: mode_to(rule.mode).into(),
        providers: names_to(&rule.providers),
        sampling: rule.sampling,
        disabled: rule.disabled,
        propagation_disabled: rule.propagation_disabled,
        istio_tags: rule.istio_tags,
        tags: tags.collect(),
    }
}

fn metrics_to(rule: &Metrics) -> wire::MetricsRule {
    let change = |change: &MetricsOverride| wire::MetricChange {
        metric: metric_to(change.metric).into(),
        mode: mode_to(change.mode).into(),
        disabled: change.disabled,
        tags: change
            .tags
            .iter()
            .map(|(name, to)| wire::LabelChange {
                name: name.to_string(),
                expression: match to {
                    TagChange::Remove => None,
                    TagChange::Set(expression) => Some(expression.to_string()),
                },
            })
            .collect(),
    };
    wire::MetricsRule {
        providers: names_to(&rule.providers),
        overrides: rule.overrides.iter().map(change).collect(),
        interval_ms: rule.interval_ms,
    }
}

fn metric_to(metric: Option<Metric>) -> wire::MetricName {
    use wire::MetricName as Name;
    match metric {
        None => Name::AllMetrics,
        Some(Metric::RequestCount) => Name::RequestCount,
        Some(Metric::RequestDuration) => Name::RequestDuration,
        Some(Metric::RequestSize) => Name::RequestSize,
        Some(Metric::ResponseSize) => Name::ResponseSize,
        Some(Metric::TcpOpenedConnections) => Name::TcpOpenedConnections,
        Some(Metric::TcpClosedConnections) => Name::TcpClosedConnections,
        Some(Metric::TcpSentBytes) => Name::TcpSentBytes,
        Some(Metric::TcpReceivedBytes) => Name::TcpReceivedBytes,
    }
}

#[cfg(test)]
mod tests {
    use karst_model::traffic::{TlsMode, TrustAnchors, UpstreamTls};
    use prost::Message as _;

    use super::*;

    fn check(telemetry: &Telemetry) {
        let bytes = telemetry_to(telemetry).encode_to_vec();
        let again = decode_telemetry(&bytes, &mut Interner::default());
        assert_eq!(again.as_ref().ok(), Some(telemetry), "{again:?}");
    }

    fn collector(protocol: OtlpProtocol, tls: Option<UpstreamTls>) -> ProviderKind {
        ProviderKind::Opentelemetry(Collector {
            service: "obs/otel.obs.svc.cluster.local".parse().unwrap(),
            port: 4317,
            protocol,
            timeout_ms: 5000,
            headers: vec![("authorization".into(), Secret::new("Bearer x"))],
            tls: tls.map(Box::new),
        })
    }

    #[test]
    fn the_providers_come_back_as_they_went() {
        let secured = UpstreamTls {
            sni: Some("otel.example.com".into()),
            anchors: TrustAnchors::Pem("roots".into()),
            ..UpstreamTls::new(TlsMode::Simple)
        };
        let kinds = [
            collector(OtlpProtocol::Grpc, None),
            collector(
                OtlpProtocol::Http {
                    path: "/v1/traces".into(),
                },
                Some(secured),
            ),
            ProviderKind::Prometheus,
            ProviderKind::AccessLogFile(LogFormat::Own),
            ProviderKind::AccessLogFile(LogFormat::Istio),
            ProviderKind::AccessLogFile(LogFormat::Text("%PROTOCOL%".into())),
            ProviderKind::AccessLogFile(LogFormat::Json(vec![("a".into(), "%PATH%".into())])),
        ];
        let providers = kinds.into_iter().enumerate().map(|(index, kind)| Provider {
            name: format!("p{index}").into(),
            kind,
        });
        check(&Telemetry::Mesh(MeshTelemetry {
            providers: providers.collect(),
            default_tracing: vec!["p0".into()],
            default_metrics: vec!["p2".into()],
            default_access_logging: vec!["p3".into(), "p0".into()],
            sampling: Some(10_000),
        }));
    }

    #[test]
    fn an_object_comes_back_as_it_went() {
        use karst_model::waypoint_policy::PolicyTarget;
        let scopes = [
            Scope::Mesh,
            Scope::Namespace,
            Scope::Workloads {
                labels: vec![("app".into(), "a".into())],
                everywhere: true,
            },
            Scope::Targets(vec![PolicyTarget::GatewayClass("istio-waypoint".into())]),
        ];
        for scope in scopes {
            check(&Telemetry::Scoped(ScopedTelemetry {
                key: "shop/t".parse().unwrap(),
                created: 7,
                scope,
                tracing: vec![Tracing {
                    mode: Mode::Client,
                    providers: vec!["otel".into()],
                    sampling: Some(0),
                    disabled: Some(false),
                    propagation_disabled: Some(true),
                    istio_tags: Some(false),
                    tags: vec![
                        ("a".into(), TagValue::Literal("1".into())),
                        (
                            "b".into(),
                            TagValue::Header {
                                name: "x".into(),
                                default: "-".into(),
                            },
                        ),
                        (
                            "c".into(),
                            TagValue::Environment {
                                name: "Y".into(),
                                default: "".into(),
                            },
                        ),
                        ("d".into(), TagValue::Formatter("%PATH%".into())),
                    ],
                }],
                metrics: vec![Metrics {
                    providers: vec!["prometheus".into()],
                    overrides: vec![MetricsOverride {
                        metric: Some(Metric::TcpSentBytes),
                        mode: Mode::Server,
                        disabled: Some(true),
                        tags: vec![
                            ("source_app".into(), TagChange::Remove),
                            ("host".into(), TagChange::Set("request.host".into())),
                        ],
                    }],
                    interval_ms: Some(1000),
                }],
                access_logs: vec![AccessLog {
                    mode: Mode::ClientAndServer,
                    providers: vec!["otel".into()],
                    disabled: Some(false),
                    filter: Some("response.code >= 400".into()),
                    sampling: Some(250),
                }],
            }));
        }
    }

    #[test]
    fn a_provider_of_a_later_version_is_left_out() {
        let mut message = wire::MeshTelemetry::default();
        message.providers.push(wire::TelemetryProvider {
            name: "later".to_owned(),
            kind: None,
        });
        let mesh = mesh_from(&message, &mut Interner::default()).unwrap();
        assert!(mesh.providers.is_empty());
    }
}
