//! Accepting TLS for a gRPC server: handshakes side by side, bounded, so that one slow caller delays nobody.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use karst_runtime::supervise::{Shutdown, spawn_connection, spawn_essential};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Most handshakes in flight; further callers wait in the listener's backlog.
pub const MAX_HANDSHAKES: usize = 256;
/// Longest time for one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the listener itself failed, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections whose handshake is done, for tonic's `serve_with_incoming_shutdown`. Ends on shutdown.
pub struct Incoming {
    ready: mpsc::Receiver<TlsStream<TcpStream>>,
    failures: Arc<AtomicU64>,
}

impl Incoming {
    /// Handshakes that failed or took too long, since start.
    pub fn failures(&self) -> Arc<AtomicU64> {
        self.failures.clone()
    }
}

impl Stream for Incoming {
    type Item = io::Result<TlsStream<TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|ready| ready.map(Ok))
    }
}

/// Accepts on `listener` until `shutdown`.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>, shutdown: &Shutdown) -> Incoming {
    let (tx, ready) = mpsc::channel(MAX_HANDSHAKES);
    let failures = Arc::new(AtomicU64::new(0));
    let handshakes = Handshakes {
        acceptor: TlsAcceptor::from(config),
        tx,
        failures: failures.clone(),
    };
    spawn_essential(
        "tls accept",
        shutdown,
        handshakes.run(listener, shutdown.clone()),
    );
    Incoming { ready, failures }
}

#[derive(Clone)]
struct Handshakes {
    acceptor: TlsAcceptor,
    tx: mpsc::Sender<TlsStream<TcpStream>>,
    failures: Arc<AtomicU64>,
}

impl Handshakes {
    async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((tcp, remote)) => {
                    let this = self.clone();
                    spawn_connection("tls handshake", async move {
                        if let Err(error) = this.finish(tcp).await {
                            this.failures.fetch_add(1, Ordering::Relaxed);
                            tracing::debug!(%remote, %error, "TLS handshake of a control-plane caller failed");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting control-plane connections failed, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn finish(&self, tcp: TcpStream) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(tcp)).await??;
        // Nobody listens any more when the server is shutting down.
        let _closing = self.tx.send(tls).await;
        Ok(())
    }
}
