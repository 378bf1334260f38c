//! The HTTP side: HTTP/1.1 and h2c told apart by the first bytes, WebSocket upgrades, gRPC by content type.
//!
//! Query parameters ask for trouble: `delay=MS` waits, `status=CODE` answers so, `bytes=N` sends N bytes of the
//! pattern, `abort=1` breaks the connection in the middle of the body. What lasts longer than a request is in `told`.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use karst_runtime::supervise::spawn_connection;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::told::Told;
use crate::{
    bytes_pattern::{Account, Pattern},
    describe::Received,
};

/// What a test tells a server or wants to know: counted as nobody's request.
const OWN: [&str; 3] = ["/told", "/seen", "/certificate"];
/// What probes ask: they count as nobody's request either, and nothing makes them fail.
const READY: &str = "/ready";

/// The one gRPC method that the suite calls; its messages are one string in field 1.
pub(crate) const GRPC_METHOD: &str = "/proto.EchoTestService/Echo";
/// A stream in both directions: what comes goes back as it comes, until the client ends its side.
pub(crate) const GRPC_STREAM_METHOD: &str = "/proto.EchoTestService/EchoStream";
/// A gRPC request larger than this is refused: the echo is for small messages.
const GRPC_LIMIT: usize = 4 << 20;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body out of bytes at hand.
pub(crate) fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// `EchoRequest` and `EchoResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EchoMessage {
    #[prost(string, tag = "1")]
    pub(crate) message: String,
}

/// Serves one connection, HTTP/1.1 or HTTP/2 with prior knowledge, with upgrades.
pub(crate) async fn serve_connection<Io, H, F>(io: Io, handler: H)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |req| {
        let response = handler(req);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // A client that breaks off is an everyday event for a test server.
    let _peer_error = builder
        .serve_connection_with_upgrades(TokioIo::new(io), service)
        .await;
}

/// Answers every request with what it received.
pub(crate) struct Echo {
    pub(crate) port: u16,
    pub(crate) told: Arc<Told>,
}

impl Echo {
    pub(crate) async fn respond(
        self: Arc<Self>,
        req: Request<Incoming>,
        remote: SocketAddr,
    ) -> Response<Body> {
        let lines = self.describe(&req, remote);
        if OWN.contains(&req.uri().path()) {
            let answer = self.told.answer(req).await;
            return answer.unwrap_or_else(|_req| text(StatusCode::NOT_FOUND, "no such path\n"));
        }
        let _counted = (req.uri().path() != READY).then(|| self.told.count());
        if req.uri().path() == GRPC_METHOD {
            return grpc(req, lines).await;
        }
        if req.uri().path() == GRPC_STREAM_METHOD {
            return grpc_stream(req);
        }
        if req
            .headers()
            .get(header::UPGRADE)
            .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
        {
            return websocket(req);
        }
        let ready = req.uri().path() == READY;
        if req.uri().path().starts_with("/via/") {
            // Each of a chain waits before it asks the next.
            let delay = number(&query(req.uri()), "delay").unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let req = match self.told.answer(req).await {
            Ok(answer) => return answer,
            Err(req) => req,
        };
        let mut answer = plain(req, lines).await;
        if let Some(status) = self.told.status().filter(|_| !ready) {
            *answer.status_mut() = status;
        }
        answer
    }

    fn describe(&self, req: &Request<Incoming>, remote: SocketAddr) -> String {
        let host_header = || {
            req.headers()
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
        };
        let grpc = req.uri().path() == GRPC_METHOD;
        Received {
            port: self.port,
            host: req
                .uri()
                .authority()
                .map(http::uri::Authority::as_str)
                .or_else(host_header)
                .unwrap_or_default(),
            method: if grpc { "" } else { req.method().as_str() },
            proto: if grpc { "GRPC" } else { version(req.version()) },
            url: req.uri().path_and_query().map_or("/", |path| path.as_str()),
            remote,
            headers: Some(req.headers()),
        }
        .describe()
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn query(uri: &Uri) -> HashMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn number(query: &HashMap<String, String>, name: &str) -> Option<u64> {
    query.get(name)?.parse().ok()
}

async fn plain(req: Request<Incoming>, mut lines: String) -> Response<Body> {
    let query = query(req.uri());
    let number = |name: &str| number(&query, name);
    let Ok(account) = drain(req.into_body()).await else {
        return text(StatusCode::BAD_REQUEST, "the request body ended early\n");
    };
    if account.bytes > 0 {
        lines += &format!("Bytes={}\nChecksum={}\n", account.bytes, account.checksum());
    }
    if let Some(delay_ms) = number("delay") {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    let status = number("status")
        .and_then(|code| u16::try_from(code).ok())
        .and_then(|code| StatusCode::from_u16(code).ok());
    let abort = query.contains_key("abort");
    if let Some(length) = number("bytes") {
        return Response::new(pattern(length, abort));
    }
    if abort {
        return Response::new(pattern(1, true));
    }
    text(status.unwrap_or(StatusCode::OK), lines)
}

async fn drain(mut body: Incoming) -> Result<Account, hyper::Error> {
    let mut account = Account::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            account.add(data);
        }
    }
    Ok(account)
}

fn pattern(length: u64, then_abort: bool) -> Body {
    let abort = then_abort.then(|| Err(std::io::Error::other("told to abort")));
    let pieces = Pattern::new(length).map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(stream::iter(pieces.chain(abort))).boxed_unsync()
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

async fn grpc(req: Request<Incoming>, lines: String) -> Response<Body> {
    let body = http_body_util::Limited::new(req.into_body(), GRPC_LIMIT);
    let received = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .ok()
        .and_then(|data| grpc_message(&data));
    let mut trailers = HeaderMap::new();
    let data = received.map(|message| {
        grpc_frame(&EchoMessage {
            message: format!("{lines}Echo={}\n", message.message),
        })
    });
    // 13 is INTERNAL: the request was not one gRPC message.
    trailers.insert(
        "grpc-status",
        HeaderValue::from_static(if data.is_some() { "0" } else { "13" }),
    );
    let frames = data
        .map(Frame::data)
        .into_iter()
        .chain([Frame::trailers(trailers)])
        .map(Ok);
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

fn grpc_stream(req: Request<Incoming>) -> Response<Body> {
    let received = req.into_body().into_data_stream();
    let echoed = received.map(|data| data.map(Frame::data).map_err(std::io::Error::other));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = echoed.chain(stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Prefixes a message as gRPC does: one byte "not compressed", four bytes length.
pub(crate) fn grpc_frame(message: &EchoMessage) -> Bytes {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], &body].concat().into()
}

/// The one message in a gRPC body; `None` when it is compressed, cut or not an echo message.
pub(crate) fn grpc_message(mut data: &[u8]) -> Option<EchoMessage> {
    if data.len() < 5 || data.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(data.get_u32()).ok()?;
    EchoMessage::decode(data.get(..length)?).ok()
}

fn websocket(mut req: Request<Incoming>) -> Response<Body> {
    let Some(key) = req
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()))
    else {
        return text(
            StatusCode::BAD_REQUEST,
            "a WebSocket upgrade needs the header Sec-WebSocket-Key\n",
        );
    };
    let upgrade = hyper::upgrade::on(&mut req);
    spawn_connection("echo-websocket", async move {
        let Ok(io) = upgrade.await else { return };
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(key) = key.parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    response
}
