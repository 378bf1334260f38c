//! An application: answers HTTP/1 and HTTP/2 by script, and remembers what it was sent.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::{
    body::{Body as _, Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// One request as the application got it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What speaks on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    /// Says its name at once, then sends back what it gets.
    ServerFirst,
    /// Answers every connection's first bytes with these, then closes.
    Bytes(&'static str),
}

pub(crate) struct App {
    pub(crate) name: &'static str,
    speaks: Speaks,
    pub(crate) seen: RefCell<Vec<Seen>>,
    pub(crate) connections: Cell<usize>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl App {
    pub(crate) fn new(name: &'static str, speaks: Speaks) -> Rc<Self> {
        Rc::new(Self {
            name,
            speaks,
            seen: RefCell::default(),
            connections: Cell::new(0),
        })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub(crate) async fn listen(self: &Rc<Self>, addr: SocketAddr) {
        let listener = TcpListener::bind(addr).await.unwrap();
        let app = self.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                app.connections.set(app.connections.get() + 1);
                tokio::task::spawn_local(app.clone().serve(stream));
            }
        });
    }

    async fn serve(self: Rc<Self>, mut stream: TcpStream) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let speaks = self.speaks;
        let name = self.name;
        let service = service_fn(move |request| {
            let app = self.clone();
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        match speaks {
            Speaks::Http1 => {
                let _ended = http1::Builder::new()
                    .preserve_header_case(true)
                    .max_buf_size(256 << 10)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
            Speaks::Http2 => {
                let _ended = http2::Builder::new(Local)
                    .max_header_list_size(256 << 10)
                    .enable_connect_protocol()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
            Speaks::ServerFirst => {
                stream.write_all(name.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _ended = write.shutdown().await;
            }
            Speaks::Bytes(text) => {
                // All of it: closing on what was not read would take the answer back.
                let mut request = Vec::new();
                while !is_whole(&request) {
                    match stream.read_buf(&mut request).await {
                        Ok(0) | Err(_) => return,
                        Ok(_more) => {}
                    }
                }
                let _sent = stream.write_all(text.as_bytes()).await;
            }
        }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let connect = request.method() == Method::CONNECT;
        let upgrade = (connect || request.headers().contains_key("upgrade"))
            .then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        if parts.uri.path() == "/refuse-body" {
            self.remember(parts, Bytes::new());
            return text(StatusCode::EXPECTATION_FAILED, "no");
        }
        let empty = body.is_end_stream();
        let collected = body.collect().await;
        let Ok(collected) = collected else {
            return text(StatusCode::BAD_REQUEST, "broken body");
        };
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        let path = parts.uri.path().to_owned();
        self.remember(parts, body.clone());
        if let Some(upgrade) = upgrade.filter(|_| path != "/refuse") {
            return self.upgraded(upgrade, connect);
        }
        let mut response = match path.as_str() {
            "/never" => std::future::pending().await,
            "/slow-body" => endless(),
            path => match path.strip_prefix("/status/").and_then(|s| s.parse().ok()) {
                Some(status) => text(status, "as asked"),
                None if empty => text(StatusCode::OK, self.name),
                None => with_trailers(body, trailers),
            },
        };
        response
            .headers_mut()
            .insert("x-app", HeaderValue::from_static(self.name));
        response
    }

    fn remember(&self, parts: http::request::Parts, body: Bytes) {
        self.seen.borrow_mut().push(Seen {
            method: parts.method,
            uri: parts.uri,
            version: parts.version,
            headers: parts.headers,
            body,
        });
    }

    /// Sends back what it gets on the upgraded connection.
    fn upgraded(&self, upgrade: hyper::upgrade::OnUpgrade, connect: bool) -> Answer {
        tokio::task::spawn_local(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            let _ended = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        if connect {
            return text(StatusCode::OK, "");
        }
        let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("echo"));
        response
    }
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let body = http_body_util::Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(BoxBody::new(body));
    *response.status_mut() = status;
    response
}

/// The body in frames of its own, then trailers if there were some.
fn with_trailers(body: Bytes, trailers: Option<HeaderMap>) -> Answer {
    let mut frames = vec![Ok(Frame::data(body))];
    let has_trailers = trailers.is_some();
    frames.extend(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
    let stream = futures_util::stream::iter(frames);
    let body = http_body_util::StreamBody::new(stream);
    let mut response = Response::new(BoxBody::new(body));
    if has_trailers {
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-sum, grpc-status"));
    }
    response
}

/// A first piece, and never an end.
fn endless() -> Answer {
    let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(b"first"))) });
    let stream = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    Response::new(BoxBody::new(http_body_util::StreamBody::new(stream)))
}

#[derive(Clone)]
pub(crate) struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// Waits a moment for something that happens on another thread.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether this is a request with as much of a body as it says.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let mut lengths = head
        .lines()
        .filter_map(|line| line.strip_prefix("content-length:"));
    let length = lengths
        .next()
        .map_or(0, |length| length.trim().parse().unwrap());
    body.len() >= length
}
