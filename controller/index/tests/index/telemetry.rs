//! Telemetry objects and the providers of the mesh configuration: what everybody records, and what their author hears.

use std::collections::BTreeMap;

use karst_index::{Event, Index, IndexConfig};
use karst_k8s_api::Kind;
use karst_model::{
    telemetry::{
        LogFormat, MeshTelemetry, Metric, Mode, OtlpProtocol, ProviderKind, Scope, ScopedTelemetry,
        TagChange, TagValue, Telemetry,
    },
    traffic::{Secret, TlsMode, TrustAnchors, UpstreamTls},
    waypoint_policy::PolicyTarget,
};

use crate::world::World;

const MESH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: otel, opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317}}
    - {name: web, opentelemetry: {service: obs/otel.obs.svc.cluster.local, port: 4318, http: {path: /v1/traces, timeout: 2s}}}
    - {name: old, zipkin: {service: z, port: 1}}
    defaultProviders: {tracing: [otel], metrics: [prometheus]}
";

const COLLECTOR: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: otel, namespace: obs}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{name: a, port: 4317}, {name: b, port: 4318}]}
";

fn object(namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: {namespace}}}\nspec:\n{spec}\n"
    )
}

fn mesh(world: &World) -> Option<&MeshTelemetry> {
    match world.model.telemetries.get("mesh").map(|one| &**one) {
        Some(Telemetry::Mesh(mesh)) => Some(mesh),
        _ => None,
    }
}

fn told<'w>(world: &'w World, name: &str) -> &'w ScopedTelemetry {
    match &*world.model.telemetries[name] {
        Telemetry::Scoped(scoped) => scoped,
        Telemetry::Mesh(_) => panic!("{name}"),
    }
}

fn reasons(world: &World, namespace: &str) -> Vec<&'static str> {
    world.reasons(Kind::Telemetry, namespace, "t")
}

#[test]
fn providers_are_there_when_their_service_is() {
    let mut world = World::of(MESH);
    let names = |world: &World| -> Vec<String> {
        let providers = mesh(world).unwrap().providers.iter();
        providers.map(|one| one.name.to_string()).collect()
    };
    assert_eq!(names(&world), ["prometheus", "envoy"]);
    assert_eq!(
        world.reasons(Kind::ConfigMap, "istio-system", "istio"),
        ["CollectorNotFound"]
    );
    world.apply(COLLECTOR);
    assert_eq!(names(&world), ["otel", "web", "prometheus", "envoy"]);
    assert!(
        world
            .reasons(Kind::ConfigMap, "istio-system", "istio")
            .is_empty()
    );
    let ProviderKind::Opentelemetry(web) = &mesh(&world).unwrap().providers[1].kind else {
        panic!("no collector");
    };
    assert_eq!(web.service.to_string(), "obs/otel.obs.svc.cluster.local");
    assert_eq!((web.port, web.timeout_ms), (4318, 2000));
    assert!(matches!(&web.protocol, OtlpProtocol::Http { path } if **path == *"/v1/traces"));
    world.delete(Kind::Service, "obs", "otel");
    assert_eq!(names(&world), ["prometheus", "envoy"]);
    world.delete(Kind::ConfigMap, "istio-system", "istio");
    assert!(mesh(&world).is_none());
}

