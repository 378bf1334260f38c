//! HTTP/2 connections to an endpoint: each carries many requests at once and has a task of its own.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::Pin,
    rc::Rc,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_runtime::supervise;
use tokio::{sync::Notify, time::Instant};

use super::terms::Terms;
use crate::{
    http::{LocalExec, RequestBody, limits},
    stream::HttpIo,
};

/// Requests at once on one connection, whatever the endpoint would allow.
const STREAMS_MAX: usize = 100;
/// Flow control window of one stream and of the connection, in bytes.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);

/// All HTTP/2 connections to one endpoint. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Shared(Rc<Inner>);

#[derive(Default)]
struct Inner {
    connections: RefCell<Vec<Connection>>,
    /// Somebody is dialling; the others wait.
    dialling: RefCell<Option<Rc<Notify>>>,
}

struct Connection {
    sender: SendRequest<RequestBody>,
    load: Rc<Load>,
}

struct Load {
    terms: Terms,
    streams: Cell<usize>,
    /// Requests so far.
    served: Cell<u32>,
    /// How many the endpoint allows.
    allowed: Cell<usize>,
    idle_since: Cell<Instant>,
}

impl Load {
    fn has_room(&self) -> bool {
        let own = self
            .terms
            .max_streams
            .map_or(STREAMS_MAX, |max| max as usize);
        self.streams.get() < self.allowed.get().min(STREAMS_MAX).min(own)
    }
}

/// A place on a connection.
pub(crate) struct Http2 {
    sender: SendRequest<RequestBody>,
    load: Http2Load,
}

/// Counts a request on its connection while it lives.
pub(crate) struct Http2Load(Rc<Load>);

impl Drop for Http2Load {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
        self.0.terms.freed();
    }
}

/// What to do for a request.
pub(super) enum Acquired {
    Place(Http2),
    /// Until the dial of somebody else is over; then again.
    Wait(Rc<Notify>),
    Dial(Dialling),
}

/// Dropped, it lets the next one dial.
pub(super) struct Dialling {
    shared: Shared,
    waiting: Rc<Notify>,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.shared.0.dialling.borrow_mut().take();
        self.waiting.notify_waiters();
    }
}

impl Shared {
    pub(super) fn acquire(&self) -> Acquired {
        let mut connections = self.0.connections.borrow_mut();
        // One that may take no more ends by itself when what is under way on it has ended.
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && connection.load.terms.allow(connection.load.served.get())
        });
        let with_room = connections
            .iter()
            .filter(|connection| connection.load.has_room())
            .min_by_key(|connection| connection.load.streams.get());
        if let Some(connection) = with_room {
            let load = connection.load.clone();
            load.streams.set(load.streams.get() + 1);
            load.served.set(load.served.get().saturating_add(1));
            return Acquired::Place(Http2 {
                sender: connection.sender.clone(),
                load: Http2Load(load),
            });
        }
        let mut dialling = self.0.dialling.borrow_mut();
        if let Some(dial) = &*dialling {
            return Acquired::Wait(dial.clone());
        }
        let waiting = Rc::new(Notify::new());
        *dialling = Some(waiting.clone());
        Acquired::Dial(Dialling {
            shared: self.clone(),
            waiting,
        })
    }

    /// A place, where there is one.
    pub(super) fn free(&self) -> Option<Http2> {
        match self.acquire() {
            Acquired::Place(place) => Some(place),
            Acquired::Wait(_) | Acquired::Dial(_) => None,
        }
    }

    /// Lets connections go whose place somebody waits for.
    pub(super) fn release_wanted(&self) {
        self.0.connections.borrow_mut().retain(|connection| {
            connection.load.streams.get() > 0 || !connection.load.terms.is_wanted()
        });
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.0.connections.borrow_mut().retain(|connection| {
            let load = &connection.load;
            !connection.sender.is_closed()
                && (load.streams.get() > 0
                    || now.duration_since(load.idle_since.get()) < load.terms.idle)
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.connections.borrow().is_empty() && self.0.dialling.borrow().is_none()
    }
}

impl Dialling {
    /// Makes the connection one that requests can be sent on.
    pub(super) async fn handshake(self, io: HttpIo, terms: Terms) -> Result<(), hyper::Error> {
        let (sender, mut driver) = Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(limits::HEADER_LIST)
            .max_concurrent_reset_streams(limits::RESET_STREAMS)
            .keep_alive_interval(limits::PING)
            .keep_alive_timeout(limits::PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await?;
        let load = Rc::new(Load {
            terms,
            streams: Cell::new(0),
            served: Cell::new(0),
            allowed: Cell::new(STREAMS_MAX),
            idle_since: Cell::new(Instant::now()),
        });
        let watched = load.clone();
        supervise::spawn_local_connection("upstream h2 connection", async move {
            let ended = poll_fn(|cx| {
                let ended = Pin::new(&mut driver).poll(cx);
                watched.allowed.set(driver.current_max_send_streams());
                ended
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "an upstream HTTP/2 connection ended");
            }
        });
        let connection = Connection { sender, load };
        self.shared.0.connections.borrow_mut().push(connection);
        Ok(())
    }
}

impl Http2 {
    /// Sends a request and waits for the head of its response. The load is the response's from then on.
    pub(crate) async fn exchange(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Http2Load), TrySendError<Request<RequestBody>>> {
        let response = self.sender.try_send_request(request).await?;
        Ok((response, self.load))
    }
}
