//! Connections that are no HTTP: routed by port or by the server name of TLS, authorized by what a connection tells, and
//! relayed.

use std::{rc::Rc, sync::Arc, time::Instant};

use karst_hbone::{End, Flag, Flow, RelayEnd};
use karst_identity::tls::Inside;
use karst_model::{
    route::Backend,
    service::Naming,
    traffic::{BalanceAlgorithm, HashKey},
    waypoint_policy::WAYPOINT_CLASS,
    workload::Workload,
};
use karst_routing::{
    hash::hash_of,
    outlier::Outcome,
    request::Sender,
    table::{Dialled, L4Rule, Routes},
};
use karst_telemetry::{
    access_log::{Destination as Shown, Direction, Record, Source},
    error_chain::Chain,
    format::Logged as _,
    hub::Recording,
    metrics::tcp::{Peer, Reporter, ResponseFlags, ServiceLabels, TcpLabels},
};
use rand::Rng as _;
use tokio::time::sleep;

use crate::{
    authorize,
    destination::Destination,
    detect::{self, Hello},
    error::TcpError,
    http::Client,
    services::{Ask, Cluster, InFlight, Port, Slot, Taken},
    stream::Stream,
    workers::Worker,
};

/// Endpoints that are tried before a connection is given up; nothing was sent to any of them.
const TRIES: usize = 3;

/// A connection to an endpoint, which nothing was sent on yet.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) in_flight: InFlight,
    /// The set of endpoints that its endpoint was chosen from, and its place among its connections.
    cluster: Option<Arc<Cluster>>,
    permit: Option<Taken>,
}

/// Relays a connection; `opened`: its endpoint is connected already.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    client: &Client,
    destination: &Destination,
    stream: Stream,
    opened: Option<Opened>,
) {
    let tracked = Tracked::start(worker, client, destination);
    let opened = match opened {
        Some(opened) => Ok(opened),
        None => open(worker, client, destination, None).await,
    };
    match opened {
        Ok(opened) => {
            let revoked = revoked(worker, client, destination, None);
            tracked.carry(stream, opened, revoked).await;
        }
        Err(error) => tracked.refuse(&error),
    }
}

/// Relays a TLS connection to where its server name is routed.
pub(crate) async fn serve_tls(
    worker: &Rc<Worker>,
    client: &Client,
    destination: &Destination,
    mut stream: Stream,
) {
    let tracked = Tracked::start(worker, client, destination);
    let opened = async {
        let name = server_name(&mut stream).await?;
        let opened = open(worker, client, destination, Some(name.as_deref())).await?;
        Ok((opened, name))
    };
    match opened.await {
        Ok((opened, name)) => {
            let revoked = revoked(worker, client, destination, name.as_deref());
            tracked.carry(stream, opened, revoked).await;
        }
        Err(error) => tracked.refuse(&error),
    }
}

async fn server_name(stream: &mut Stream) -> Result<Option<String>, TcpError> {
    let mut wanted = 6;
    loop {
        let seen = stream.peek(wanted).await.map_err(TcpError::ClientIo)?;
        match detect::client_hello(&seen) {
            Hello::Name(name) => return Ok(name),
            Hello::More(more) if seen.len() >= wanted => wanted = more,
            _ => return Err(TcpError::Hello),
        }
    }
}

/// Connects to an endpoint that the connection is routed to. `sni`: it is TLS, with this server name.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    client: &Client,
    destination: &Destination,
    sni: Option<Option<&str>>,
) -> Result<Opened, TcpError> {
    allow(worker, client, destination, sni.flatten())?;
    let cluster = match target(worker, client, destination, sni)? {
        None => None,
        Some(target) => Some(Box::pin(target.cluster(worker, sni.flatten())).await?),
    };
    let permit = cluster.as_ref().map(place).transpose()?.flatten();
    let mut avoid = Vec::new();
    loop {
        let ask = Ask {
            avoid: &avoid,
            elsewhere: false,
            hash: cluster.as_ref().and_then(|cluster| key(cluster, client)),
            dialled: destination.dialled,
            session: None,
        };
        let (endpoint, member) = match (&destination.pinned, &cluster) {
            (Some(endpoint), _) => (endpoint.clone(), None),
            (None, Some(cluster)) => {
                let member = cluster.choose(&ask, &mut rand::rng())?;
                (member.endpoint.clone(), Some(member))
            }
            (None, None) => return Err(TcpError::Backend("the service is gone".to_owned())),
        };
        let in_flight = endpoint.start();
        let baggage = worker.mesh.baggage.clone();
        let connected = worker
            .upstreams
            .connect(
                (&endpoint, cluster.as_ref()),
                client.header(),
                baggage,
                Inside::Bytes,
            )
            .await;
        if let (Some(cluster), Some(member)) = (&cluster, &member)
            && let Some(outlier) = &cluster.policy.outlier
        {
            let outcome = match &connected {
                Ok(_) => Outcome::Status(200),
                Err(_) => Outcome::Unreached,
            };
            cluster.live.observe(outlier, &member.health, outcome);
        }
        match connected {
            Ok(stream) => {
                return Ok(Opened {
                    stream,
                    in_flight,
                    cluster,
                    permit,
                });
            }
            Err(error) => {
                avoid.push(endpoint.id);
                if destination.pinned.is_some() || avoid.len() >= TRIES {
                    return Err(error.into());
                }
            }
        }
    }
}