/// Headers of exports: as written, or from the controller's environment; without one of them nothing is sent.
#[test]
fn a_collector_s_headers_are_put_in() {
    const WITH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: otel
      opentelemetry:
        service: otel.obs.svc.cluster.local
        port: 4318
        http: {path: /v1/traces, headers: [{name: X-Scope, value: shop}, {name: Authorization, envName: TOKEN}]}
    defaultProviders: {tracing: [otel]}
";
    let headers = |token: Option<&str>| {
        let mut world = World::empty();
        let token = token.map(|token| ("TOKEN".into(), Secret::new(token)));
        world.index = Index::new(IndexConfig {
            environment: BTreeMap::from_iter(token),
            ..IndexConfig::default()
        });
        world.apply(&format!("{WITH}{COLLECTOR}"));
        let found = match &mesh(&world).unwrap().providers[0].kind {
            ProviderKind::Opentelemetry(collector) => {
                let headers = collector.headers.iter();
                headers
                    .map(|(name, value)| format!("{name}: {}", value.expose()))
                    .collect()
            }
            _ => Vec::new(),
        };
        let told = world
            .said(Kind::ConfigMap, "istio-system", "istio")
            .concat();
        assert!(!told.contains("SECRET"), "{told}");
        (found, told)
    };
    let (found, told) = headers(Some("Bearer SECRET"));
    assert_eq!(found, ["x-scope: shop", "authorization: Bearer SECRET"]);
    assert_eq!(told, "");
    let (found, told) = headers(None);
    assert!(found.is_empty() && told.contains("TOKEN"), "{told}");
    let (found, told) = headers(Some("SECRET\nx: y"));
    assert!(found.is_empty() && told.contains("TOKEN"), "{told}");
}

#[test]
fn an_object_says_what_holds_of_it() {
    let text = object(
        "shop",
        "  tracing: [{providers: [{name: otel}], randomSamplingPercentage: 12.5}]",
    );
    let mut world = World::of(&format!("{MESH}{text}"));
    assert_eq!(reasons(&world, "shop"), ["CollectorNotFound"]);
    world.apply(COLLECTOR);
    assert_eq!(reasons(&world, "shop"), ["Accepted"]);
    let scoped = told(&world, "shop/t");
    assert_eq!(scoped.scope, Scope::Namespace);
    assert_eq!(scoped.tracing[0].sampling, Some(1250));
    world.apply(&object(
        "shop",
        "  tracing: [{providers: [{name: nobody}]}]",
    ));
    assert_eq!(reasons(&world, "shop"), ["ProviderNotFound"]);
    world.apply(&object("shop", "  tracing: [{providers: [{name: old}]}]"));
    assert_eq!(reasons(&world, "shop"), ["ProviderNotFound"]);
    world.delete(Kind::Telemetry, "shop", "t");
    assert!(!world.model.telemetries.contains_key("shop/t"));
    assert!(reasons(&world, "shop").is_empty());
}

#[test]
fn scopes_are_those_of_istio() {
    let scope = |namespace: &str, spec: &str| {
        let world = World::of(&object(namespace, spec));
        told(&world, &format!("{namespace}/t")).scope.clone()
    };
    assert_eq!(scope("istio-system", "  tracing: []"), Scope::Mesh);
    let selected = |namespace| scope(namespace, "  selector: {matchLabels: {app: a}}");
    let labels = vec![("app".into(), "a".into())];
    assert_eq!(
        selected("shop"),
        Scope::Workloads {
            labels: labels.clone(),
            everywhere: false
        }
    );
    assert_eq!(
        selected("istio-system"),
        Scope::Workloads {
            labels,
            everywhere: true
        }
    );
    let class = "  targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]";
    assert_eq!(
        scope("istio-system", class),
        Scope::Targets(vec![PolicyTarget::GatewayClass("istio-waypoint".into())])
    );
}

#[test]
fn a_target_that_is_not_there_is_told() {
    let spec = "  targetRefs: [{group: '', kind: Service, name: otel}]\n  accessLogging: [{disabled: true}]";
    let mut world = World::of(&object("obs", spec));
    assert_eq!(reasons(&world, "obs"), ["TargetNotFound"]);
    assert_eq!(told(&world, "obs/t").scope, Scope::Targets(Vec::new()));
    world.apply(COLLECTOR);
    assert_eq!(reasons(&world, "obs"), ["Accepted"]);
    let service = "obs/otel.obs.svc.cluster.local".parse().unwrap();
    assert_eq!(
        told(&world, "obs/t").scope,
        Scope::Targets(vec![PolicyTarget::Service(service)])
    );
}

