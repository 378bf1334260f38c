//! The client's agent: tunnels to the waypoint with a client's identity, and on them whatever a test wants to say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use karst_hbone::{
    Authority, Connect, ConnectError, OpenError, Pool, PoolConfig, PoolKey, TunnelIo,
    TunnelRequest, tls,
};
use karst_identity::Store;
use karst_model::identity::SpiffeId;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    app::Local,
    rig::{World, spiffe},
};

pub(crate) struct Client {
    pool: Pool<Dial>,
    key: PoolKey,
}

struct Dial(Store);

impl Connect for Dial {
    type Io = tls::TlsIo<TcpStream>;

    async fn connect(&self, key: &PoolKey) -> Result<Self::Io, ConnectError> {
        let credential = self.0.wait(&key.source_identity, Duration::from_secs(20));
        let credential = credential.await.unwrap();
        let tcp = TcpStream::connect(key.addr).await.unwrap();
        let config = credential.client_config(&key.accepted);
        tls::tls_connect(tcp, config, Duration::from_secs(10)).await
    }
}

impl Client {
    pub(crate) fn new(world: &World) -> Self {
        Self::of(world, &spiffe("shop", "front"))
    }

    pub(crate) fn of(world: &World, identity: &SpiffeId) -> Self {
        world.store.require(identity).unwrap();
        Self {
            pool: Pool::new(PoolConfig::default(), Dial(world.store.clone())),
            key: PoolKey {
                source: "client".into(),
                source_identity: identity.clone(),
                destination: "waypoint".into(),
                addr: world.waypoint,
                accepted: Arc::new([world.mesh.config.identity()]),
            },
        }
    }

    /// A connection to `addr`, through the waypoint.
    pub(crate) async fn connect(&self, addr: SocketAddr) -> TunnelIo {
        self.try_connect(addr).await.unwrap()
    }

    pub(crate) async fn try_connect(&self, addr: SocketAddr) -> Result<TunnelIo, OpenError> {
        let request = TunnelRequest::new(Authority::Addr(addr));
        let tunnel = self.pool.open(self.key.clone(), request).await?;
        Ok(tunnel.into())
    }

    /// Sends bytes on a connection of their own, and reads until the waypoint closes or has answered `responses`.
    pub(crate) async fn raw(&self, addr: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
        let mut io = self.connect(addr).await;
        io.write_all(bytes.as_ref()).await.unwrap();
        io.flush().await.unwrap();
        read_response(&mut io).await
    }

    /// An HTTP/2 connection with prior knowledge.
    pub(crate) async fn http2(&self, addr: SocketAddr) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.connect(addr).await);
        let (send, connection) = http2::Builder::new(Local)
            .max_header_list_size(256 << 10)
            .handshake(io)
            .await
            .unwrap();
        tokio::task::spawn_local(async move {
            let _ended_by_the_test = connection.await;
        });
        send
    }
}

pub(crate) type Body = BoxBody<Bytes, std::convert::Infallible>;

pub(crate) fn empty() -> Body {
    BoxBody::new(http_body_util::Empty::new())
}

pub(crate) fn full(text: &'static str) -> Body {
    BoxBody::new(http_body_util::Full::new(Bytes::from_static(
        text.as_bytes(),
    )))
}

/// A whole response of an HTTP/2 exchange.
pub(crate) async fn exchange(
    send: &mut http2::SendRequest<Body>,
    request: Request<Body>,
) -> Response<http_body_util::Collected<Bytes>> {
    let (parts, body) = send.send_request(request).await.unwrap().into_parts();
    Response::from_parts(parts, body.collect().await.unwrap())
}

/// One response: up to its announced end, or until the other side closes.
pub(crate) async fn read_response(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut got = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        if is_whole(&got) {
            break;
        }
        match io.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(len) => got.extend_from_slice(&chunk[..len]),
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}

fn is_whole(got: &[u8]) -> bool {
    let text = String::from_utf8_lossy(got);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    if head.starts_with("HTTP/1.1 101") || head.starts_with("HTTP/1.1 100") {
        return true;
    }
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return body.contains("0\r\n") && body.ends_with("\r\n\r\n") || body == "0\r\n\r\n";
    }
    if head.starts_with("http/1.1 204") || head.starts_with("http/1.1 304") {
        return true;
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.trim().parse().unwrap())
}

pub(crate) fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}
