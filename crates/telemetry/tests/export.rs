//! Collectors that do what they should not: whatever they do, pushing never waits, queues stay bounded, and every loss is
//! counted by its reason.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use karst_model::{
    telemetry::{Collector, MeshTelemetry, OtlpProtocol, Provider, ProviderKind, Telemetry},
    traffic::{Secret, UpstreamTls},
};
use karst_telemetry::{
    export::{self, Connect, Fields, Identity, QUEUE_MAX, Reach, Securing},
    hub::{Hub, Recording},
    metrics::Registry,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Request, Response, Status};

/// What the collector does with a batch.
#[derive(Clone, Copy)]
enum Does {
    Take,
    Refuse,
    /// Is busy twice, then takes.
    BusyTwice,
    RejectThree,
    Never,
    /// Takes what comes with the provider's header.
    AskForKey,
}

#[derive(Clone)]
struct Scripted {
    does: Does,
    asked: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl TraceService for Scripted {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let spans = &request.get_ref().resource_spans[0].scope_spans[0].spans;
        let mut answer = ExportTraceServiceResponse::default();
        match self.does {
            Does::Refuse => return Err(Status::invalid_argument("no")),
            Does::BusyTwice if asked < 2 => return Err(Status::resource_exhausted("later")),
            Does::Never => std::future::pending::<()>().await,
            Does::AskForKey => {
                let key = request.metadata().get("x-key");
                if key.is_none_or(|key| key.to_str().ok() != Some("KEY")) {
                    return Err(Status::unauthenticated("no key"));
                }
            }
            Does::RejectThree => {
                answer.partial_success = Some(ExportTracePartialSuccess {
                    rejected_spans: 3,
                    error_message: "bad".to_owned(),
                });
            }
            Does::Take | Does::BusyTwice => {}
        }
        self.taken.fetch_add(spans.len(), Ordering::Relaxed);
        Ok(Response::new(answer))
    }
}

/// The one place where a collector is.
struct At(Option<SocketAddr>);

impl Reach for At {
    fn addresses(&self, _collector: &Collector) -> Vec<SocketAddr> {
        self.0.into_iter().collect()
    }

    fn secure(&self, _: &Collector, _: &UpstreamTls, _: TcpStream) -> Securing {
        Box::pin(async { Err("nothing here makes TLS".into()) })
    }
}

/// A hub that sends to `addr`.
struct Rig {
    registry: Registry,
    recording: Arc<Recording>,
    hub: Arc<Hub>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rig {
    fn new(addr: Option<SocketAddr>) -> Self {
        Self::giving_up_after(20_000, addr)
    }

    /// Whoever says nothing for so many milliseconds is asked again.
    fn giving_up_after(timeout_ms: u32, addr: Option<SocketAddr>) -> Self {
        let registry = Registry::new();
        let hub = Arc::new(Hub::new(&registry));
        let collector = Collector {
            service: "obs/otel".parse().unwrap(),
            port: 4317,
            protocol: OtlpProtocol::Grpc,
            headers: vec![("x-key".into(), Secret::new("KEY"))],
            timeout_ms,
            tls: None,
        };
        hub.configure(vec![Arc::new(Telemetry::Mesh(MeshTelemetry {
            providers: vec![Provider {
                name: "otel".into(),
                kind: ProviderKind::Opentelemetry(collector),
            }],
            default_tracing: vec!["otel".into()],
            ..MeshTelemetry::default()
        }))]);
        let connect: Connect = Arc::new(At(addr));
        let run = export::run(
            hub.exporters(),
            connect,
            Identity::default(),
            registry.clone(),
            std::future::pending(),
        );
        #[expect(clippy::disallowed_methods, reason = "a test has no supervisor")]
        let task = tokio::spawn(run);
        let recording = hub.for_requests(&"shop/w".parse().unwrap(), "istio-waypoint", None);
        Self {
            registry,
            recording,
            hub,
            task,
        }
    }

    fn push(&self, count: usize) {
        for _ in 0..count {
            self.recording.spans[0].push_span(Fields::default());
        }
    }

    fn metric(&self, name: &str, part: &str) -> u64 {
        let text = self.registry.encode();
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(part));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    }

