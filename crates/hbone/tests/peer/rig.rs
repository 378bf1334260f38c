//! What the tests stand on: one thread, in-memory connections, a served connection, a dialler that hands its other ends
//! to the test.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, Response};
use karst_hbone::{
    Connect, ConnectError, Incoming, Pool, PoolConfig, PoolKey, ServeError, ServerConfig, Tunnel,
    TunnelRequest, server,
};
use karst_model::identity::{SpiffeId, TrustDomain};
use karst_runtime::drain;
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    task::{JoinHandle, LocalSet, spawn_local},
};

/// Runs a test on one thread: in real time or, with a paused clock, in its own, of which an hour is enough for all of them.
pub(crate) async fn local<T>(test: impl Future<Output = T>) -> T {
    let local = LocalSet::new();
    local
        .run_until(async {
            tokio::time::timeout(Duration::from_secs(3600), test)
                .await
                .expect("the test is stuck")
        })
        .await
}

/// A connection served by us.
pub(crate) struct Served {
    pub(crate) io: Option<DuplexStream>,
    pub(crate) incoming: mpsc::UnboundedReceiver<Incoming>,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
    pub(crate) drain: drain::Drain,
}

pub(crate) fn serve(cfg: ServerConfig) -> Served {
    let (io, ours) = duplex(4 << 20);
    let (tx, incoming) = mpsc::unbounded_channel();
    let (drain, watch) = drain::channel();
    let task = spawn_local(async move {
        server::serve(ours, &cfg, watch, |incoming| {
            let _test_is_over = tx.send(incoming);
        })
        .await
    });
    Served {
        io: Some(io),
        incoming,
        task,
        drain,
    }
}

impl Served {
    pub(crate) fn io(&mut self) -> DuplexStream {
        self.io.take().unwrap()
    }

    /// An h2 client on the connection.
    pub(crate) async fn client(&mut self) -> SendRequest<Bytes> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .handshake(self.io())
            .await
            .unwrap();
        spawn_local(async move {
            let _ended_by_the_test = connection.await;
        });
        send
    }

    pub(crate) async fn accept(&mut self) -> Tunnel {
        self.incoming.recv().await.unwrap().accept(None).unwrap()
    }
}

/// Opens a stream on an h2 client; the answer comes separately.
pub(crate) async fn connect(
    client: &SendRequest<Bytes>,
    authority: &str,
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap();
    client
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap()
}

/// Both ends of one open tunnel through our server: ours and the peer's.
pub(crate) async fn served_tunnel(
    served: &mut Served,
    client: &SendRequest<Bytes>,
) -> (Tunnel, SendStream<Bytes>, RecvStream) {
    let (response, send) = connect(client, "10.0.0.1:80").await;
    let tunnel = served.accept().await;
    (tunnel, send, response.await.unwrap().into_body())
}

/// Counts dials and gives the test the far ends.
pub(crate) struct Dialer {
    pub(crate) far_ends: mpsc::UnboundedSender<DuplexStream>,
    pub(crate) dials: Rc<Cell<usize>>,
}

impl Connect for Dialer {
    type Io = DuplexStream;

    async fn connect(&self, _key: &PoolKey) -> Result<DuplexStream, ConnectError> {
        self.dials.set(self.dials.get() + 1);
        let (near, far) = duplex(4 << 20);
        self.far_ends
            .send(far)
            .map_err(|_gone| ConnectError::Tcp(std::io::ErrorKind::ConnectionRefused.into()))?;
        tokio::task::yield_now().await;
        Ok(near)
    }
}

/// A pool of ours and the far ends of its connections.
pub(crate) struct Client {
    pub(crate) pool: Pool<Dialer>,
    pub(crate) far_ends: mpsc::UnboundedReceiver<DuplexStream>,
    pub(crate) dials: Rc<Cell<usize>>,
}

pub(crate) fn client(cfg: PoolConfig) -> Client {
    let (tx, far_ends) = mpsc::unbounded_channel();
    let dials = Rc::default();
    let pool = Pool::new(
        cfg,
        Dialer {
            far_ends: tx,
            dials: Rc::clone(&dials),
        },
    );
    Client {
        pool,
        far_ends,
        dials,
    }
}

impl Client {
    pub(crate) async fn far_end(&mut self) -> DuplexStream {
        self.far_ends.recv().await.unwrap()
    }

    /// Opens a tunnel in its own task.
    pub(crate) fn open(&self) -> JoinHandle<Result<Tunnel, karst_hbone::OpenError>> {
        let pool = self.pool.clone();
        spawn_local(async move { pool.open(key(), request()).await })
    }
}

pub(crate) fn request() -> TunnelRequest {
    TunnelRequest::new("10.0.0.1:80".parse().unwrap())
}

pub(crate) fn key() -> PoolKey {
    let id = SpiffeId::new(&TrustDomain::default(), "shop", "orders");
    PoolKey {
        source: "source".into(),
        source_identity: id.clone(),
        destination: "destination".into(),
        addr: "10.0.0.1:15008".parse().unwrap(),
        accepted: [id].into(),
    }
}

/// An h2 server on a far end that answers every request with `status` and keeps the streams it accepted.
pub(crate) struct H2Server {
    pub(crate) streams: mpsc::UnboundedReceiver<(SendStream<Bytes>, RecvStream)>,
    pub(crate) goaway: mpsc::UnboundedSender<()>,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) fn h2_server(io: DuplexStream, status: u16, builder: h2::server::Builder) -> H2Server {
    let (tx, streams) = mpsc::unbounded_channel();
    let (goaway, mut go) = mpsc::unbounded_channel();
    let task = spawn_local(async move {
        let mut connection = builder.handshake(io).await.unwrap();
        let mut open = true;
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let Some(Ok((request, mut respond))) = accepted else { return };
                    let response = Response::builder().status(status).body(()).unwrap();
                    let send = respond.send_response(response, status != 200).unwrap();
                    let _test_is_over = tx.send((send, request.into_body()));
                }
                order = go.recv(), if open => {
                    open = order.is_some();
                    if open {
                        connection.graceful_shutdown();
                    }
                }
            }
        }
    });
    H2Server {
        streams,
        goaway,
        task,
    }
}