/// A place among the connections of the set, where they are limited. A connection does not wait for one.
fn place(cluster: &Arc<Cluster>) -> Result<Option<Taken>, TcpError> {
    let Some(max) = cluster.policy.connections.max else {
        return Ok(None);
    };
    match Taken::take(&cluster.live, |live| &live.connections, max) {
        Some(permit) => Ok(Some(permit)),
        None => {
            cluster.live.overflowed();
            Err(TcpError::Full {
                set: cluster.live.key.to_string(),
                limit: max,
            })
        }
    }
}

/// Of what a connection has, only the client's address can be its key.
fn key(cluster: &Cluster, client: &Client) -> Option<u64> {
    match &cluster.policy.balance.algorithm {
        BalanceAlgorithm::ConsistentHash(consistent) if consistent.key == HashKey::SourceIp => {
            Some(hash_of(client.addr.ip().to_string().as_bytes()))
        }
        _ => None,
    }
}

/// Asks policy. Also once more when something about the service changes, for as long as the connection lives.
pub(crate) fn allow(
    worker: &Worker,
    client: &Client,
    destination: &Destination,
    sni: Option<&str>,
) -> Result<(), TcpError> {
    let served = destination.slot.as_ref().map(|slot| slot.load().clone());
    let connection = authorize::connection_of(client, destination);
    authorize::connection(
        &worker.mesh,
        destination,
        served.as_deref(),
        &connection,
        sni,
    )
    .map_err(|authorize::Denied(why)| TcpError::Denied(why))
}

