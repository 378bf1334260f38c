//! A small HTTP/1.1 server for a program's own endpoints: metrics, readiness, state, log levels.
//!
//! ```text
//!   TcpListener ──► serve: at most CONNECTIONS_MAX, each with time limits ──► Router ──► handler ──► Response
//! ```
//!
//! It speaks to operators and scrapers, never to peers of the mesh; all the same a client that sends slowly, sends too
//! much or opens too many connections costs only itself.

mod pages;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::supervise::{Shutdown, spawn_connection};

/// Connections served at once; the next one is closed and counted.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may last: a reader that never finishes does not hold a slot for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// The largest request body, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long `accept` waits after a failure such as no free file descriptor.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Connections closed because [`CONNECTIONS_MAX`] was reached.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Connections closed since start because too many were open; exported as `karst_admin_refused_total`.
pub fn connections_refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// A request as handlers see it.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, without its question mark; empty when there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most [`BODY_BYTES_MAX`].
    pub body: Bytes,
    /// Who asks.
    pub peer: SocketAddr,
}

impl Request {
    /// The first value of a query parameter, as it was sent (percent signs are not decoded).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }
}

/// What a handler answers.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// 200 with plain text.
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self::plain(StatusCode::OK, body)
    }

    /// Any status with plain text.
    pub fn plain(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// 200 with JSON, indented.
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            body: format!("{value:#}\n").into(),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = Box<dyn Fn(Request) -> Answer + Send + Sync>;

/// Which handler answers which path.
#[derive(Default)]
pub struct Router {
    routes: HashMap<String, Route>,
}

struct Route {
    method: Method,
    help: &'static str,
    handler: Handler,
}

impl Router {
    /// No routes but `/`, which lists them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a path. A path that ends in `/*` answers everything below it. `help` is what `/` says of it.
    #[must_use]
    pub fn route<F, A>(mut self, method: Method, path: &str, help: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let handler: Handler = Box::new(move |request| Box::pin(handler(request)));
        self.routes.insert(
            path.to_owned(),
            Route {
                method,
                help,
                handler,
            },
        );
        self
    }

    async fn answer(&self, request: Request) -> Response {
        if request.path == "/" && !self.routes.contains_key("/") {
            return self.index();
        }
        let Some(route) = self.find(&request.path) else {
            return Response::plain(StatusCode::NOT_FOUND, "no such page; / lists the pages\n");
        };
        let head_of_get = request.method == Method::HEAD && route.method == Method::GET;
        if request.method != route.method && !head_of_get {
            return Response::plain(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("use {}\n", route.method),
            );
        }
        (route.handler)(request).await
    }

    fn find(&self, path: &str) -> Option<&Route> {
        self.routes.get(path).or_else(|| {
            let ends = path.match_indices('/').map(|(at, _)| at);
            ends.rev()
                .find_map(|at| self.routes.get(&format!("{}/*", &path[..at])))
        })
    }

    fn index(&self) -> Response {
        let mut lines: Vec<String> = self
            .routes
            .iter()
            .map(|(path, route)| format!("{} {path}: {}\n", route.method, route.help))
            .collect();
        lines.sort();
        Response::text(lines.concat())
    }
}

/// Answers on `listener` until `shutdown`.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let router = Arc::new(router);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => start(stream, peer, &router, &slots),
            Err(error) => {
                tracing::warn!(%error, "accepting an admin connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn start(stream: TcpStream, peer: SocketAddr, router: &Arc<Router>, slots: &Arc<Semaphore>) {
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
        REFUSED.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let router = Arc::clone(router);
    spawn_connection("admin", connection(stream, peer, router, slot));
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Arc<Router>,
    _slot: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request| {
        let router = Arc::clone(&router);
        async move { Ok::<_, Infallible>(respond(request, peer, &router).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "admin connection"),
        Err(_elapsed) => tracing::debug!(%peer, "admin connection outlived its limit"),
    }
}

async fn respond(
    request: http::Request<Incoming>,
    peer: SocketAddr,
    router: &Router,
) -> http::Response<Full<Bytes>> {
    let response = match read(request, peer).await {
        Ok(request) => router.answer(request).await,
        Err(refused) => refused,
    };
    let Response {
        status,
        content_type,
        body,
    } = response;
    let mut answer = http::Response::new(Full::new(body));
    *answer.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    answer
}

async fn read(request: http::Request<Incoming>, peer: SocketAddr) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect());
    let body = match body.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return Err(Response::plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is too large\n",
            ));
        }
        Err(_elapsed) => {
            return Err(Response::plain(
                StatusCode::REQUEST_TIMEOUT,
                "the body came too slowly\n",
            ));
        }
    };
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
        peer,
    })
}

#[cfg(test)]
mod tests;
