//! Asks endpoints whether they can serve, where a HealthCheck says so. Runs on one data-path thread, on connections of its
//! own that go the way that requests go: through the tunnel, with TLS where the service wants it.
//!
//! ```text
//!   services ──every second──► who is to be asked ──due──► probe (bounded, with a timeout) ──► routing::health ──► Live
//! ```

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use hashbrown::HashMap;
use http::{Request, StatusCode, header};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use karst_identity::tls::Inside;
use karst_model::traffic::{HealthCheck, HealthProbe};
use karst_routing::health::{Checked, pause};
use karst_runtime::supervise;
use karst_telemetry::error_chain::Chain;
use rand::RngExt as _;
use tokio::time::{Instant, interval, timeout};

use crate::{
    error::ConnectError,
    http::{LocalExec, RequestBody},
    services::{Cluster, Endpoint, EndpointKey, Member},
    stream::HttpIo,
    workers::Worker,
};

/// How often it is looked who is due.
const TICK: Duration = Duration::from_millis(50);
/// How often it is looked who is to be asked at all.
const REFRESH: Duration = Duration::from_secs(1);
/// Questions under way at once.
const UNDER_WAY_MAX: usize = 64;
/// Endpoints that are asked; of more, the others count as up.
const ASKED_MAX: usize = 20_000;
/// Bytes of a gRPC answer that are read.
const ANSWER_MAX: usize = 1024;

/// An endpoint of one set.
type AskedKey = (u64, EndpointKey);

/// What is known of one endpoint.
struct Asked {
    cluster: Arc<Cluster>,
    member: Member,
    check: HealthCheck,
    checked: Checked,
    due: Instant,
    under_way: bool,
    /// Seen when last looked.
    round: u64,
}

/// Everybody who is asked.
#[derive(Default)]
struct Rounds {
    all: RefCell<HashMap<AskedKey, Asked>>,
    under_way: Cell<usize>,
    round: Cell<u64>,
}