    /// Waits until the collector is said to fail, or no more; why.
    async fn fails(&self, fails: bool) -> String {
        let wait = async {
            loop {
                let failing = self.hub.failing();
                if failing.is_empty() != fails {
                    return failing
                        .first()
                        .map_or_else(String::new, |one| one.1.to_string());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        waited.unwrap_or_else(|_elapsed| panic!("waited for failing: {fails}"))
    }

    async fn reaches(&self, name: &str, part: &str, value: u64) {
        let wait = async {
            while self.metric(name, part) < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{}", self.registry.encode());
        assert_eq!(self.metric(name, part), value);
    }
}

async fn collector(does: Does) -> (SocketAddr, Scripted) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let scripted = Scripted {
        does,
        asked: Arc::default(),
        taken: Arc::default(),
    };
    let service = TraceServiceServer::new(scripted.clone());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    #[expect(clippy::disallowed_methods, reason = "a test has no supervisor")]
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    (addr, scripted)
}

const SENT: &str = "karst_telemetry_sent_total";
const DROPPED: &str = "karst_telemetry_dropped_total";

#[tokio::test]
async fn what_is_taken_is_counted_as_sent() {
    let (addr, scripted) = collector(Does::Take).await;
    let rig = Rig::new(Some(addr));
    rig.push(1300);
    rig.reaches(SENT, "spans", 1300).await;
    assert_eq!(scripted.taken.load(Ordering::Relaxed), 1300);
    assert_eq!(rig.metric(DROPPED, ""), 0);
}

#[tokio::test]
async fn what_comes_bit_by_bit_goes_in_few_messages() {
    let (addr, scripted) = collector(Does::Take).await;
    let rig = Rig::new(Some(addr));
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..1000 {
        pace.tick().await;
        rig.push(1);
    }
    rig.reaches(SENT, "spans", 1000).await;
    // A message for each second or each 512; sent as they come they would be hundreds.
    let asked = scripted.asked.load(Ordering::Relaxed);
    assert!(asked <= 30, "{asked} messages");
}

#[tokio::test]
async fn what_the_provider_says_goes_with_each_export() {
    let (addr, scripted) = collector(Does::AskForKey).await;
    let rig = Rig::new(Some(addr));
    rig.push(600);
    rig.reaches(SENT, "spans", 600).await;
    assert_eq!(scripted.taken.load(Ordering::Relaxed), 600);
    assert_eq!(rig.metric(DROPPED, ""), 0);
}

#[tokio::test]
async fn a_busy_collector_is_asked_again() {
    let (addr, scripted) = collector(Does::BusyTwice).await;
    let rig = Rig::new(Some(addr));
    rig.push(10);
    rig.reaches(SENT, "spans", 10).await;
    assert_eq!(scripted.taken.load(Ordering::Relaxed), 10);
    assert_eq!(rig.metric("karst_telemetry_failed_sends_total", ""), 2);
}

#[tokio::test]
async fn what_is_refused_is_not_sent_again() {
    let (addr, scripted) = collector(Does::Refuse).await;
    let rig = Rig::new(Some(addr));
    rig.push(10);
    rig.reaches(DROPPED, "reason=\"refused\"", 10).await;
    assert_eq!(scripted.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn of_a_partial_success_the_rest_is_sent() {
    let (addr, _scripted) = collector(Does::RejectThree).await;
    let rig = Rig::new(Some(addr));
    rig.push(10);
    rig.reaches(DROPPED, "reason=\"refused\"", 3).await;
    rig.reaches(SENT, "spans", 7).await;
}

/// Nobody there, somebody who never answers, and a service without endpoints: the queue is bounded, the rest is counted.
#[tokio::test]
async fn a_collector_that_is_away_costs_a_bounded_queue() {
    let (silent, _scripted) = collector(Does::Never).await;
    let gone = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    for addr in [Some(silent), Some(gone), None] {
        let rig = Rig::giving_up_after(300, addr);
        let started = std::time::Instant::now();
        rig.push(50_000);
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "pushing never waits"
        );
        let dropped = rig.metric(DROPPED, "reason=\"queue_full\"");
        assert!(dropped >= 50_000 - 2 * QUEUE_MAX as u64, "{dropped}");
        rig.reaches_at_least("karst_telemetry_failed_sends_total", 1)
            .await;
        assert_eq!(rig.metric(SENT, ""), 0);
    }
}

impl Rig {
    async fn reaches_at_least(&self, name: &str, value: u64) {
        let wait = async {
            while self.metric(name, "") < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{}", self.registry.encode());
    }
}

/// Before anything is recorded, and within the time in which it is to be told.
#[tokio::test]
async fn a_wrong_endpoint_is_known_before_anything_is_sent() {
    let addr = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let said = Rig::new(None).fails(true).await;
    assert!(said.contains("no ready endpoint"), "{said}");
    let rig = Rig::new(Some(addr));
    let said = rig.fails(true).await;
    assert!(
        said.contains("cannot be reached: Connection refused"),
        "{said}"
    );
    let _listening = TcpListener::bind(addr).await.unwrap();
    rig.fails(false).await;
}

/// Somebody who listens there and does not take what is sent.
#[tokio::test]
async fn a_collector_that_takes_nothing_is_said_to_fail_until_it_does() {
    for (does, why) in [(Does::Refuse, ": no"), (Does::Never, "no answer within")] {
        let (addr, _scripted) = collector(does).await;
        let rig = Rig::giving_up_after(300, Some(addr));
        rig.push(1);
        let said = rig.fails(true).await;
        assert!(said.contains(why), "{said}");
    }
    let (addr, _scripted) = collector(Does::BusyTwice).await;
    let rig = Rig::new(Some(addr));
    rig.push(1);
    rig.fails(true).await;
    rig.fails(false).await;
}
