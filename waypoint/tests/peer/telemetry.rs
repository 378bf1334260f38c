//! What a waypoint records reaches a collector: one span for each request, linked to the client's and to what the
//! application sees; access logs; metrics that are exactly what was sent.
//!
//! Against a collector of our own, and against OpenTelemetry's (`cargo xtask conformance otel`).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hashbrown::HashMap;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_ca::authority::{Authority, AuthorityConfig};
use karst_discovery::Update;
use karst_identity::tls::{
    ServingCertificate, control_plane_server_config, incoming, webhook_server_config,
};
use karst_model::{
    identity::TrustDomain,
    protocol::{AppProtocol, TunnelProtocol},
    telemetry::{
        AccessLog, Collector, MeshTelemetry, Metrics, Mode, OtlpProtocol, Provider, ProviderKind,
        Scope, ScopedTelemetry, Telemetry, Tracing,
    },
    traffic::{Secret, TlsMode, TrustAnchors, UpstreamTls},
};
use karst_runtime::supervise::Shutdown;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{metric::Data, number_data_point},
};
use prost::Message;
use tokio_stream::StreamExt as _;
use tonic::{Response, Status};

use crate::{
    app::{App, Speaks},
    client::{Client, empty, exchange, full},
    rig::{World, fresh_ip, key, local, local_for},
};

/// Requests of the test at full sampling.
const REQUESTS: u64 = 1000;

/// What a collector got, in either form.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    trace: String,
    span: String,
    parent: String,
    attributes: Vec<(String, String)>,
}

