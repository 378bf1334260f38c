//! The server side: HTTP/2 on an accepted TLS connection, one [`Incoming`] per CONNECT.
//!
//! One future per connection does it all: frames, pings, drain. What a peer can make us hold is bounded by the windows,
//! the number of streams, the header list, and the limits on resets; beyond them the connection ends with GOAWAY.

pub mod peers;

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::Connection, server::SendResponse};
use http::{HeaderValue, Request, Response, StatusCode};
use karst_runtime::drain::Watch;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};

use crate::{
    CONNECTION_WINDOW, MAX_FRAME, STREAM_WINDOW,
    error::{RequestError, ServeError, StreamError},
    keepalive::{Beat, Keepalive, KeepaliveConfig},
    request::{self, InboundRequest},
    stream::{StreamLoad, StreamPermit, Tunnel},
};

/// How long a connection that we end may take to put its GOAWAY on the wire.
const GOAWAY_TIME: Duration = Duration::from_secs(1);

/// Limits and times of served connections. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub stream_window: u32,
    pub connection_window: u32,
    pub max_frame: u32,
    /// CONNECT streams open at once on one connection.
    pub max_streams: u32,
    /// All header fields of one request together.
    pub max_header_list: u32,
    /// Unsent bytes that one stream may queue.
    pub send_buffer: usize,
    /// Streams that the peer reset before we looked at them, and streams that we reset, remembered at once: beyond it the
    /// peer is told ENHANCE_YOUR_CALM (rapid reset, CVE-2023-44487).
    pub max_reset_streams: usize,
    /// Requests that the peer may open and reset again before their answer: this many at once, and as many again in ten
    /// seconds. Each has cost us work, and such streams do not count as open.
    pub max_abandoned: usize,
    /// From the end of the TLS handshake to the peer's HTTP/2 preface and SETTINGS.
    pub handshake_timeout: Duration,
    pub keepalive: KeepaliveConfig,
    /// From the start of a drain to cutting what is still open.
    pub drain_deadline: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame: MAX_FRAME,
            max_streams: 200,
            max_header_list: 64 << 10,
            send_buffer: MAX_FRAME as usize,
            max_reset_streams: 50,
            max_abandoned: 1000,
            handshake_timeout: Duration::from_secs(10),
            keepalive: KeepaliveConfig::default(),
            drain_deadline: Duration::from_secs(5),
        }
    }
}

/// One CONNECT request that waits for its answer. Dropped unanswered, its stream is reset.
pub struct Incoming {
    pub request: InboundRequest,
    respond: SendResponse<Bytes>,
    body: RecvStream,
    load: Arc<StreamLoad>,
}

impl Incoming {
    /// Answers 200 and opens the tunnel.
    ///
    /// # Errors
    /// The peer has gone away meanwhile.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<Tunnel, StreamError> {
        let mut response = Response::new(());
        request::put_baggage(response.headers_mut(), baggage);
        let send = self
            .respond
            .send_response(response, false)
            .inspect_err(|_gone| self.load.count_abandoned())?;
        Ok(Tunnel::new(
            send,
            self.body,
            StreamPermit::new(self.load, None),
            None,
        ))
    }

    /// Answers with a status and nothing else.
    pub fn reject(mut self, status: StatusCode) {
        answer(&mut self.respond, status);
    }

    /// Completes when the peer gives up waiting for the answer.
    pub async fn abandoned(&mut self) {
        // Either result means that nobody waits any more.
        let _reason_or_error = poll_fn(|cx| self.respond.poll_reset(cx)).await;
        self.load.count_abandoned();
    }
}

/// The stream may be gone already: then nobody is left to tell.
fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%status, %error, "peer left before its answer");
    }
}

/// Serves one connection until the peer closes it, it fails, or `drain` has run its course.
///
/// `handler` gets every valid CONNECT and must not block: it spawns. Other requests are answered 400 here.
///
/// # Errors
/// See [`ServeError`]; a peer that closes at any moment after the handshake is no error.
pub async fn serve<Io, H>(
    io: Io,
    cfg: &ServerConfig,
    drain: Watch,
    handler: H,
) -> Result<(), ServeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: FnMut(Incoming),
{
    let handshake = tokio::time::timeout(cfg.handshake_timeout, builder(cfg).handshake(io));
    let mut connection = handshake
        .await
        .map_err(|_elapsed| ServeError::HandshakeTimeout(cfg.handshake_timeout))?
        .map_err(ServeError::Handshake)?;
    let pings = connection
        .ping_pong()
        .expect("the handle is taken once, here");
    let served = Served {
        connection,
        keepalive: Keepalive::new(pings, cfg.keepalive),
        cut: None,
        drain_deadline: cfg.drain_deadline,
        patience: Patience::new(cfg.max_abandoned),
        load: Arc::default(),
        handler,
    };
    served.run(drain, cfg.keepalive.timeout).await
}

