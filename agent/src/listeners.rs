//! Accept loops of a captured pod: HBONE, plaintext inbound, outbound and DNS over TCP, all on one data-path thread.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use karst_runtime::{drain, supervise::spawn_local_connection};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    capture::pods::{LocalPod, Sockets},
    dns, inbound, outbound,
    workers::Worker,
};

/// Pause after an accept error that concerns the process (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Starts all loops of the pod on the current thread. They end when `pod.stop` is cancelled or the drain starts.
pub(crate) fn spawn(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    drain: &drain::Watch,
    sockets: Sockets,
) {
    if let Err(error) = try_spawn(worker, pod, drain, sockets) {
        tracing::error!(pod = %pod.pod_uid, %error, "cannot serve the listeners of a captured pod: its connections are refused");
    }
}

fn try_spawn(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    drain: &drain::Watch,
    sockets: Sockets,
) -> io::Result<()> {
    let start = |listener: std::net::TcpListener, kind: Kind| -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let (worker, pod, drain) = (worker.clone(), pod.clone(), drain.clone());
        spawn_local_connection(kind.name(), async move {
            accept_loop(listener, kind, worker, pod, drain).await
        });
        Ok(())
    };
    start(sockets.hbone, Kind::Hbone)?;
    start(sockets.inbound, Kind::Inbound)?;
    start(sockets.outbound, Kind::Outbound)?;
    start(sockets.dns_tcp, Kind::DnsTcp)
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hbone,
    Inbound,
    Outbound,
    DnsTcp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Hbone => "hbone listener",
            Self::Inbound => "inbound listener",
            Self::Outbound => "outbound listener",
            Self::DnsTcp => "dns tcp listener",
        }
    }
}

async fn accept_loop(
    listener: TcpListener,
    kind: Kind,
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    mut drain: drain::Watch,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => dispatch(kind, &worker, &pod, &drain, stream, karst_model::addr::canonical(peer)),
                Err(error) => pause_after(&error, &pod).await,
            },
            () = pod.stop.cancelled() => return,
            () = drain.signaled() => break,
            () = worker.mesh.shutdown.cancelled() => break,
        }
    }
    // The kernel has accepted these for us, and would reset them: the next agent cannot have them.
    let last = listener.into_std().and_then(|listener| {
        serve_queued(&listener, |stream, peer| {
            let peer = karst_model::addr::canonical(peer);
            dispatch(kind, &worker, &pod, &drain, stream, peer);
        })
    });
    if let Err(error) = last {
        tracing::warn!(pod = %pod.pod_uid, listener = kind.name(), %error, "cannot accept what came before the end: it is reset");
    }
}

/// Hands over the connections that a listener has got already.
fn serve_queued(
    listener: &std::net::TcpListener,
    mut serve: impl FnMut(TcpStream, SocketAddr),
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                serve(TcpStream::from_std(stream)?, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if went_away(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether only the client is concerned, which is gone.
fn went_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// A client that went away before we accepted is nothing; anything else (descriptors) needs a pause.
async fn pause_after(error: &io::Error, pod: &LocalPod) {
    if went_away(error) {
        return;
    }
    tracing::warn!(pod = %pod.pod_uid, %error, "cannot accept a connection: raise the limit of open files if this repeats");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn dispatch(
    kind: Kind,
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    drain: &drain::Watch,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let (pod, drain) = (pod.clone(), drain.clone());
    match kind {
        Kind::Hbone => {
            let Some(slot) = worker.mesh.peers.admit(peer.ip()) else {
                worker.mesh.metrics.peer_connections_refused.inc();
                return tracing::debug!(%peer, "the peer has too many connections: one more is closed");
            };
            worker.place("hbone connection", stream, move |worker, stream| {
                inbound::tunnel::serve(worker, pod, drain, stream, peer, slot)
            });
        }
        Kind::Inbound => worker.place("inbound connection", stream, move |worker, stream| {
            inbound::passthrough::serve(worker, pod, drain, stream, peer)
        }),
        Kind::Outbound => worker.place("outbound connection", stream, move |worker, stream| {
            outbound::serve(worker, pod, drain, stream, peer)
        }),
        Kind::DnsTcp => worker.place("dns connection", stream, move |worker, stream| {
            dns::server::serve_tcp(worker.mesh.clone(), pod.dns.clone(), drain, stream, peer)
        }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn who_has_connected_before_the_end_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..5)
            .map(|_| std::net::TcpStream::connect(addr).unwrap())
            .collect();
        let mut served = Vec::new();
        let listener = listener.into_std().unwrap();
        serve_queued(&listener, |stream, peer| served.push((stream, peer))).unwrap();
        assert_eq!(served.len(), clients.len());
        for (client, (mut stream, peer)) in clients.into_iter().zip(served) {
            assert_eq!(client.local_addr().unwrap(), peer);
            drop(client);
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
    }
}