/// A collector of our own.
#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<Span>>>,
    logs: Arc<Mutex<usize>>,
    /// Latest `istio_requests_total`, all label sets together.
    requests: Arc<Mutex<i64>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attribute: KeyValue) -> (String, String) {
    let value = match attribute.value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    (attribute.key, value)
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.logs(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// What the collector over HTTP asks for in `authorization`.
const ACCESS: &str = "Bearer SECRET";

impl Received {
    fn spans(&self, request: ExportTraceServiceRequest) {
        let resources = request.resource_spans.into_iter();
        let scopes = resources.flat_map(|one| one.scope_spans);
        let spans = scopes.flat_map(|one| one.spans).map(|span| Span {
            trace: hex(&span.trace_id),
            span: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            attributes: span.attributes.into_iter().map(text).collect(),
        });
        self.spans.lock().unwrap().extend(spans);
    }

    fn logs(&self, request: ExportLogsServiceRequest) {
        let resources = request.resource_logs.into_iter();
        let scopes = resources.flat_map(|one| one.scope_logs);
        *self.logs.lock().unwrap() += scopes.map(|one| one.log_records.len()).sum::<usize>();
    }

    fn metrics(&self, request: ExportMetricsServiceRequest) {
        let resources = request.resource_metrics.into_iter();
        let metrics = resources
            .flat_map(|one| one.scope_metrics)
            .flat_map(|one| one.metrics);
        for metric in metrics.filter(|one| one.name == "istio_requests_total") {
            let Some(Data::Sum(sum)) = metric.data else {
                continue;
            };
            let points = sum.data_points.into_iter();
            *self.requests.lock().unwrap() = points
                .map(|point| match point.value {
                    Some(number_data_point::Value::AsInt(number)) => number,
                    other => panic!("{other:?}"),
                })
                .sum();
        }
    }

    /// One export over HTTP; what comes without the right header is refused.
    async fn posted(self, request: Request<Incoming>) -> http::Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let access = head.headers.get("authorization");
        let status = match (access.map(|it| it.as_bytes()), head.uri.path()) {
            (access, _) if access != Some(ACCESS.as_bytes()) => StatusCode::UNAUTHORIZED,
            (_, "/otlp/v1/traces") => {
                self.spans(Message::decode(body).unwrap());
                StatusCode::OK
            }
            (_, "/otlp/v1/logs") => {
                self.logs(Message::decode(body).unwrap());
                StatusCode::OK
            }
            (_, "/otlp/v1/metrics") => {
                self.metrics(Message::decode(body).unwrap());
                StatusCode::OK
            }
            (_, other) => panic!("{other}"),
        };
        let response = http::Response::builder().status(status);
        response.body(Full::default()).unwrap()
    }
}

impl Received {
    async fn listen(&self, addr: SocketAddr) {
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::task::spawn_local(serving);
    }
}

/// A collector at `otel` for everything, and every request sampled.
fn record_all(world: &World, protocol: OtlpProtocol) {
    record_over(world, protocol, None, None);
}

/// The same over TLS, and with a value of `authorization`.
fn record_over(
    world: &World,
    protocol: OtlpProtocol,
    tls: Option<UpstreamTls>,
    access: Option<&str>,
) {
    let collector = ProviderKind::Opentelemetry(Collector {
        service: key("otel"),
        port: 80,
        protocol,
        // Longer than a loaded machine takes: what is sent twice would count twice.
        timeout_ms: 20_000,
        headers: access
            .map(|access| ("authorization".into(), Secret::new(access)))
            .into_iter()
            .collect(),
        tls: tls.map(Box::new),
    });
    let mesh = Telemetry::Mesh(MeshTelemetry {
        providers: vec![Provider {
            name: "otel".into(),
            kind: collector,
        }],
        default_tracing: vec!["otel".into()],
        default_metrics: vec!["otel".into()],
        default_access_logging: vec!["otel".into()],
        sampling: Some(10_000),
    });
    let often = scoped("istio-system/often", Scope::Mesh, |object| {
        object.metrics.push(Metrics {
            interval_ms: Some(300),
            ..Metrics::default()
        });
    });
    let all = [mesh, often].map(|one| Update::Telemetry(Arc::new(one)));
    world.state.apply(all);
}

fn scoped(key: &str, scope: Scope, edit: impl FnOnce(&mut ScopedTelemetry)) -> Telemetry {
    let mut object = ScopedTelemetry {
        key: key.parse().unwrap(),
        created: 1,
        scope,
        tracing: Vec::new(),
        metrics: Vec::new(),
        access_logs: Vec::new(),
    };
    edit(&mut object);
    Telemetry::Scoped(object)
}

/// Where the collector listens.
fn collector(world: &World) -> SocketAddr {
    let ip = fresh_ip();
    world.service("otel", AppProtocol::Grpc);
    world.add_workload("otel", "otel-1", ip, TunnelProtocol::None);
    SocketAddr::from((ip, 8080))
}

fn parent(number: u64) -> (String, String) {
    (
        format!("{:032x}", number + 1),
        format!("{:016x}", number + 7),
    )
}

/// Sends the requests, each with a trace of its own; what the application was told, by trace.
async fn send(world: &World, count: u64) -> HashMap<String, String> {
    let vip = world.service("web", AppProtocol::Http2);
    let app = App::new("v1", Speaks::Http2);
    world.workload("web", "web-1", &app).await;
    let mut send = Client::new(world).http2(vip).await;
    for number in 0..count {
        let (trace, span) = parent(number);
        let request = Request::get(format!("http://web/item/{number}?secret=1"))
            .header("traceparent", format!("00-{trace}-{span}-01"))
            .header("tracestate", "vendor=1")
            .body(empty());
        let response = exchange(&mut send, request.unwrap()).await;
        assert_eq!(response.status(), 200);
    }
    let told = app.seen().into_iter().map(|seen| {
        assert_eq!(seen.headers["tracestate"], "vendor=1");
        let header = seen.headers["traceparent"].to_str().unwrap().to_owned();
        let parts: Vec<&str> = header.split('-').collect();
        assert_eq!((parts.len(), parts[3]), (4, "01"));
        (parts[1].to_owned(), parts[2].to_owned())
    });
    told.collect()
}

/// One span per request: its parent is the client's span, and it is the parent that the application was told.
fn linked(spans: &[Span], told: &HashMap<String, String>, count: u64) {
    assert_eq!(spans.len() as u64, count);
    let by_trace: HashMap<&str, &Span> = spans.iter().map(|span| (&*span.trace, span)).collect();
    for number in 0..count {
        let (trace, client) = parent(number);
        let span = by_trace[&*trace];
        assert_eq!(span.parent, client, "{span:?}");
        assert_eq!(Some(&span.span), told.get(&trace), "{span:?}");
        let attribute = |name: &str| {
            let mut found = span.attributes.iter().filter(|(key, _)| key == name);
            found.next().map(|(_, value)| value.as_str())
        };
        assert_eq!(attribute("http.response.status_code"), Some("200"));
        assert_eq!(attribute("url.path"), Some(&*format!("/item/{number}")));
        assert_eq!(attribute("karst.destination.workload"), Some("web-1"));
        assert_eq!(attribute("karst.waypoint"), Some("shop/waypoint"));
        assert_eq!(attribute("karst.tunnel"), Some("hbone"));
        assert_eq!(
            attribute("karst.source.principal"),
            Some("spiffe://cluster.local/ns/shop/sa/front")
        );
        let secret = |(_, value): &(String, String)| value.contains("secret");
        assert!(!span.attributes.iter().any(secret), "{span:?}");
    }
}

#[tokio::test]
async fn every_request_is_a_linked_span_a_log_and_a_count() {
    local_for(Duration::from_secs(120), async {
        let world = World::start(&[]).await;
        let received = Received::default();
        received.listen(collector(&world)).await;
        record_all(&world, OtlpProtocol::Grpc);
        let told = send(&world, REQUESTS).await;
        let all = || {
            received.spans.lock().unwrap().len() as u64 >= REQUESTS
                && *received.logs.lock().unwrap() as u64 >= REQUESTS
                && *received.requests.lock().unwrap() as u64 >= REQUESTS
        };
        crate::app::until(all).await;
        linked(&received.spans.lock().unwrap(), &told, REQUESTS);
        assert_eq!(*received.logs.lock().unwrap() as u64, REQUESTS);
        assert_eq!(*received.requests.lock().unwrap() as u64, REQUESTS);
        assert_eq!(world.metric(&["karst_telemetry_dropped"]), 0.0);
    })
    .await;
}

/// A certificate of `names` and its key; the root that signed it.
fn certificate(names: &[&str]) -> (Arc<ServingCertificate>, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = AuthorityConfig::new(folder.path().join("ca"), TrustDomain::default());
    let authority = Authority::load_or_create(config, SystemTime::now()).unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let pair = authority
        .server_certificate(&names, SystemTime::now())
        .unwrap();
    let serving = ServingCertificate::new(&pair.chain_pem, &pair.key_pem).unwrap();
    (serving, pair.chain_pem.clone())
}

/// A root that did not sign, a name that is none of its, roots that are none: each is told with its cause, and nothing is
/// sent. Then all arrives.
#[tokio::test]
async fn a_collector_over_tls_is_believed_by_its_root_and_name_only() {
    local_for(Duration::from_secs(120), async {
        let world = World::start(&[]).await;
        let received = Received::default();
        let addr = collector(&world);
        let (serving, root) = certificate(&["otel.example.com"]);
        let (_, other) = certificate(&["otel.example.com"]);
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let stop = Shutdown::new();
        let incoming = incoming(listener, control_plane_server_config(serving), &stop);
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(received.clone()))
            .add_service(LogsServiceServer::new(received.clone()))
            .add_service(MetricsServiceServer::new(received.clone()))
            .serve_with_incoming(incoming);
        tokio::task::spawn_local(serving);
        let with = |root: &str, sni: &str| UpstreamTls {
            sni: Some(sni.into()),
            anchors: TrustAnchors::Pem(root.into()),
            ..UpstreamTls::new(TlsMode::Simple)
        };
        let fails = |why: &str| {
            let failing = world.mesh.recorder().hub.failing();
            failing.iter().any(|(_, said)| said.contains(why))
        };
        for (tls, why) in [
            (with(&other, "otel.example.com"), "UnknownIssuer"),
            (with(&root, "else.example.com"), "else.example.com"),
            (with("nothing", "otel.example.com"), "roots"),
        ] {
            record_over(&world, OtlpProtocol::Grpc, Some(tls), None);
            crate::app::until(|| fails(why)).await;
        }
        assert_eq!(received.spans.lock().unwrap().len(), 0);
        let right = with(&root, "otel.example.com");
        record_over(&world, OtlpProtocol::Grpc, Some(right), None);
        let told = send(&world, 20).await;
        assert_eq!(told.len(), 20);
        crate::app::until(|| received.spans.lock().unwrap().len() == 20).await;
        crate::app::until(|| world.mesh.recorder().hub.failing().is_empty()).await;
        stop.cancel();
    })
    .await;
}