fn builder(cfg: &ServerConfig) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(cfg.stream_window)
        .initial_connection_window_size(cfg.connection_window)
        .max_frame_size(cfg.max_frame)
        .max_concurrent_streams(cfg.max_streams)
        .max_header_list_size(cfg.max_header_list)
        .max_send_buffer_size(cfg.send_buffer)
        .max_concurrent_reset_streams(cfg.max_reset_streams)
        .max_pending_accept_reset_streams(cfg.max_reset_streams);
    builder
}

struct Served<Io, H> {
    connection: Connection<Io, Bytes>,
    keepalive: Keepalive,
    /// Runs from the start of a drain.
    cut: Option<Pin<Box<Sleep>>>,
    drain_deadline: Duration,
    patience: Patience,
    load: Arc<StreamLoad>,
    handler: H,
}

/// A leaky bucket of abandoned requests.
struct Patience {
    max: f64,
    level: f64,
    updated: Instant,
}

/// Time in which a full bucket runs empty.
const PATIENCE_TIME: Duration = Duration::from_secs(10);

impl Patience {
    fn new(max: usize) -> Self {
        Self {
            max: max as f64,
            level: 0.0,
            updated: Instant::now(),
        }
    }

    /// Adds to the bucket; false when it runs over.
    fn bears(&mut self, abandoned: usize) -> bool {
        if abandoned > 0 {
            let now = Instant::now();
            let drained =
                self.max * (now - self.updated).as_secs_f64() / PATIENCE_TIME.as_secs_f64();
            self.level = (self.level - drained).max(0.0) + abandoned as f64;
            self.updated = now;
        }
        self.level <= self.max
    }
}

impl<Io, H> Served<Io, H>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: FnMut(Incoming),
{
    async fn run(mut self, mut drain: Watch, ping_timeout: Duration) -> Result<(), ServeError> {
        let outcome = {
            let mut drain = pin!(drain.signaled());
            poll_fn(|cx| {
                if self.cut.is_none() && drain.as_mut().poll(cx).is_ready() {
                    self.connection.graceful_shutdown();
                    self.cut = Some(Box::pin(sleep(self.drain_deadline)));
                }
                self.poll(cx, ping_timeout)
            })
            .await
        };
        let goaway = match outcome {
            Err(ServeError::PingTimeout(_) | ServeError::DrainDeadline) => Some(Reason::NO_ERROR),
            Err(ServeError::Abandoned) => Some(Reason::ENHANCE_YOUR_CALM),
            _ => None,
        };
        if let Some(reason) = goaway {
            self.connection.abrupt_shutdown(reason);
            // A peer that takes nothing is not waited for.
            let flushed = poll_fn(|cx| self.connection.poll_closed(cx));
            let _flushed_or_late = tokio::time::timeout(GOAWAY_TIME, flushed).await;
        }
        outcome
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ping_timeout: Duration,
    ) -> Poll<Result<(), ServeError>> {
        if !self.patience.bears(self.load.take_abandoned()) {
            return Poll::Ready(Err(ServeError::Abandoned));
        }
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.handle(request, respond),
                Poll::Ready(Some(Err(error))) if is_quiet_close(&error) => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(ServeError::Connection(error)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => match self.keepalive.poll(cx) {
                    Poll::Ready(Beat::Sent) => {}
                    Poll::Ready(Beat::TimedOut) => {
                        return Poll::Ready(Err(ServeError::PingTimeout(ping_timeout)));
                    }
                    Poll::Pending => break,
                },
            }
        }
        match self.cut.as_mut().map(|cut| cut.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(ServeError::DrainDeadline)),
            _ => Poll::Pending,
        }
    }

    fn handle(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, body) = request.into_parts();
        match request::parse(&parts) {
            Ok(request) => (self.handler)(Incoming {
                request,
                respond,
                body,
                load: self.load.clone(),
            }),
            Err(error) => refuse(&mut respond, &error),
        }
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, error: &RequestError) {
    tracing::debug!(%error, "request refused");
    answer(respond, StatusCode::BAD_REQUEST);
}

/// The peer closed the TCP connection, with or without GOAWAY: how most connections end.
fn is_quiet_close(error: &h2::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    error.get_io().is_some_and(|io| {
        matches!(
            io.kind(),
            BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof
        )
    }) || (error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR))
}
