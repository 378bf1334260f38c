//! The client side: tunnels over pooled connections.
//!
//! ```text
//!   open ──► State::acquire ─┬─ Use ───────────────────────────► CONNECT ──► 200 ──► Tunnel
//!            (pure)          ├─ Dial ──► Connect (TCP, TLS) ──► h2 ──► driver task (frames, pings, idle)
//!                            └─ Wait ──► the dial of somebody else
//! ```
//!
//! A pool lives on one worker thread; its connections and their streams stay there.

mod driver;
mod early;
pub mod state;

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use karst_model::{identity::SpiffeId, name::WorkloadUid};
use karst_runtime::supervise;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::Instant,
};

use crate::{
    CONNECTION_WINDOW, MAX_FRAME, STREAM_WINDOW,
    error::{ConnectError, DialError, OpenError},
    keepalive::KeepaliveConfig,
    request::{self, TunnelRequest},
    stream::{StreamLoad, StreamPermit, Tunnel},
};
use early::LastAnswer;
use state::{Acquire, ConnId, Counters, Limits, Refusal, State};

/// Connections that may end under a request before it gives up.
const ATTEMPTS: u32 = 3;

/// What makes two tunnels share a connection: all of it equal. A reused pod address is another destination, a changed
/// set of accepted identities is another key, and two pods never share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub source: WorkloadUid,
    /// Shown to the peer.
    pub source_identity: SpiffeId,
    pub destination: WorkloadUid,
    /// The peer's HBONE listener.
    pub addr: SocketAddr,
    /// One of these the peer must prove.
    pub accepted: Arc<[SpiffeId]>,
}

/// Makes authenticated byte streams to peers: TCP in the source pod's namespace, then TLS (see [`crate::tls`]).
pub trait Connect: 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    fn connect(&self, key: &PoolKey) -> impl Future<Output = Result<Self::Io, ConnectError>>;
}

/// Limits and times of a pool. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    pub limits: Limits,
    pub stream_window: u32,
    pub connection_window: u32,
    pub max_frame: u32,
    pub max_header_list: u32,
    /// Unsent bytes that one stream may queue.
    pub send_buffer: usize,
    /// From the request to its answer; the server's own connect timeout is 10 s.
    pub response_timeout: Duration,
    pub keepalive: KeepaliveConfig,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            limits: Limits {
                connections: 4096,
                waiters: 16_384,
                streams_per_connection: 100,
                idle_timeout: Duration::from_secs(300),
            },
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame: MAX_FRAME,
            max_header_list: 16 << 10,
            send_buffer: MAX_FRAME as usize,
            response_timeout: Duration::from_secs(20),
            keepalive: KeepaliveConfig::default(),
        }
    }
}

/// A pool of connections to HBONE servers. Clones share it.
pub struct Pool<C> {
    inner: Rc<Inner<C>>,
}

impl<C> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<C> {
    connect: C,
    cfg: PoolConfig,
    shared: Arc<Shared>,
}

/// What streams and drivers report to. The lock is held for map operations only, never across a wait.
struct Shared(Mutex<Table>);

struct Table {
    state: State,
    handles: HashMap<ConnId, Handle>,
    dials: HashMap<Arc<PoolKey>, watch::Receiver<DialOutcome>>,
    /// What peers said when they refused our certificate, until somebody who asks for a tunnel is told.
    refusals: HashMap<Arc<PoolKey>, String>,
}

/// Refusals that wait to be told; further ones show as connections that ended.
const REFUSALS_MAX: usize = 1024;

/// `None` while the dial is under way.
type DialOutcome = Option<Result<(), Arc<DialError>>>;

#[derive(Clone)]
struct Handle {
    send: SendRequest<Bytes>,
    load: Arc<StreamLoad>,
    last_answer: Arc<LastAnswer>,
}

/// A place for one stream on a connection.
struct Lease {
    id: ConnId,
    send: SendRequest<Bytes>,
    permit: Arc<StreamPermit>,
    last_answer: Arc<LastAnswer>,
}

/// A request that got no tunnel.
struct Failed {
    error: OpenError,
    /// Bytes had gone with it.
    rode: bool,
}