/// Completes when policy does not allow the connection any more.
async fn revoked(
    worker: &Worker,
    client: &Client,
    destination: &Destination,
    sni: Option<&str>,
) -> TcpError {
    let services = &worker.mesh.services;
    let mut changes = services.changes_of(destination.slot.as_ref());
    loop {
        if let Err(error) = allow(worker, client, destination, sni) {
            return error;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// What takes a connection, before it is known which endpoints that is.
struct Target {
    slot: Arc<Slot>,
    number: u16,
    port: Arc<Port>,
    subset: Option<Arc<str>>,
}

impl Target {
    /// The endpoints. Those of a service without any of its own are the host's that the client names in its TLS.
    async fn cluster(self, worker: &Worker, name: Option<&str>) -> Result<Arc<Cluster>, TcpError> {
        let service = self.slot.load().service.clone();
        let port = match service.filter(|service| service.naming == Naming::Asked) {
            None => self.port,
            Some(service) => {
                let unnamed = || TcpError::NoName(service.key.clone());
                let host = name.ok_or_else(unnamed)?;
                let services = &worker.mesh.services;
                services.asked_port(&service, self.number, host).await?
            }
        };
        Ok(port.cluster(self.subset.as_ref())?.clone())
    }
}

/// Whether the endpoints of what was dialled are those of the host that the client names.
pub(crate) fn goes_by_name(destination: &Destination) -> bool {
    let served = destination.slot.as_ref().map(|slot| slot.load());
    let service = served.as_ref().and_then(|served| served.service.as_ref());
    destination.pinned.is_none() && service.is_some_and(|one| one.naming == Naming::Asked)
}

/// What takes the connection.
fn target(
    worker: &Worker,
    client: &Client,
    destination: &Destination,
    sni: Option<Option<&str>>,
) -> Result<Option<Target>, TcpError> {
    let served = destination.slot.as_ref().map(|slot| slot.load());
    let port = served
        .as_ref()
        .and_then(|served| served.ports.get(&destination.port));
    let own = destination.slot.as_ref();
    let Some((port, own)) = port.zip(own).filter(|_| destination.pinned.is_none()) else {
        return Ok(None);
    };
    let rule = match port.table.routes(client.namespace()) {
        Routes::None | Routes::Http(_) => {
            return Ok(Some(Target {
                slot: own.clone(),
                number: destination.port,
                port: port.clone(),
                subset: None,
            }));
        }
        Routes::Tcp(rule) => rule,
        Routes::OrderedTcp(table) => {
            let sender = sender(worker, client, table.asks_sender());
            let dialled = dialled(client, destination, None, &sender);
            let no_rule = || TcpError::NoRoute("no rule takes it".to_owned());
            table.pick(&dialled).ok_or_else(no_rule)?
        }
        Routes::Tls(table) => {
            let sender = sender(worker, client, table.asks_sender());
            let dialled = dialled(client, destination, sni.flatten(), &sender);
            table.pick(&dialled).ok_or_else(|| {
                TcpError::NoRoute(match sni.flatten() {
                    Some(name) => format!("no rule for server name {name}"),
                    None => "it names no server".to_owned(),
                })
            })?
        }
    };
    let connection = authorize::connection_of(client, destination);
    let target = backend(worker, rule, destination.port)?;
    if own.key != target.slot.key {
        let (slot, number) = (&target.slot, target.number);
        authorize::connection_for_backend(slot, number, &connection, sni.flatten())
            .map_err(|authorize::Denied(why)| TcpError::Denied(why))?;
    }
    Ok(Some(target))
}

fn sender(worker: &Worker, client: &Client, asked: bool) -> Sender {
    match asked {
        true => client.sender(&worker.mesh),
        false => Sender::default(),
    }
}

/// What rules for connections may ask.
fn dialled<'a>(
    client: &Client,
    destination: &Destination,
    sni: Option<&'a str>,
    sender: &'a Sender,
) -> Dialled<'a> {
    Dialled {
        sni,
        port: destination.port,
        destination: destination.dialled.map(|addr| addr.ip()),
        client: Some(client.addr.ip()),
        sender,
    }
}

/// `dialled`: the port that stands for one that the rule does not name.
fn backend(worker: &Worker, rule: &L4Rule, dialled: u16) -> Result<Target, TcpError> {
    let index = rule.weights.pick(rand::rng().next_u64());
    let backend = index.and_then(|index| rule.backends.get(index));
    let Some(backend) = backend else {
        return Err(TcpError::Backend("none has a weight above zero".to_owned()));
    };
    match &backend.backend {
        Backend::Invalid(why) => Err(TcpError::Backend(why.to_string())),
        Backend::Service {
            service,
            port,
            subset,
        } => {
            let slot = worker.mesh.services.get(service);
            let port = if *port == 0 { dialled } else { *port };
            let found = slot.and_then(|slot| {
                let found = slot.load().ports.get(&port).cloned()?;
                Some((slot, port, found))
            });
            let no_port = || TcpError::Backend(format!("{service} has no port {port}"));
            let (slot, number, port) = found.ok_or_else(no_port)?;
            Ok(Target {
                slot,
                number,
                port,
                subset: subset.clone(),
            })
        }
    }
}

/// Keeps a connection that turned out to be wanted for HTTP/1.
pub(crate) async fn give_to_http(worker: &Rc<Worker>, client: &Client, opened: Opened) {
    let endpoint = opened.in_flight.endpoint().clone();
    let to = (&endpoint, opened.cluster.as_ref());
    if let Err(error) = worker
        .upstreams
        .keep_opened(to, &client.key, (opened.stream, opened.permit))
        .await
    {
        tracing::debug!(error = %Chain(&error), "a connection to an endpoint ended before it was used");
    }
}

/// One connection from its start to its end, as metrics and access log tell it.
pub(crate) struct Tracked<'a> {
    worker: &'a Worker,
    recording: Arc<Recording>,
    labels: TcpLabels,
    record: Record,
    since: Instant,
}

impl<'a> Tracked<'a> {
    pub(crate) fn start(worker: &'a Worker, client: &Client, destination: &Destination) -> Self {
        let service = destination
            .slot
            .as_ref()
            .map(|slot| slot.load().labels.clone());
        let service: ServiceLabels = service.map(Arc::unwrap_or_clone).unwrap_or_default();
        let mut record = Record::new(Direction::Waypoint);
        record.source = Source {
            addr: Some(client.addr),
            workload: text(&client.labels.workload),
            namespace: text(&client.labels.namespace),
            identity: text(&client.labels.principal),
            cluster: text(&client.labels.cluster),
        };
        record.destination.service = text(&service.host);
        let mesh = &worker.mesh;
        let key = destination.slot.as_ref().map(|slot| &slot.key);
        Self {
            worker,
            recording: mesh.hub.for_requests(&mesh.gateway, WAYPOINT_CLASS, key),
            labels: TcpLabels {
                reporter: Reporter::Waypoint,
                source: (*client.labels).clone(),
                destination: Peer::default(),
                service,
                response_flags: ResponseFlags::None,
                security: client.security(),
            },
            record,
            since: Instant::now(),
        }
    }

