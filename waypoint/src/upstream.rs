//! Connections to endpoints, made and kept by one data-path thread: tunnels or plain TCP, and on them HTTP connections
//! that many requests use one after another (HTTP/1) or at once (HTTP/2).
//!
//! ```text
//!   phases ─► Upstreams::http1 ─┬─ idle connection of this endpoint and client identity
//!                               └─ connect ─► hbone::Pool (one TLS connection per workload, many tunnels) or TCP
//! ```
//!
//! Connections are not shared between clients of different identities: the destination's telemetry names one client
//! per tunnel.

mod http1;
mod http2;
mod originate;
mod terms;

use std::{
    cell::RefCell,
    io::{Error, ErrorKind},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;
use http::HeaderValue;
use karst_hbone::{
    Authority, Connect, ConnectError as TunnelError, OpenError, Pool, PoolConfig, PoolKey, Tunnel,
    TunnelRequest, tls,
};
use karst_identity::tls::Inside;
use karst_model::{identity::SpiffeId, traffic::TcpKeepalive};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::terms::{PENDING_MAX, Terms};
pub(crate) use self::{
    http1::{Exchange, Http1},
    http2::{Http2, Http2Load},
};
use crate::{
    error::ConnectError,
    mesh::Mesh,
    services::{Cluster, Endpoint, Taken, Way},
    stream::{HttpIo, Stream},
};

/// How long a TCP connection may take to be accepted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long our own certificate may take when the first connection comes before it was issued.
const CREDENTIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long an HTTP connection stays without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// HTTP/1 connections without a request that are kept per endpoint and client identity.
const IDLE_MAX: usize = 128;

/// The upstream connections of one thread.
pub(crate) struct Upstreams {
    tunnels: Pool<Dialler>,
    kept: Rc<Pools>,
    /// Numbers of client identities.
    clients: RefCell<HashMap<Option<SpiffeId>, u32>>,
    /// How TLS is made to the endpoints of a set.
    originations: originate::Originations,
}

/// Where a request goes: an endpoint, and the set of endpoints that it was chosen from.
pub(crate) type To<'a> = (&'a Arc<Endpoint>, Option<&'a Arc<Cluster>>);

/// Whose connections: an endpoint's, for clients of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct KeptKey {
    endpoint: u64,
    client: u32,
    /// The set of endpoints that it is of, where its connections are its own; else 0.
    set: u64,
    /// Number of the set's TLS settings: what was made by former ones serves nobody any more.
    secured: u64,
}

type Pools = RefCell<HashMap<KeptKey, Kept>>;

#[derive(Default)]
struct Kept {
    /// Without a request, the most recently used last.
    http1: Vec<(Instant, Http1)>,
    http2: http2::Shared,
}

/// The client of a connection as its destination is told.
#[derive(Clone)]
pub(crate) struct ClientKey {
    number: u32,
    /// `karst-client` without an address: for connections that many clients of the identity use.
    header: Option<HeaderValue>,
}

impl Upstreams {
    pub(crate) fn new(mesh: &Arc<Mesh>) -> Self {
        Self {
            tunnels: Pool::new(PoolConfig::default(), Dialler(mesh.clone())),
            kept: Rc::default(),
            clients: RefCell::default(),
            originations: originate::Originations::default(),
        }
    }

    /// The key of clients with this identity.
    pub(crate) fn client(&self, identity: Option<&SpiffeId>) -> ClientKey {
        let mut clients = self.clients.borrow_mut();
        let next = u32::try_from(clients.len()).unwrap_or(u32::MAX);
        let number = *clients.entry(identity.cloned()).or_insert(next);
        let header = identity.and_then(|id| HeaderValue::try_from(format!("{id};")).ok());
        ClientKey { number, header }
    }

    /// A new connection. `client`: the header that names the client to the destination. `inside`: what will be spoken, for
    /// an endpoint to which the waypoint makes TLS itself.
    pub(crate) async fn connect(
        &self,
        to: To<'_>,
        client: Option<HeaderValue>,
        baggage: Option<HeaderValue>,
        inside: Inside,
    ) -> Result<Stream, ConnectError> {
        let stream = self.connect_plainly(to, client, baggage).await?;
        match to.1.filter(|cluster| originate::is_wanted(cluster)) {
            None => Ok(stream),
            Some(cluster) => {
                let made = self.originations.make(cluster, to.0, stream, inside);
                Box::pin(made).await
            }
        }
    }