/// Why an endpoint counts as failing.
#[derive(Debug, thiserror::Error)]
enum Failing {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it does not speak HTTP as it should")]
    Http(#[from] hyper::Error),
    #[error("the question cannot be put")]
    Question(#[from] http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it answered that it does not serve")]
    NotServing,
    #[error("it did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("it has no port {0}")]
    NoPort(u16),
}

/// Asks until the thread ends.
pub(crate) async fn run(worker: Rc<Worker>) {
    let rounds = Rc::new(Rounds::default());
    let mut tick = interval(TICK);
    let mut refreshed: Option<Instant> = None;
    loop {
        let now = tick.tick().await;
        if refreshed.is_none_or(|at| now.duration_since(at) >= REFRESH) {
            rounds.refresh(&worker, now);
            refreshed = Some(now);
        }
        for key in rounds.due(now) {
            let (worker, rounds) = (worker.clone(), rounds.clone());
            supervise::spawn_local_connection("health check", async move {
                ask(&worker, &rounds, key).await;
            });
        }
    }
}

impl Rounds {
    /// Who is to be asked now. Whoever is not any more counts as up.
    fn refresh(&self, worker: &Worker, now: Instant) {
        let round = self.round.get() + 1;
        self.round.set(round);
        let mut all = self.all.borrow_mut();
        for slot in worker.mesh.services.slots() {
            let served = slot.load();
            for cluster in served.ports.values().flat_map(|port| port.clusters()) {
                let Some(check) = &cluster.policy.health_check else {
                    continue;
                };
                for member in cluster.members() {
                    let key = (cluster.live.id, member.health.key.clone());
                    if let Some(known) = all.get_mut(&key) {
                        known.round = round;
                        known.cluster = cluster.clone();
                        known.member = member.clone();
                        if known.check != *check {
                            known.check = check.clone();
                            known.due = now;
                        }
                    } else if all.len() < ASKED_MAX {
                        // Not all at once, and not only after an interval.
                        let first = check.interval.min(REFRESH).mul_f64(rand::rng().random());
                        let asked = Asked {
                            cluster: cluster.clone(),
                            member: member.clone(),
                            check: check.clone(),
                            checked: Checked::default(),
                            due: now + first,
                            under_way: false,
                            round,
                        };
                        all.insert(key, asked);
                    } else {
                        worker.mesh.metrics.health_checks_dropped.inc();
                    }
                }
            }
        }
        all.retain(|_, asked| {
            if asked.round != round && !asked.checked.is_up() {
                asked.cluster.live.checked(&asked.member.health, true);
            }
            asked.round == round
        });
    }

    /// Those whose time has come, as many as may be asked at once.
    fn due(&self, now: Instant) -> Vec<AskedKey> {
        let mut due = Vec::new();
        for (key, asked) in self.all.borrow_mut().iter_mut() {
            if self.under_way.get() >= UNDER_WAY_MAX {
                break;
            }
            if asked.due <= now && !asked.under_way {
                asked.under_way = true;
                self.under_way.set(self.under_way.get() + 1);
                due.push(key.clone());
            }
        }
        due
    }

    fn answered(&self, key: &AskedKey, outcome: &Result<(), Failing>) {
        self.under_way.set(self.under_way.get() - 1);
        let mut all = self.all.borrow_mut();
        let Some(asked) = all.get_mut(key) else {
            return;
        };
        asked.under_way = false;
        asked.due = Instant::now() + pause(&asked.check, rand::rng().random());
        if !asked.checked.observe(&asked.check, outcome.is_ok()) {
            return;
        }
        let up = asked.checked.is_up();
        asked.cluster.live.checked(&asked.member.health, up);
        let (set, endpoint) = (&asked.cluster.live.key, &key.1.addr);
        match outcome {
            Ok(()) => {
                tracing::info!(%set, %endpoint, "an endpoint passes its health check again");
            }
            Err(why) => {
                let cause = Chain(why).to_string();
                tracing::warn!(%set, %endpoint, cause, "an endpoint fails its health check: it gets no requests");
            }
        }
    }
}

async fn ask(worker: &Worker, rounds: &Rounds, key: AskedKey) {
    let asked = rounds.all.borrow().get(&key).map(|asked| {
        let (cluster, member) = (asked.cluster.clone(), asked.member.clone());
        (cluster, member, asked.check.clone())
    });
    let outcome = match asked {
        None => Ok(()),
        Some((cluster, member, check)) => {
            let limit = check.timeout;
            let probing = probe(worker, &cluster, &member, &check);
            timeout(limit, probing)
                .await
                .unwrap_or(Err(Failing::TimedOut(limit)))
        }
    };
    if outcome.is_err() {
        worker.mesh.metrics.health_checks_failed.inc();
    }
    rounds.answered(&key, &outcome);
}

async fn probe(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    member: &Member,
    check: &HealthCheck,
) -> Result<(), Failing> {
    let endpoint = endpoint(worker, cluster, member, check.port)?;
    let inside = match check.probe {
        HealthProbe::Http { .. } => Inside::Http1,
        HealthProbe::Grpc { .. } => Inside::Http2,
        HealthProbe::Tcp => Inside::Bytes,
    };
    let baggage = worker.mesh.baggage.clone();
    let to = (&endpoint, Some(cluster));
    let stream = worker.upstreams.connect(to, None, baggage, inside).await?;
    let io = HttpIo::from(stream);
    let host = &*cluster.live.key.service.hostname;
    match &check.probe {
        HealthProbe::Tcp => Ok(()),
        HealthProbe::Http {
            path,
            host: named,
            expected,
        } => {
            let status = get(io, named.as_deref().unwrap_or(host), path).await?;
            let code = status.as_u16();
            let fine = match expected.is_empty() {
                true => (200..400).contains(&code),
                false => expected
                    .iter()
                    .any(|range| (range.first..=range.last).contains(&code)),
            };
            fine.then_some(()).ok_or(Failing::Status(status))
        }
        HealthProbe::Grpc { service } => serves(io, host, service).await,
    }
}

/// The endpoint itself, or the same workload at another port of the service.
fn endpoint(
    worker: &Worker,
    cluster: &Cluster,
    member: &Member,
    port: Option<u16>,
) -> Result<Arc<Endpoint>, Failing> {
    let key = &cluster.live.key;
    let Some(port) = port.filter(|port| *port != key.port) else {
        return Ok(member.endpoint.clone());
    };
    let workload = &member.endpoint.workload;
    let ports = workload.services.get(&key.service);
    let target = ports.and_then(|ports| ports.get(&port)).copied();
    let target = target.ok_or(Failing::NoPort(port))?;
    let mut addr = member.endpoint.addr;
    addr.set_port(target);
    let key = EndpointKey {
        workload: workload.uid.clone(),
        addr,
    };
    Ok(worker.mesh.services.endpoint(workload, key))
}

async fn get(io: HttpIo, host: &str, path: &str) -> Result<StatusCode, Failing> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(io)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "karst-health-check")
        .header(header::CONNECTION, "close")
        .body(RequestBody::Kept(Vec::new().into_iter()))?;
    let driving = supervise::spawn_local_connection("health check's connection", async move {
        let _told_to_the_request = driver.await;
    });
    let answered = sender.send_request(request).await;
    driving.abort();
    Ok(answered?.status())
}

/// `grpc.health.v1.Health/Check`.
async fn serves(io: HttpIo, host: &str, service: &str) -> Result<(), Failing> {
    let (mut sender, driver) = http2::handshake(LocalExec, TokioIo::new(io)).await?;
    let request = Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "karst-health-check")
        .body(RequestBody::Kept(vec![question(service)].into_iter()))?;
    let driving = supervise::spawn_local_connection("health check's connection", async move {
        let _told_to_the_request = driver.await;
    });
    let answer = async {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => read(response.into_body()).await.map_err(Failing::from),
            status => Err(Failing::Status(status)),
        }
    };
    let answer = answer.await;
    driving.abort();
    // Status SERVING of HealthCheckResponse, in a frame of its own.
    match answer?.as_ref() {
        [0, 0, 0, 0, 2, 8, 1, ..] => Ok(()),
        _ => Err(Failing::NotServing),
    }
}

/// A HealthCheckRequest in its frame.
fn question(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_slice(&[0x0a, service.len() as u8]);
        message.put_slice(service);
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// The first bytes of a body.
async fn read(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut read = BytesMut::new();
    while read.len() < ANSWER_MAX {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        if let Some(data) = frame?.data_ref() {
            read.extend_from_slice(data);
        }
    }
    Ok(read.freeze())
}
