//! Makes connections from inside a pod's namespace, so that the pod's own address is their source: plain TCP, and the
//! TLS connections of the tunnel pool.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hashbrown::HashMap;
use karst_hbone::{
    Connect, ConnectError, OpenError, Pool, PoolConfig, PoolKey, Tunnel, TunnelRequest, tls,
};
use karst_model::name::WorkloadUid;
use karst_netns::{Family, Netns};
use rustix::io::Errno;
use socket2::Socket;
use tokio::{net::TcpStream, time::timeout};

use crate::{capture::pods::LocalPod, mesh::Mesh};

/// How long a TCP connection may take to be accepted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a certificate of the source may take when its first connection comes before it was issued.
const CREDENTIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Connects from inside `netns`.
pub(crate) async fn tcp(netns: &Netns, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = karst_netns::connect_socket(netns, Family::of(&addr))?;
    connected(socket, addr, CONNECT_TIMEOUT).await
}

/// Connects `socket`, which is non-blocking. A peer on this machine has answered before `connect` returns, so the
/// socket is asked first and waited for only then.
pub(crate) async fn connected(
    socket: Socket,
    addr: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        _ => {}
    }
    let at_once = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if at_once {
        return Ok(stream);
    }
    timeout(patience, stream.writable())
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// The tunnels of one data-path thread.
pub(crate) struct TunnelPool {
    pool: Pool<PodDialler>,
    sources: Rc<Sources>,
}

/// Pods that have dialled, so that the pool, which knows them by UID only, finds their namespaces.
#[derive(Default)]
struct Sources(Mutex<HashMap<WorkloadUid, Arc<LocalPod>>>);

/// Dials for the pool: TCP in the source pod's namespace, then TLS with the source's certificate.
struct PodDialler {
    mesh: Arc<Mesh>,
    sources: Rc<Sources>,
}

impl TunnelPool {
    pub(crate) fn start(mesh: &Arc<Mesh>) -> Self {
        let sources = Rc::new(Sources::default());
        let dialler = PodDialler {
            mesh: mesh.clone(),
            sources: sources.clone(),
        };
        Self {
            pool: Pool::new(PoolConfig::default(), dialler),
            sources,
        }
    }

    /// Opens a stream to the destination that `key` names, on a pooled connection or a new one. `first`: what the
    /// application has sent already.
    pub(crate) async fn open(
        &self,
        pod: &Arc<LocalPod>,
        key: &PoolKey,
        request: TunnelRequest,
        first: &Bytes,
    ) -> Result<Tunnel, OpenError> {
        self.sources.remember(pod);
        self.pool.open_with(key.clone(), request, first).await
    }
}

impl Sources {
    fn remember(&self, pod: &Arc<LocalPod>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = known
            .get(&pod.workload_uid)
            .is_some_and(|old| Arc::ptr_eq(old, pod));
        if !current {
            // Pods that were released leave their entry behind: drop them when another one comes.
            known.retain(|_, old| !old.stop.is_cancelled());
            known.insert(pod.workload_uid.clone(), pod.clone());
        }
    }

    fn get(&self, uid: &WorkloadUid) -> Option<Arc<LocalPod>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned()
    }
}

impl Connect for PodDialler {
    type Io = tls::TlsIo<TcpStream>;

    async fn connect(&self, key: &PoolKey) -> Result<Self::Io, ConnectError> {
        let gone = || {
            ConnectError::Socket(io::Error::new(
                io::ErrorKind::NotFound,
                "the source pod was released",
            ))
        };
        let pod = self.sources.get(&key.source).ok_or_else(gone)?;
        let credential = self
            .mesh
            .identities
            .wait(&key.source_identity, CREDENTIAL_PATIENCE)
            .await;
        let credential = credential.map_err(|error| ConnectError::Identity(Box::new(error)))?;
        let tcp = tcp(&pod.netns, key.addr)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => ConnectError::Timeout(CONNECT_TIMEOUT),
                _ => ConnectError::Tcp(error),
            })?;
        tls::tls_connect(tcp, credential.client_config(&key.accepted), TLS_TIMEOUT).await
    }
}