impl Failed {
    fn may_repeat(&self) -> bool {
        matches!(&self.error, OpenError::Request(error) if early::may_repeat(error, self.rode))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while it was held ended one connection; the table itself is consistent between statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retire(&self, id: ConnId) {
        let mut table = self.lock();
        table.state.retire(id);
        let handle = table.handles.remove(&id);
        drop(table);
        // Dropping a handle wakes the driver, which may come back here.
        drop(handle);
    }

    fn closed(&self, id: ConnId) {
        let mut table = self.lock();
        table.state.closed(id);
        let handle = table.handles.remove(&id);
        drop(table);
        drop(handle);
    }

    /// The peer ended the connection with a TLS alert.
    fn refused(&self, id: ConnId, alert: String) {
        let mut table = self.lock();
        if table.refusals.len() < REFUSALS_MAX
            && let Some(key) = table.state.key(id)
        {
            table.refusals.insert(key, alert);
        }
    }

    /// The refusal of a connection that was of no use, as the failed dial that it is.
    fn take_refusal(&self, key: &PoolKey) -> Option<OpenError> {
        let alert = self.lock().refusals.remove(key)?;
        let refused = DialError::Connect(ConnectError::Refused(alert));
        Some(OpenError::Dial(Arc::new(refused)))
    }

    fn retire_if_idle(&self, id: ConnId) {
        if self.lock().state.retire_if_idle(Instant::now(), id) {
            self.retire(id);
        }
    }
}

impl<C: Connect> Pool<C> {
    pub fn new(cfg: PoolConfig, connect: C) -> Self {
        let table = Table {
            state: State::new(cfg.limits),
            handles: HashMap::new(),
            dials: HashMap::new(),
            refusals: HashMap::new(),
        };
        Self {
            inner: Rc::new(Inner {
                connect,
                cfg,
                shared: Arc::new(Shared(Mutex::new(table))),
            }),
        }
    }

    /// Opens a tunnel: CONNECT on a pooled connection, dialled where there is none. Must run inside a `LocalSet`.
    ///
    /// # Errors
    /// See [`OpenError`]. No payload has been sent then.
    pub async fn open(&self, key: PoolKey, tunnel: TunnelRequest) -> Result<Tunnel, OpenError> {
        self.open_with(key, tunnel, &Bytes::new()).await
    }

    /// Opens a tunnel whose first bytes are known already: they may travel with the request. Keep them few (one read
    /// of a socket): until the answer they are outside the peer's flow control.
    ///
    /// # Errors
    /// See [`OpenError`]. The bytes are lost then; the peer may have got them, but never twice.
    pub async fn open_with(
        &self,
        key: PoolKey,
        tunnel: TunnelRequest,
        first: &Bytes,
    ) -> Result<Tunnel, OpenError> {
        let key = Arc::new(key);
        let request = tunnel.to_http().map_err(OpenError::Invalid)?;
        for _attempt in 0..ATTEMPTS {
            let Some(lease) = self.lease(&key).await? else {
                match self.inner.shared.take_refusal(&key) {
                    Some(refused) => return Err(refused),
                    None => continue,
                }
            };
            let id = lease.id;
            match self.request(lease, request.clone(), first).await {
                Err(failed) if failed.may_repeat() => {
                    // The connection, not the tunnel, ended; nothing was delivered.
                    tracing::debug!(error = %failed.error, "connection ended under a request");
                    self.inner.shared.retire(id);
                    if let Some(refused) = self.inner.shared.take_refusal(&key) {
                        return Err(refused);
                    }
                }
                outcome => return outcome.map_err(|failed| failed.error),
            }
        }
        let refused = self.inner.shared.take_refusal(&key);
        Err(refused.unwrap_or(OpenError::Attempts(ATTEMPTS)))
    }

    /// Connections that exist, idle ones included.
    pub fn connections(&self) -> usize {
        self.inner.shared.lock().state.connections()
    }

    pub fn counters(&self) -> Counters {
        self.inner.shared.lock().state.counters()
    }

    /// A place on a connection; `None` where the chosen one turned out to be of no use.
    async fn lease(&self, key: &Arc<PoolKey>) -> Result<Option<Lease>, OpenError> {
        loop {
            let (acquired, evicted, dial) = self.acquire(key);
            drop(evicted);
            match acquired {
                Acquire::Use(id) => return Ok(self.take(id)),
                Acquire::Dial { .. } => self.dial(key).await.map_err(OpenError::Dial)?,
                Acquire::Wait => {
                    let waiting = Waiting {
                        shared: &self.inner.shared,
                        key,
                    };
                    let outcome = match dial {
                        Some(mut dial) => dial
                            .wait_for(Option::is_some)
                            .await
                            .ok()
                            .and_then(|outcome| outcome.clone()),
                        None => None,
                    };
                    drop(waiting);
                    if let Some(Err(error)) = outcome {
                        return Err(OpenError::Dial(error));
                    }
                }
                Acquire::Refuse(Refusal::Connections) => {
                    return Err(OpenError::Connections(self.inner.cfg.limits.connections));
                }
                Acquire::Refuse(Refusal::Waiters) => {
                    return Err(OpenError::Waiters(self.inner.cfg.limits.waiters));
                }
            }
        }
    }

    fn acquire(
        &self,
        key: &Arc<PoolKey>,
    ) -> (
        Acquire,
        Option<Handle>,
        Option<watch::Receiver<DialOutcome>>,
    ) {
        let mut table = self.inner.shared.lock();
        let acquired = table.state.acquire(key);
        let evicted = match acquired {
            Acquire::Dial { evict: Some(id) } => table.handles.remove(&id),
            _ => None,
        };
        (acquired, evicted, table.dials.get(key).cloned())
    }

