//! Which settings of the Telemetry API hold for whom, and what they change.

use karst_model::telemetry::{
    AccessLog, Metrics, MetricsOverride, OtlpProtocol, Provider, Tracing as Rule,
};

use super::*;

fn provider(name: &str, kind: ProviderKind) -> Provider {
    Provider {
        name: name.into(),
        kind,
    }
}

fn mesh(default_logs: &[&str]) -> Arc<Telemetry> {
    let otel = ProviderKind::Opentelemetry(Collector {
        service: "obs/otel.obs.svc.cluster.local".parse().unwrap(),
        port: 4317,
        protocol: OtlpProtocol::Grpc,
        headers: Vec::new(),
        timeout_ms: 1000,
        tls: None,
    });
    Arc::new(Telemetry::Mesh(MeshTelemetry {
        providers: vec![
            provider("otel", otel),
            provider("envoy", ProviderKind::AccessLogFile(LogFormat::Istio)),
            provider("prometheus", ProviderKind::Prometheus),
        ],
        default_tracing: vec!["otel".into()],
        default_metrics: vec!["prometheus".into(), "otel".into()],
        default_access_logging: default_logs.iter().map(|name| (*name).into()).collect(),
        sampling: None,
    }))
}

fn object(key: &str, scope: Scope, edit: impl FnOnce(&mut ScopedTelemetry)) -> Arc<Telemetry> {
    let mut scoped = ScopedTelemetry {
        key: key.parse().unwrap(),
        created: 5,
        scope,
        tracing: Vec::new(),
        metrics: Vec::new(),
        access_logs: Vec::new(),
    };
    edit(&mut scoped);
    Arc::new(Telemetry::Scoped(scoped))
}

fn sampled(percent: u32) -> impl FnOnce(&mut ScopedTelemetry) {
    move |scoped| {
        scoped.tracing.push(Rule {
            sampling: Some(percent * 100),
            ..Rule::default()
        });
    }
}

fn logged(rule: AccessLog) -> impl FnOnce(&mut ScopedTelemetry) {
    move |scoped| scoped.access_logs.push(rule)
}

fn labels<'a>(own: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<&'a str> {
    move |key| {
        let mut found = own.iter().filter(|(name, _)| *name == key);
        found.next().map(|(_, value)| *value)
    }
}

fn workload_plan(all: &[Arc<Telemetry>], namespace: &str, own: &[(&str, &str)]) -> Plan {
    let settings = Settings::new(all.iter().cloned());
    let chain = settings.of_workload(namespace, labels(own));
    settings.plan(&chain, Side::Client)
}

#[test]
fn without_anything_the_own_log_is_written_and_nobody_traces() {
    let plan = workload_plan(&[], "shop", &[]);
    assert!(plan.tracing.collectors.is_empty());
    assert_eq!(plan.tracing.sampling, 100);
    assert_eq!(plan.metrics, MetricPlan::default());
    assert_eq!(
        plan.logs,
        [Log {
            to: LogTo::Lines(LogFormat::Own),
            filter: None,
            sampling: ALWAYS,
        }]
    );
}

#[test]
fn the_nearest_scope_wins_field_by_field() {
    let app = Scope::Workloads {
        labels: vec![("app".into(), "cart".into())],
        everywhere: false,
    };
    let all = [
        mesh(&[]),
        object("istio-system/mesh", Scope::Mesh, |scoped| {
            sampled(10)(scoped);
            scoped.tracing[0].tags = vec![("a".into(), TagValue::Literal("1".into()))];
        }),
        object("shop/all", Scope::Namespace, sampled(20)),
        object("shop/cart", app, |scoped| {
            scoped.tracing.push(Rule {
                disabled: Some(true),
                ..Rule::default()
            });
        }),
    ];
    let sampling = |namespace: &str, own: &[(&str, &str)]| {
        let tracing = workload_plan(&all, namespace, own).tracing;
        assert_eq!(tracing.tags.len(), 1, "as the mesh has them");
        assert_eq!(tracing.collectors, ["otel".into()]);
        (tracing.sampling, tracing.disabled)
    };
    assert_eq!(sampling("web", &[]), (1000, false));
    assert_eq!(sampling("shop", &[("app", "web")]), (2000, false));
    assert_eq!(sampling("shop", &[("app", "cart")]), (2000, true));
    assert_eq!(sampling("web", &[("app", "cart")]), (1000, false));
}