/// The same over HTTP, where the collector asks for a header: without it each export is refused, which is told without
/// what the header says.
#[tokio::test]
async fn a_collector_over_http_and_tls_gets_the_header_that_it_asks_for() {
    local_for(Duration::from_secs(120), async {
        let world = World::start(&[]).await;
        let received = Received::default();
        let (serving, root) = certificate(&["otel.example.com"]);
        let listener = tokio::net::TcpListener::bind(collector(&world))
            .await
            .unwrap();
        let stop = Shutdown::new();
        let mut incoming = incoming(listener, webhook_server_config(serving), &stop);
        let at = received.clone();
        tokio::task::spawn_local(async move {
            while let Some(Ok(stream)) = incoming.next().await {
                let at = at.clone();
                let service = service_fn(move |request| {
                    let at = at.clone();
                    async move { Ok::<_, std::convert::Infallible>(at.posted(request).await) }
                });
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::task::spawn_local(serving);
            }
        });
        let record = |root: &str, access: &str| {
            let tls = UpstreamTls {
                sni: Some("otel.example.com".into()),
                anchors: TrustAnchors::Pem(root.into()),
                ..UpstreamTls::new(TlsMode::Simple)
            };
            let path = "/otlp/v1/traces".into();
            record_over(&world, OtlpProtocol::Http { path }, Some(tls), Some(access));
        };
        let said = || {
            let failing = world.mesh.recorder().hub.failing();
            failing.first().map(|(_, said)| said.to_string())
        };
        let (_, other) = certificate(&["otel.example.com"]);
        for (root, access, why) in [
            (&other, ACCESS, "UnknownIssuer"),
            (&root, "Bearer HIDDEN", "401"),
        ] {
            record(root, access);
            crate::app::until(|| said().is_some_and(|said| said.contains(why))).await;
            let said = said().unwrap();
            assert!(
                !said.contains("HIDDEN") && !said.contains("SECRET"),
                "{said}"
            );
        }
        record(&root, ACCESS);
        crate::app::until(|| said().is_none()).await;
        let told = send(&world, 20).await;
        let all = || {
            received.spans.lock().unwrap().len() == 20
                && *received.logs.lock().unwrap() == 20
                && *received.requests.lock().unwrap() == 20
        };
        crate::app::until(all).await;
        linked(&received.spans.lock().unwrap(), &told, 20);
        stop.cancel();
    })
    .await;
}