#[test]
fn everything_of_an_object_is_lowered() {
    let spec = "
  tracing:
  - match: {mode: CLIENT}
    disableSpanReporting: true
    customTags:
      a: {literal: {value: x}}
      b: {header: {name: X-User, defaultValue: '-'}}
  metrics:
  - reportingInterval: 5s
    overrides:
    - match: {metric: REQUEST_COUNT, mode: SERVER}
      tagOverrides:
        source_app: {operation: REMOVE}
        host: {value: request.host}
    - match: {metric: ALL_METRICS}
      disabled: true
  accessLogging:
  - providers: [{name: envoy}]
    filter: {expression: response.code >= 400}
";
    let world = World::of(&object("shop", spec));
    assert_eq!(reasons(&world, "shop"), ["Accepted"]);
    let scoped = told(&world, "shop/t");
    assert_eq!(scoped.tracing[0].mode, Mode::Client);
    assert_eq!(scoped.tracing[0].disabled, Some(true));
    assert_eq!(scoped.tracing[0].tags[0].1, TagValue::Literal("x".into()));
    assert!(
        matches!(&scoped.tracing[0].tags[1].1, TagValue::Header { name, .. } if **name == *"x-user")
    );
    let [count, all] = &scoped.metrics[0].overrides[..] else {
        panic!("{scoped:?}");
    };
    assert_eq!(
        (count.metric, count.mode),
        (Some(Metric::RequestCount), Mode::Server)
    );
    assert_eq!(count.tags[1], ("source_app".into(), TagChange::Remove));
    assert_eq!(
        count.tags[0],
        ("host".into(), TagChange::Set("request.host".into()))
    );
    assert_eq!((all.metric, all.disabled), (None, Some(true)));
    assert_eq!(scoped.metrics[0].interval_ms, Some(5000));
    assert_eq!(
        scoped.access_logs[0].filter.as_deref(),
        Some("response.code >= 400")
    );
    assert!(matches!(LogFormat::default(), LogFormat::Own));
}

#[test]
fn what_cannot_be_read_is_left_out_and_told() {
    for (spec, part) in [
        (
            "  accessLogging: [{filter: {expression: 'response.code >='}}]",
            "no CEL expression",
        ),
        (
            "  tracing: [{randomSamplingPercentage: 120}]",
            "no percentage",
        ),
        (
            "  tracing: [{useRequestIdForTraceSampling: true}]",
            "useRequestIdForTraceSampling",
        ),
        (
            "  metrics: [{overrides: [{match: {customMetric: mine}}]}]",
            "customMetric mine",
        ),
        ("  metrics: [{reportingInterval: soon}]", "no duration"),
        (
            "  metrics: [{overrides: [{match: {metric: GRPC_REQUEST_MESSAGES}}]}]",
            "gRPC messages",
        ),
        ("  targetRefs: [{group: '', kind: Pod, name: x}]", "Pod"),
    ] {
        let world = World::of(&object("shop", spec));
        let said = world.said(Kind::Telemetry, "shop", "t").join("; ");
        assert!(said.contains(part), "{spec}: {said}");
        assert!(!reasons(&world, "shop").contains(&"Accepted"), "{spec}");
    }
}

#[test]
fn a_collector_that_takes_nothing_is_said_of_whoever_names_it() {
    let text = object("shop", "  tracing: [{providers: [{name: otel}]}]");
    let mut world = World::of(&format!("{MESH}{COLLECTOR}{text}"));
    let both = |world: &World| {
        let of_map = world.reasons(Kind::ConfigMap, "istio-system", "istio");
        (reasons(world, "shop"), of_map)
    };
    let said = |names: &[&str]| {
        let names = names.iter().map(|name| ((*name).into(), "n1: no".into()));
        vec![Event::FailingCollectors(names.collect())]
    };
    assert_eq!(both(&world), (vec!["Accepted"], vec![]));
    world.take(said(&["otel"]));
    let failing = vec!["CollectorFailing"];
    assert_eq!(both(&world), (failing.clone(), failing));
    world.take(said(&["web"]));
    assert_eq!(both(&world), (vec!["Accepted"], vec![]));
}