#[test]
fn of_two_for_the_same_the_older_holds() {
    let young = object("shop/a", Scope::Namespace, |scoped| {
        sampled(1)(scoped);
        scoped.created = 9;
    });
    let old = object("shop/b", Scope::Namespace, sampled(2));
    for all in [[young.clone(), old.clone()], [old, young]] {
        assert_eq!(workload_plan(&all, "shop", &[]).tracing.sampling, 200);
    }
}

#[test]
fn a_waypoint_follows_its_namespace_its_gateway_and_the_service() {
    let service: ServiceKey = "shop/cart.shop.svc.cluster.local".parse().unwrap();
    let gateway = PolicyTarget::Gateway {
        namespace: "shop".into(),
        name: "w".into(),
    };
    let all = [
        object("shop/all", Scope::Namespace, sampled(1)),
        object("shop/gw", Scope::Targets(vec![gateway]), sampled(2)),
        object(
            "shop/svc",
            Scope::Targets(vec![PolicyTarget::Service(service.clone())]),
            sampled(3),
        ),
    ];
    let settings = Settings::new(all);
    let sampling = |waypoint: &str, service: Option<&ServiceKey>| {
        let chain = settings.of_requests(&waypoint.parse().unwrap(), "istio-waypoint", service);
        settings.plan(&chain, Side::Server).tracing.sampling
    };
    assert_eq!(sampling("shop/w", Some(&service)), 300);
    assert_eq!(sampling("shop/w", None), 200);
    assert_eq!(sampling("shop/other", None), 100);
    assert_eq!(sampling("web/w", None), 100);
}

#[test]
fn logs_are_switched_filtered_and_sent_elsewhere() {
    let off = AccessLog {
        disabled: Some(true),
        ..AccessLog::default()
    };
    let all = [
        mesh(&["envoy"]),
        object("quiet/off", Scope::Namespace, logged(off)),
    ];
    assert!(workload_plan(&all, "quiet", &[]).logs.is_empty());
    let loud = workload_plan(&all, "loud", &[]).logs;
    assert_eq!(loud[0].to, LogTo::Lines(LogFormat::Istio));
    let elsewhere = AccessLog {
        providers: vec!["otel".into()],
        filter: Some("response.code >= 500".into()),
        sampling: Some(250),
        ..AccessLog::default()
    };
    let all = [
        mesh(&["envoy"]),
        object("shop/l", Scope::Namespace, logged(elsewhere)),
    ];
    let logs = workload_plan(&all, "shop", &[]).logs;
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].to, LogTo::Collector("otel".into()));
    assert!(logs[0].filter.is_some());
    assert_eq!(logs[0].sampling, 250);
}

#[test]
fn only_the_named_side_is_meant() {
    let server = AccessLog {
        mode: Mode::Server,
        disabled: Some(true),
        ..AccessLog::default()
    };
    let settings = Settings::new([object("shop/l", Scope::Namespace, logged(server))]);
    let chain = settings.of_workload("shop", |_| None);
    assert_eq!(settings.plan(&chain, Side::Client).logs.len(), 1);
    assert!(settings.plan(&chain, Side::Server).logs.is_empty());
}

#[test]
fn labels_of_metrics_change_and_collectors_are_pushed_to() {
    let all = [
        mesh(&[]),
        object("istio-system/m", Scope::Mesh, |scoped| {
            scoped.metrics.push(Metrics {
                overrides: vec![
                    MetricsOverride {
                        tags: vec![("source_app".into(), TagChange::Remove)],
                        ..MetricsOverride::default()
                    },
                    MetricsOverride {
                        metric: Some(Metric::TcpSentBytes),
                        disabled: Some(true),
                        ..MetricsOverride::default()
                    },
                ],
                interval_ms: Some(5000),
                ..Metrics::default()
            });
        }),
    ];
    let settings = Settings::new(all);
    assert_eq!(settings.pushes(), (vec!["otel".into()], Some(5000)));
    let chain = settings.of_workload("x", |_| None);
    let plan = settings.plan(&chain, Side::Client);
    assert_ne!(plan.metrics, MetricPlan::default());
    assert!(plan.metrics.is_fixed());
}
