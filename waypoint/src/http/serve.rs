//! One HTTP connection of a client: the codec, its limits, and its drain.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    error::Error,
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use http::{HeaderValue, header};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_model::waypoint_policy::WAYPOINT_CLASS;
use karst_runtime::drain;
use karst_telemetry::{error_chain::Chain, hub::Recording};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{Client, LocalExec, limits, phases, record::KeptHandles, revoke::Ongoing};
use crate::{
    bounds::Place, destination::Destination, share::Member, stream::HttpIo, workers::Worker,
};

/// What all requests of one connection share.
pub(crate) struct Conversation {
    pub(crate) worker: Rc<Worker>,
    pub(crate) client: Client,
    pub(crate) destination: Destination,
    pub(super) handles: RefCell<KeptHandles>,
    recording: RefCell<Option<(u64, Arc<Recording>)>>,
    /// Its requests that policy may revoke.
    pub(super) ongoing: Rc<Ongoing>,
    /// Among all that may be sent to other replicas.
    member: Member,
    patience: RefCell<Patience>,
    /// The client has been borne long enough.
    enough: Notify,
    _place: Option<Place>,
}

impl Conversation {
    pub(crate) fn new(
        worker: Rc<Worker>,
        client: Client,
        destination: Destination,
        place: Option<Place>,
    ) -> Rc<Self> {
        let member = Member::join(&worker.mesh.share);
        Rc::new(Self {
            member,
            worker,
            client,
            destination,
            handles: RefCell::default(),
            recording: RefCell::default(),
            ongoing: Rc::default(),
            patience: RefCell::new(Patience::new()),
            enough: Notify::new(),
            _place: place,
        })
    }
}

impl Conversation {
    /// What is recorded of the connection's requests, and the generation of that.
    pub(super) fn recording(&self) -> (u64, Arc<Recording>) {
        let mesh = &self.worker.mesh;
        let generation = mesh.hub.generation();
        let mut held = self.recording.borrow_mut();
        if let Some((of, recording)) = &*held
            && *of == generation
        {
            return (generation, recording.clone());
        }
        let service = self.destination.slot.as_ref().map(|slot| &slot.key);
        let recording = mesh
            .hub
            .for_requests(&mesh.gateway, WAYPOINT_CLASS, service);
        *held = Some((generation, recording.clone()));
        (generation, recording)
    }

    /// The client gave a request up before its answer.
    pub(super) fn abandoned(&self) {
        if !self.patience.borrow_mut().bears_one_more() {
            self.enough.notify_one();
        }
    }
}

/// A leaky bucket of requests that the client gave up before their answer: each has cost us and an endpoint work, and
/// HTTP/2 makes them cheap (rapid reset, CVE-2023-44487).
struct Patience {
    level: f64,
    updated: Instant,
}

impl Patience {
    fn new() -> Self {
        Self {
            level: 0.0,
            updated: Instant::now(),
        }
    }

    fn bears_one_more(&mut self) -> bool {
        let now = Instant::now();
        let full = limits::ABANDONED as f64;
        let drained =
            full * (now - self.updated).as_secs_f64() / limits::ABANDONED_TIME.as_secs_f64();
        self.level = (self.level - drained).max(0.0) + 1.0;
        self.updated = now;
        self.level <= full
    }
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// Serves a client's connection to its end.
pub(crate) async fn serve(
    conversation: Rc<Conversation>,
    io: HttpIo,
    version: Version,
    drain: drain::Watch,
) {
    let services = &conversation.worker.mesh.services;
    let changes = services.changes_of(conversation.destination.slot.as_ref());
    conversation.ongoing.follow(changes);
    let served = match version {
        Version::Http1 => serve_http1(conversation.clone(), io, drain).await,
        Version::Http2 => serve_http2(conversation.clone(), io, drain).await,
    };
    if let Err(error) = served {
        if error.is_parse() {
            phases::malformed(&conversation, &error);
        } else {
            tracing::debug!(error = %Chain(&error), "a client's HTTP connection ended with an error");
        }
    }
}

async fn serve_http1(
    conversation: Rc<Conversation>,
    io: HttpIo,
    mut drain: drain::Watch,
) -> Result<(), hyper::Error> {
    let draining = Rc::new(Cell::new(drain.is_draining()));
    let told = draining.clone();
    let service = service_fn(move |request| {
        let (conversation, told) = (conversation.clone(), told.clone());
        conversation.member.count();
        async move {
            let mut response = phases::serve(&conversation, request).await;
            let leaves = told.get() || conversation.member.leaves();
            if leaves && !response.headers().contains_key(header::CONNECTION) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .preserve_header_case(true)
        .max_buf_size(limits::BUFFER)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = drain.signaled() => draining.set(true),
    }
    // The next response tells the client; one that is on its way to us would be lost if the connection ended now.
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = sleep(limits::DRAIN_IDLE) => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

async fn serve_http2(
    conversation: Rc<Conversation>,
    io: HttpIo,
    mut drain: drain::Watch,
) -> Result<(), hyper::Error> {
    let ended = conversation.clone();
    let service = service_fn(move |request| {
        let conversation = conversation.clone();
        conversation.member.count();
        async move { Ok::<_, Infallible>(phases::serve(&conversation, request).await) }
    });
    let serving = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS)
        .max_header_list_size(limits::HEADER_LIST)
        .max_pending_accept_reset_streams(limits::RESET_STREAMS)
        .max_local_error_reset_streams(limits::RESET_STREAMS)
        .initial_stream_window_size(limits::WINDOWS.0)
        .initial_connection_window_size(limits::WINDOWS.1)
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(limits::PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return quiet(ended),
        () = ended.enough.notified() => return Ok(()),
        () = drain.signaled() => serving.as_mut().graceful_shutdown(),
        () = ended.member.told() => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = serving.as_mut() => quiet(ended),
        () = ended.enough.notified() => Ok(()),
    }
}

/// A client that closes its HTTP/2 connection without a word is how most of them end.
fn quiet(ended: Result<(), hyper::Error>) -> Result<(), hyper::Error> {
    match ended {
        Err(error) if !error.is_parse() && error.source().is_some_and(is_closed) => Ok(()),
        ended => ended,
    }
}

fn is_closed(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<h2::Error>()
        .is_some_and(h2::Error::is_io)
}