/// Who asked whom is counted for the controller, over as many connections as there are.
#[tokio::test]
async fn requests_are_edges_from_workload_to_service() {
    local(async {
        let world = World::start(&[]).await;
        let observed = karst_telemetry::observed::install(&world.registry);
        // All tests of this program are told of in one place: this service is this test's alone.
        let vip = world.service("asked", AppProtocol::Http2);
        let app = App::new("v1", Speaks::Http2);
        world.workload("asked", "asked-1", &app).await;
        for _ in 0..3 {
            let mut send = Client::new(&world).http2(vip).await;
            for _ in 0..10 {
                let request = Request::post("http://asked/").body(full("x")).unwrap();
                assert_eq!(exchange(&mut send, request).await.status(), 200);
            }
        }
        let mut requests = 0;
        let mut seen = None;
        let all = || {
            let edges = observed.take(0).edges.into_iter();
            for (key, traffic) in edges.filter(|(key, _)| key.service.contains("/asked.shop.")) {
                requests += traffic.requests;
                seen = Some(key);
            }
            requests >= 30
        };
        crate::app::until(all).await;
        let key = seen.unwrap();
        assert_eq!(requests, 30);
        assert_eq!(key.direction.to_string(), "waypoint");
        assert_eq!(&*key.destination_workload, "asked-1");
        assert_eq!(&*key.service, "shop/asked.shop.svc.cluster.local");
        assert_eq!(
            &*key.source_identity,
            "spiffe://cluster.local/ns/shop/sa/front"
        );
        assert_eq!((key.port, key.mutual_tls), (80, true));
    })
    .await;
}