    async fn connect_plainly(
        &self,
        (endpoint, cluster): To<'_>,
        client: Option<HeaderValue>,
        baggage: Option<HeaderValue>,
    ) -> Result<Stream, ConnectError> {
        let addr = endpoint.addr;
        let limits = cluster.map(|cluster| &cluster.policy.connections);
        let patience = limits.and_then(|limits| limits.connect_timeout);
        match &endpoint.way {
            Way::Plain if cluster.is_some_and(|cluster| originate::is_mesh_only(cluster)) => {
                Err(ConnectError::NotInMesh { addr })
            }
            Way::Plain => {
                let stream = tcp(addr, patience.unwrap_or(CONNECT_TIMEOUT)).await;
                let stream = stream.map_err(|source| ConnectError::Tcp { addr, source })?;
                if let Some(keepalive) = limits.and_then(|limits| limits.keepalive.as_ref()) {
                    keep_alive(&stream, keepalive);
                }
                Ok(Stream::Tcp(stream))
            }
            Way::Tunnel(key) => {
                let request = TunnelRequest {
                    baggage,
                    client,
                    ..TunnelRequest::new(Authority::Addr(addr))
                };
                let opening = self.tunnels.open(key.clone(), request);
                let opened = match patience {
                    None => opening.await,
                    Some(patience) => {
                        let opened = timeout(patience, opening).await;
                        opened.map_err(|_elapsed| ConnectError::Tcp {
                            addr,
                            source: Error::from(ErrorKind::TimedOut),
                        })?
                    }
                };
                opened
                    .map(Stream::Tunnel)
                    .map_err(|source| ConnectError::Tunnel { addr, source })
            }
        }
    }

    /// A stream of a tunnel to anybody.
    pub(crate) async fn tunnel(
        &self,
        key: PoolKey,
        request: TunnelRequest,
    ) -> Result<Tunnel, OpenError> {
        self.tunnels.open(key, request).await
    }

    /// An HTTP/1 connection: one without a request, or a new one.
    pub(crate) async fn http1(
        &self,
        to: To<'_>,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http1, ConnectError> {
        let key = KeptKey::new(to, client);
        while let Some(mut idle) = self.take(key) {
            if idle.is_alive().await {
                return Ok(idle);
            }
        }
        // Rare, and large: a request that finds a connection does not carry it.
        Box::pin(self.dial_http1(to, client, baggage)).await
    }

    async fn dial_http1(
        &self,
        to: To<'_>,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http1, ConnectError> {
        let key = KeptKey::new(to, client);
        let permit = loop {
            match self.place(to.1, || self.take(key)).await? {
                Place::Dial(permit) => break permit,
                Place::Found(mut idle) => {
                    if idle.is_alive().await {
                        return Ok(idle);
                    }
                }
            }
        };
        let header = client.header.clone();
        let upstream = self.connect(to, header, baggage, Inside::Http1).await?;
        self.adopt(to, client, (upstream, permit)).await
    }

    /// A place among the connections of the set, or what `found` has found meanwhile. Where there is no place it waits in a
    /// bounded queue.
    async fn place<T>(
        &self,
        cluster: Option<&Arc<Cluster>>,
        mut found: impl FnMut() -> Option<T>,
    ) -> Result<Place<T>, ConnectError> {
        let limited = cluster.and_then(|cluster| Some((cluster, cluster.policy.connections.max?)));
        let Some((cluster, max)) = limited else {
            return Ok(Place::Dial(None));
        };
        let live = &cluster.live;
        let take = || Taken::take(live, |live| &live.connections, max);
        if let Some(permit) = take() {
            return Ok(Place::Dial(Some(permit)));
        }
        let queue = cluster.policy.connections.max_pending;
        let queue = queue.unwrap_or(PENDING_MAX);
        let Some(_waits) = Taken::take(live, |live| &live.pending, queue) else {
            live.overflowed();
            return Err(full(cluster, max));
        };
        loop {
            let mut freed = pin!(live.freed.notified());
            freed.as_mut().enable();
            if let Some(permit) = take() {
                return Ok(Place::Dial(Some(permit)));
            }
            if let Some(found) = found() {
                return Ok(Place::Found(found));
            }
            live.want_connection();
            freed.await;
        }
    }

    /// Keeps a connection for HTTP/1 on which nothing was sent.
    pub(crate) async fn keep_opened(
        &self,
        to: To<'_>,
        client: &ClientKey,
        opened: (Stream, Option<Taken>),
    ) -> Result<(), ConnectError> {
        let connection = self.adopt(to, client, opened).await?;
        keep(&self.kept, KeptKey::new(to, client), connection);
        Ok(())
    }

    /// HTTP/1 on a connection that is there already.
    async fn adopt(
        &self,
        to: To<'_>,
        client: &ClientKey,
        (upstream, permit): (Stream, Option<Taken>),
    ) -> Result<Http1, ConnectError> {
        let home = http1::Home {
            kept: Rc::downgrade(&self.kept),
            key: KeptKey::new(to, client),
            terms: Terms::new(to.1, permit),
        };
        Http1::handshake(HttpIo::from(upstream), home)
            .await
            .map_err(|source| ConnectError::Handshake {
                addr: to.0.addr,
                source,
            })
    }

    /// A place on an HTTP/2 connection, shared or new.
    pub(crate) async fn http2(
        &self,
        to: To<'_>,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http2, ConnectError> {
        let key = KeptKey::new(to, client);
        let shared = self.kept.borrow_mut().entry(key).or_default().http2.clone();
        loop {
            match shared.acquire() {
                http2::Acquired::Place(place) => return Ok(place),
                http2::Acquired::Wait(dial) => dial.notified().await,
                http2::Acquired::Dial(dialling) => {
                    let dialled = self.dial_http2(&shared, dialling, to, client, baggage.clone());
                    if let Some(place) = Box::pin(dialled).await? {
                        return Ok(place);
                    }
                }
            }
        }
    }