    /// Turns an acquired place into a lease, unless the connection is closing or full after all.
    fn take(&self, id: ConnId) -> Option<Lease> {
        let shared = self.inner.shared.clone();
        let handle = shared.lock().handles.get(&id).cloned();
        let on_close = Box::new({
            let shared = shared.clone();
            move || shared.lock().state.release(Instant::now(), id)
        });
        let handle = handle?;
        let permit = StreamPermit::new(handle.load.clone(), Some(on_close));
        let peer_max = handle.send.current_max_send_streams();
        let mut table = shared.lock();
        let full = table.state.set_peer_limit(id, peer_max) < table.state.streams(id);
        drop(table);
        (!full).then_some(Lease {
            id,
            send: handle.send,
            permit,
            last_answer: handle.last_answer,
        })
    }

    async fn dial(&self, key: &Arc<PoolKey>) -> Result<(), Arc<DialError>> {
        let (report, outcome) = watch::channel(None);
        self.inner.shared.lock().dials.insert(key.clone(), outcome);
        let mut dialing = Dialing {
            shared: &self.inner.shared,
            key,
            dialed: false,
        };
        let connected = self.connect(key).await.map_err(Arc::new);
        let result = match connected {
            Ok(connection) => {
                dialing.dialed = true;
                self.start(key, connection);
                Ok(())
            }
            Err(error) => Err(error),
        };
        drop(dialing);
        report.send_replace(Some(result.clone()));
        result
    }

    async fn connect(
        &self,
        key: &PoolKey,
    ) -> Result<(SendRequest<Bytes>, h2::client::Connection<C::Io, Bytes>), DialError> {
        let io = self.inner.connect.connect(key).await?;
        let cfg = &self.inner.cfg;
        h2::client::Builder::new()
            .initial_window_size(cfg.stream_window)
            .initial_connection_window_size(cfg.connection_window)
            .max_frame_size(cfg.max_frame)
            .max_header_list_size(cfg.max_header_list)
            .max_send_buffer_size(cfg.send_buffer)
            .initial_max_send_streams(cfg.limits.streams_per_connection)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(DialError::Handshake)
    }

    fn start(
        &self,
        key: &Arc<PoolKey>,
        (send, connection): (SendRequest<Bytes>, h2::client::Connection<C::Io, Bytes>),
    ) {
        let shared = self.inner.shared.clone();
        let mut table = shared.lock();
        let id = table.state.dialed(Instant::now(), key);
        table.handles.insert(
            id,
            Handle {
                send,
                load: Arc::default(),
                last_answer: Arc::new(LastAnswer::none(Instant::now())),
            },
        );
        drop(table);
        let driver = driver::Driver::new(connection, self.inner.cfg.keepalive, shared, id);
        supervise::spawn_local_connection("hbone client connection", driver.run());
    }

    async fn request(
        &self,
        lease: Lease,
        request: Request<()>,
        first: &Bytes,
    ) -> Result<Tunnel, Failed> {
        let rode = !first.is_empty() && lease.last_answer.is_recent(Instant::now());
        let timeout = self.inner.cfg.response_timeout;
        tokio::time::timeout(timeout, ask(lease, request, first, rode))
            .await
            .unwrap_or_else(|_elapsed| Err(OpenError::ResponseTimeout(timeout)))
            .map_err(|error| Failed { error, rode })
    }
}

/// Sends the request and waits for its answer; `first` goes with it or, not having ridden, after it.
async fn ask(
    lease: Lease,
    request: Request<()>,
    first: &Bytes,
    rode: bool,
) -> Result<Tunnel, OpenError> {
    let Lease {
        mut send,
        permit,
        last_answer,
        ..
    } = lease;
    poll_fn(|cx| send.poll_ready(cx))
        .await
        .map_err(OpenError::Request)?;
    let (response, mut stream) = send
        .send_request(request, false)
        .map_err(OpenError::Request)?;
    if rode {
        stream
            .send_data(first.clone(), false)
            .map_err(OpenError::Request)?;
    }
    let response = response.await.map_err(OpenError::Request)?;
    last_answer.answered(Instant::now());
    if response.status() != StatusCode::OK {
        return Err(OpenError::Status(response.status().as_u16()));
    }
    if !rode && !first.is_empty() {
        stream
            .send_data(first.clone(), false)
            .map_err(OpenError::Request)?;
    }
    let (parts, body) = response.into_parts();
    let baggage = request::response_baggage(&parts.headers);
    Ok(Tunnel::new(stream, body, permit, baggage))
}

/// Ends the dial in the books however the dialling future ends, dropped half way too.
struct Dialing<'a> {
    shared: &'a Shared,
    key: &'a Arc<PoolKey>,
    /// The books already know of its success.
    dialed: bool,
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        table.dials.remove(self.key);
        if !self.dialed {
            table.state.dial_failed(self.key);
        }
    }
}

/// Ends the wait in the books however the waiting future ends.
struct Waiting<'a> {
    shared: &'a Shared,
    key: &'a Arc<PoolKey>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().state.waited(self.key);
    }
}