    /// The connection was not made.
    pub(crate) fn refuse(mut self, error: &TcpError) {
        self.labels.response_flags = flag(error.flag());
        self.worker.mesh.metrics.tcp.failed(&self.labels);
        self.record.error = Some(Chain(error).to_string());
        self.record.failed();
    }

    async fn carry(
        mut self,
        client: Stream,
        opened: Opened,
        revoked: impl Future<Output = TcpError>,
    ) {
        let endpoint = opened.in_flight.endpoint();
        self.labels.destination = (*endpoint.labels).clone();
        self.record.destination = Shown {
            addr: Some(endpoint.addr),
            service: self.record.destination.service.take(),
            ..shown(&endpoint.workload)
        };
        let tcp = &self.worker.mesh.metrics.tcp;
        let attributes = || self.record.attributes();
        let plan = &self.recording.plan.metrics;
        let handles = tcp.handles_for(&self.labels, plan, &attributes);
        let sockets = tcp.sockets_open(Reporter::Waypoint);
        handles.opened.inc();
        sockets.inc();
        self.record.opened();
        let flow = Flow::default();
        let mut joined = std::pin::pin!(client.join(opened.stream, &flow));
        let (ended, closed) = tokio::select! {
            ended = &mut joined => (ended, None),
            error = revoked => {
                self.worker.mesh.metrics.revoked.inc();
                flow.cut();
                (joined.await, Some(format!("closed because policy changed: {error}")))
            }
            why = time_up(opened.cluster.as_ref(), &flow) => {
                flow.cut();
                (joined.await, Some(why.to_owned()))
            }
        };
        let RelayEnd {
            sent,
            received,
            end,
        } = ended;
        sockets.dec();
        handles.closed.inc();
        handles.received.inc_by(sent);
        handles.sent.inc_by(received);
        self.record.bytes_recv = sent;
        self.record.bytes_sent = received;
        self.record.duration = self.since.elapsed();
        self.record.error = closed.or_else(|| describe(&end));
        self.recording.log(&self.record);
    }
}

/// Completes when a connection is as old as its service lets it be, or was idle for as long.
async fn time_up(cluster: Option<&Arc<Cluster>>, flow: &Flow) -> &'static str {
    let limits = cluster.map(|cluster| &cluster.policy.connections);
    let age = async {
        match limits.and_then(|limits| limits.max_age) {
            Some(age) => sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let idle = async {
        let Some(idle) = limits.and_then(|limits| limits.tcp_idle_timeout) else {
            return std::future::pending().await;
        };
        loop {
            let before = (flow.sent(), flow.received());
            sleep(idle).await;
            if before == (flow.sent(), flow.received()) {
                return;
            }
        }
    };
    tokio::select! {
        () = age => "closed: it is as old as its service lets a connection be",
        () = idle => "closed: nothing was sent for as long as its service waits",
    }
}

fn describe(end: &End) -> Option<String> {
    match end {
        End::Finished => None,
        End::App(error) | End::Upstream(error) => Some(format!("a side ended it: {error}")),
        End::Tunnel(error) => Some(Chain(error).to_string()),
        End::Cut => Some("closed because policy changed".to_owned()),
    }
}

fn text(value: &Arc<str>) -> Option<String> {
    (!value.is_empty()).then(|| value.to_string())
}

fn shown(workload: &Workload) -> Shown {
    Shown {
        workload: text(&workload.workload_name),
        namespace: text(&workload.namespace),
        cluster: text(&workload.cluster_id),
        ..Shown::default()
    }
}

fn flag(flag: Flag) -> ResponseFlags {
    match flag {
        Flag::None => ResponseFlags::None,
        Flag::Connect => ResponseFlags::Connect,
        Flag::Deny => ResponseFlags::Deny,
        Flag::TlsFailure => ResponseFlags::TlsFailure,
        Flag::H2HandshakeFailure => ResponseFlags::H2HandshakeFailure,
        Flag::NetworkPolicy => ResponseFlags::NetworkPolicy,
        Flag::IdentityError => ResponseFlags::IdentityError,
    }
}