/// Nobody listens at all, then somebody who never answers: requests go on, and what is lost is counted.
#[tokio::test]
async fn a_collector_that_is_away_costs_only_what_is_recorded() {
    local(async {
        let world = World::start(&[]).await;
        let addr = collector(&world);
        record_all(&world, OtlpProtocol::Grpc);
        let told = send(&world, 200).await;
        assert_eq!(told.len(), 200);
        world
            .metric_reaches(&["karst_telemetry_failed_sends_total"], 1.0)
            .await;
        let silent = tokio::net::TcpListener::bind(addr).await.unwrap();
        let _connected = silent.accept().await.unwrap();
        let vip = world.service("web", AppProtocol::Http2);
        let mut send = Client::new(&world).http2(vip).await;
        for _ in 0..100 {
            let request = Request::post("http://web/").body(full("x")).unwrap();
            assert_eq!(exchange(&mut send, request).await.status(), 200);
        }
    })
    .await;
}

/// Sampling of requests without a trace, logs that are off, filters, and headers that are no trace.
#[tokio::test]
async fn telemetry_objects_decide_what_is_recorded() {
    local(async {
        let world = World::start(&[]).await;
        let received = Received::default();
        received.listen(collector(&world)).await;
        record_all(&world, OtlpProtocol::Grpc);
        let object = scoped("shop/less", Scope::Namespace, |object| {
            object.tracing.push(Tracing {
                sampling: Some(0),
                ..Tracing::default()
            });
            object.access_logs.push(AccessLog {
                mode: Mode::ClientAndServer,
                filter: Some("response.code >= 400".into()),
                ..AccessLog::default()
            });
        });
        world.state.apply([Update::Telemetry(Arc::new(object))]);
        world
            .metric_reaches(&["karst_telemetry_sent_total", "metrics"], 1.0)
            .await;
        let vip = world.service("web", AppProtocol::Http2);
        let app = App::new("v1", Speaks::Http2);
        world.workload("web", "web-1", &app).await;
        let mut send = Client::new(&world).http2(vip).await;
        for (path, header) in [
            ("/", ""),
            ("/status/404", "00-broken"),
            (
                "/",
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            ),
            ("/status/503", ""),
            (
                "/",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
        ] {
            let request = Request::get(format!("http://web{path}"))
                .header("traceparent", header)
                .header("baggage", "k=v,".repeat(2000));
            let response = exchange(&mut send, request.body(empty()).unwrap()).await;
            assert!(response.status().as_u16() >= 200);
        }
        crate::app::until(|| {
            *received.logs.lock().unwrap() == 2 && received.spans.lock().unwrap().len() == 1
        })
        .await;
        let spans = received.spans.lock().unwrap().clone();
        assert_eq!(spans[0].trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        // A trace that starts here says that it is not sampled, so that the next hops agree.
        let first = app.seen()[0].headers["traceparent"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            first.ends_with("-00") && !first.contains("broken"),
            "{first}"
        );
    })
    .await;
}

/// OpenTelemetry's own collector, writing what it gets into a file.
struct Otelcol {
    child: Child,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Otelcol {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Otelcol {
    fn start(program: &Path, grpc: SocketAddr, http: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.json");
        let config = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc: {{endpoint: '{grpc}'}}\n      http: {{endpoint: '{http}'}}\nexporters:\n  file: {{path: '{}'}}\nservice:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    traces: {{receivers: [otlp], exporters: [file]}}\n    logs: {{receivers: [otlp], exporters: [file]}}\n    metrics: {{receivers: [otlp], exporters: [file]}}\n",
            file.display()
        );
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new(program)
            .arg(format!("--config={}", path.display()))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            file,
            _dir: dir,
        }
    }

    /// Spans, number of log records, and the latest count of requests.
    fn received(&self) -> (Vec<Span>, usize, u64) {
        let (mut spans, mut logs, mut requests) = (Vec::new(), 0, 0);
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
        let below = |value: &serde_json::Value, names: [&str; 3]| -> Vec<serde_json::Value> {
            let list = |value: &serde_json::Value, name: &str| {
                value[name].as_array().cloned().unwrap_or_default()
            };
            let outer = list(value, names[0]).into_iter();
            outer
                .flat_map(|one| list(&one, names[1]))
                .flat_map(|one| list(&one, names[2]))
                .collect()
        };
        for value in lines.map_while(Result::ok) {
            logs += below(&value, ["resourceLogs", "scopeLogs", "logRecords"]).len();
            for metric in below(&value, ["resourceMetrics", "scopeMetrics", "metrics"]) {
                if metric["name"] == "istio_requests_total" {
                    let points = metric["sum"]["dataPoints"].as_array().unwrap().iter();
                    let counts = points.map(|one| one["asInt"].as_str().unwrap().parse::<u64>());
                    requests = counts.map(Result::unwrap).sum();
                }
            }
            for span in below(&value, ["resourceSpans", "scopeSpans", "spans"]) {
                let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
                let attributes = span["attributes"].as_array().unwrap().iter();
                spans.push(Span {
                    trace: text("traceId"),
                    span: text("spanId"),
                    parent: text("parentSpanId"),
                    attributes: attributes
                        .map(|one| {
                            let value = &one["value"];
                            let value = value["stringValue"]
                                .as_str()
                                .or_else(|| value["intValue"].as_str());
                            let key = one["key"].as_str().unwrap();
                            (key.to_owned(), value.unwrap_or_default().to_owned())
                        })
                        .collect(),
                });
            }
        }
        (spans, logs, requests)
    }
}

#[tokio::test]
#[ignore = "needs OpenTelemetry's collector: cargo xtask conformance otel"]
async fn opentelemetrys_collector_gets_everything() {
    let program = std::env::var_os("KARST_OTELCOL").expect("KARST_OTELCOL names the collector");
    for http in [false, true] {
        local_for(Duration::from_secs(240), async {
            let world = World::start(&[]).await;
            let addr = collector(&world);
            let other = SocketAddr::from((fresh_ip(), 8080));
            let (protocol, grpc_at, http_at) = match http {
                false => (OtlpProtocol::Grpc, addr, other),
                true => (
                    OtlpProtocol::Http {
                        path: "/v1/traces".into(),
                    },
                    other,
                    addr,
                ),
            };
            let otelcol = Otelcol::start(Path::new(&program), grpc_at, http_at);
            record_all(&world, protocol);
            let told = send(&world, REQUESTS).await;
            crate::app::until(|| {
                let (spans, logs, requests) = otelcol.received();
                spans.len() as u64 >= REQUESTS && logs as u64 >= REQUESTS && requests >= REQUESTS
            })
            .await;
            let (spans, logs, requests) = otelcol.received();
            linked(&spans, &told, REQUESTS);
            assert_eq!((logs as u64, requests), (REQUESTS, REQUESTS));
            assert_eq!(world.metric(&["karst_telemetry_dropped"]), 0.0);
        })
        .await;
    }
}
