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

use std::{
    cell::RefCell,
    io::{Error, ErrorKind},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;
use http::HeaderValue;
use karst_hbone::{
    Authority, Connect, ConnectError as TunnelError, Pool, PoolConfig, PoolKey, TunnelRequest, tls,
};
use karst_model::identity::SpiffeId;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

pub(crate) use self::{
    http1::{Exchange, Http1},
    http2::{Http2, Http2Load},
};
use crate::{
    error::ConnectError,
    mesh::Mesh,
    services::{Endpoint, Way},
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
}

/// Whose connections: an endpoint's, for clients of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct KeptKey {
    endpoint: u64,
    client: u32,
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

    /// A new connection. `client`: the header that names the client to the destination.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        client: Option<HeaderValue>,
        baggage: Option<HeaderValue>,
    ) -> Result<Stream, ConnectError> {
        let addr = endpoint.addr;
        match &endpoint.way {
            Way::Plain => tcp(addr)
                .await
                .map(Stream::Tcp)
                .map_err(|source| ConnectError::Tcp { addr, source }),
            Way::Tunnel(key) => {
                let request = TunnelRequest {
                    baggage,
                    client,
                    ..TunnelRequest::new(Authority::Addr(addr))
                };
                self.tunnels
                    .open(key.clone(), request)
                    .await
                    .map(Stream::Tunnel)
                    .map_err(|source| ConnectError::Tunnel { addr, source })
            }
        }
    }

    /// An HTTP/1 connection: one without a request, or a new one.
    pub(crate) async fn http1(
        &self,
        endpoint: &Endpoint,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http1, ConnectError> {
        let key = KeptKey {
            endpoint: endpoint.id,
            client: client.number,
        };
        while let Some(mut idle) = self.take(key) {
            if idle.is_alive().await {
                return Ok(idle);
            }
        }
        // Rare, and large: a request that finds a connection does not carry it.
        Box::pin(self.dial_http1(endpoint, client, baggage)).await
    }

    async fn dial_http1(
        &self,
        endpoint: &Endpoint,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http1, ConnectError> {
        let upstream = self
            .connect(endpoint, client.header.clone(), baggage)
            .await?;
        self.adopt(endpoint, client, upstream).await
    }

    /// Keeps a connection for HTTP/1 on which nothing was sent.
    pub(crate) async fn keep_opened(
        &self,
        endpoint: &Endpoint,
        client: &ClientKey,
        upstream: Stream,
    ) -> Result<(), ConnectError> {
        let key = KeptKey {
            endpoint: endpoint.id,
            client: client.number,
        };
        let connection = self.adopt(endpoint, client, upstream).await?;
        keep(&self.kept, key, connection);
        Ok(())
    }

    /// HTTP/1 on a connection that is there already.
    async fn adopt(
        &self,
        endpoint: &Endpoint,
        client: &ClientKey,
        upstream: Stream,
    ) -> Result<Http1, ConnectError> {
        let key = KeptKey {
            endpoint: endpoint.id,
            client: client.number,
        };
        let home = http1::Home {
            kept: Rc::downgrade(&self.kept),
            key,
        };
        Http1::handshake(HttpIo::from(upstream), home)
            .await
            .map_err(|source| ConnectError::Handshake {
                addr: endpoint.addr,
                source,
            })
    }

    /// A place on an HTTP/2 connection, shared or new.
    pub(crate) async fn http2(
        &self,
        endpoint: &Endpoint,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<Http2, ConnectError> {
        let key = KeptKey {
            endpoint: endpoint.id,
            client: client.number,
        };
        let shared = self.kept.borrow_mut().entry(key).or_default().http2.clone();
        loop {
            match shared.acquire() {
                http2::Acquired::Place(place) => return Ok(place),
                http2::Acquired::Wait(dial) => dial.notified().await,
                http2::Acquired::Dial(dialling) => {
                    Box::pin(self.dial_http2(dialling, endpoint, client, baggage.clone())).await?;
                }
            }
        }
    }

    async fn dial_http2(
        &self,
        dialling: http2::Dialling,
        endpoint: &Endpoint,
        client: &ClientKey,
        baggage: Option<HeaderValue>,
    ) -> Result<(), ConnectError> {
        let upstream = self
            .connect(endpoint, client.header.clone(), baggage)
            .await?;
        let addr = endpoint.addr;
        dialling
            .handshake(HttpIo::from(upstream))
            .await
            .map_err(|source| ConnectError::Handshake { addr, source })
    }

    fn take(&self, key: KeptKey) -> Option<Http1> {
        let mut kept = self.kept.borrow_mut();
        kept.get_mut(&key)?.http1.pop().map(|(_, idle)| idle)
    }

    /// Lets connections go that have long been idle, until the thread ends.
    pub(crate) async fn sweep(&self) {
        loop {
            sleep(SWEEP).await;
            let now = Instant::now();
            self.kept.borrow_mut().retain(|_, kept| {
                kept.http1
                    .retain(|(since, _)| now.duration_since(*since) < IDLE_TIMEOUT);
                kept.http2.sweep(now, IDLE_TIMEOUT);
                !kept.http1.is_empty() || !kept.http2.is_empty()
            });
        }
    }
}

/// Keeps a connection for the next request.
fn keep(pools: &Pools, key: KeptKey, connection: Http1) {
    let mut kept = pools.borrow_mut();
    let idle = &mut kept.entry(key).or_default().http1;
    if idle.len() < IDLE_MAX {
        idle.push((Instant::now(), connection));
    }
}

async fn tcp(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr))
        .await
        .map_err(|_elapsed| Error::from(ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
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
        let tcp = tcp(key.addr).await.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => TunnelError::Timeout(CONNECT_TIMEOUT),
            _ => TunnelError::Tcp(error),
        })?;
        tls::tls_connect(tcp, credential.client_config(&key.accepted), TLS_TIMEOUT).await
    }
}