#[test]
fn an_annotation_says_which_share_is_logged() {
    let annotated = |percent: &str, spec: &str| {
        let text = object("shop", spec).replace(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{karst.dev/access-log-sampling-percentage: \"{percent}\"}}}}"),
        );
        let world = World::of(&text);
        let shares: Vec<Option<u32>> = told(&world, "shop/t")
            .access_logs
            .iter()
            .map(|rule| rule.sampling)
            .collect();
        (shares, reasons(&world, "shop"))
    };
    assert_eq!(
        annotated("2.5", "  tracing: []"),
        (vec![Some(250)], vec!["Accepted"])
    );
    let filtered = "  accessLogging: [{filter: {expression: response.code >= 400}}]";
    assert_eq!(annotated("0", filtered).0, [Some(0)]);
    assert_eq!(
        annotated("101", filtered),
        (vec![None], vec!["UnsupportedValue"])
    );
    assert_eq!(
        annotated("many", "  tracing: []"),
        (vec![], vec!["UnsupportedValue"])
    );
}

/// How connections to the two collectors are secured.
fn secured(world: &World) -> Vec<Option<UpstreamTls>> {
    let of = |kind: &ProviderKind| match kind {
        ProviderKind::Opentelemetry(collector) => Some(collector.tls.as_deref().cloned()),
        _ => None,
    };
    let providers = mesh(world).unwrap().providers.iter();
    providers.filter_map(|one| of(&one.kind)).collect()
}

#[test]
fn a_collector_is_reached_over_tls_as_the_rule_of_its_service_says() {
    let rule = |namespace: &str, tls: &str| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: {namespace}}}\nspec:\n  host: otel.obs.svc.cluster.local\n  trafficPolicy: {{portLevelSettings: [{{port: {{number: 4317}}, tls: {tls}}}]}}\n"
        )
    };
    let mut world = World::of(&format!("{MESH}{COLLECTOR}"));
    assert_eq!(secured(&world), [None, None]);
    world.apply(&rule("obs", "{mode: SIMPLE, sni: otel.example.com}"));
    let simple = UpstreamTls {
        sni: Some("otel.example.com".into()),
        ..UpstreamTls::new(TlsMode::Simple)
    };
    assert_eq!(secured(&world), [Some(simple), None]);
    let reasons = |world: &World, name| world.reasons(Kind::DestinationRule, "obs", name);
    assert_eq!(reasons(&world, "r"), ["Accepted"], "it holds somewhere");
    world.apply(&rule("obs", "{mode: ISTIO_MUTUAL}"));
    let broken = secured(&world)[0].clone().unwrap().broken.unwrap();
    assert!(broken.contains("use mode SIMPLE"), "{broken}");
    world.apply(&rule("obs", "{mode: DISABLE}"));
    assert_eq!(secured(&world), [None, None]);
    world.delete(Kind::DestinationRule, "obs", "r");
    world.apply(
        "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p, namespace: obs}
spec:
  targetRefs: [{group: '', kind: Service, name: otel, sectionName: b}]
  validation:
    hostname: otel.example.com
    caCertificateRefs: [{kind: ConfigMap, group: '', name: roots}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: obs}
data: {ca.crt: 'one'}
",
    );
    let [None, Some(tls)] = &secured(&world)[..] else {
        panic!("{:?}", secured(&world))
    };
    assert_eq!(tls.mode, TlsMode::Simple);
    assert_eq!(tls.sni.as_deref(), Some("otel.example.com"));
    let is_known = matches!(tls.anchors, TrustAnchors::Pem(_)) || tls.broken.is_some();
    assert!(
        is_known,
        "roots of the policy, or why there are none: {tls:?}"
    );
}