    /// Makes a connection, or brings a place on one that has become free meanwhile.
    async fn dial_http2(
        &self,
        shared: &http2::Shared,
        dialling: http2::Dialling,
        to: To<'_>,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Option<Http2>, ConnectError> {
        let (endpoint, cluster) = to;
        let limit = cluster.and_then(|cluster| cluster.policy.connections.max);
        let permit = match cluster.zip(limit) {
            None => None,
            Some((cluster, max)) => {
                match Taken::take(&cluster.live, |live| &live.connections, max) {
                    Some(permit) => Some(permit),
                    None => {
                        // Others may find a place while this one waits.
                        drop(dialling);
                        let place = self.place(Some(cluster), || shared.free()).await?;
                        return Ok(match place {
                            Place::Found(place) => Some(place),
                            Place::Dial(_) => None,
                        });
                    }
                }
            }
        };
        let header = client.header.clone();
        let upstream = self.connect(to, header, baggage, Inside::Http2).await?;
        let addr = endpoint.addr;
        dialling
            .handshake(HttpIo::from(upstream), Terms::new(cluster, permit))
            .await
            .map_err(|source| ConnectError::Handshake { addr, source })?;
        Ok(None)
    }

    fn take(&self, key: KeptKey) -> Option<Http1> {
        let mut kept = self.kept.borrow_mut();
        kept.get_mut(&key)?.http1.pop().map(|(_, idle)| idle)
    }

    /// Lets connections go that have long been idle, or whose place somebody waits for, until the thread ends.
    pub(crate) async fn sweep(&self, mut wanted: watch::Receiver<()>) {
        loop {
            tokio::select! {
                () = sleep(SWEEP) => self.sweep_once(),
                changed = wanted.changed() => match changed {
                    Ok(()) => self.release_wanted(),
                    Err(_gone) => return,
                },
            }
        }
    }

    fn sweep_once(&self) {
        let now = Instant::now();
        self.kept.borrow_mut().retain(|_, kept| {
            kept.http1
                .retain(|(since, idle)| now.duration_since(*since) < idle.terms().idle);
            kept.http2.sweep(now);
            !kept.http1.is_empty() || !kept.http2.is_empty()
        });
    }

    fn release_wanted(&self) {
        for kept in self.kept.borrow_mut().values_mut() {
            kept.http1.retain(|(_, idle)| !idle.terms().is_wanted());
            kept.http2.release_wanted();
        }
    }
}

impl KeptKey {
    fn new((endpoint, cluster): To<'_>, client: &ClientKey) -> Self {
        let own = cluster.filter(|cluster| cluster.has_own_connections());
        Self {
            endpoint: endpoint.id,
            client: client.number,
            set: own.map_or(0, |cluster| cluster.live.id),
            secured: own.map_or(0, |cluster| cluster.secured),
        }
    }
}

/// What to do for a connection of a set that may have only so many.
enum Place<T> {
    Dial(Option<Taken>),
    Found(T),
}

fn full(cluster: &Cluster, limit: u32) -> ConnectError {
    ConnectError::Full {
        set: cluster.live.key.to_string(),
        limit,
        what: "as many requests as may wait for one already do",
    }
}

/// Keeps a connection for the next request.
fn keep(pools: &Pools, key: KeptKey, connection: Http1) {
    let mut kept = pools.borrow_mut();
    let idle = &mut kept.entry(key).or_default().http1;
    if idle.len() < IDLE_MAX {
        connection.terms().freed();
        idle.push((Instant::now(), connection));
    }
}

async fn tcp(addr: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let stream = timeout(patience, TcpStream::connect(addr))
        .await
        .map_err(|_elapsed| Error::from(ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The system probes the connection while nothing is sent. A system that cannot is no reason to fail.
fn keep_alive(stream: &TcpStream, wanted: &TcpKeepalive) {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "keepalive probes cannot be set");
    }
}

/// Dials for the pool: TCP, then TLS with our own certificate.
struct Dialler(Arc<Mesh>);

impl Connect for Dialler {
    type Io = tls::TlsIo<TcpStream>;

    async fn connect(&self, key: &PoolKey) -> Result<Self::Io, TunnelError> {
        let credential = self
            .0
            .identities
            .wait(&key.source_identity, CREDENTIAL_PATIENCE)
            .await
            .map_err(|error| TunnelError::Identity(Box::new(error)))?;
        let tcp = tcp(key.addr, CONNECT_TIMEOUT)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::TimedOut => TunnelError::Timeout(CONNECT_TIMEOUT),
                _ => TunnelError::Tcp(error),
            })?;
        tls::tls_connect(tcp, credential.client_config(&key.accepted), TLS_TIMEOUT).await
    }
}
