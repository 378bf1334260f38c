//! HBONE from the agents of clients: one mutual-TLS connection per source, on it one stream per client connection. Says
//! who the client is; what it wants is [`crate::destination`]'s.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::StatusCode;
use karst_hbone::{
    ConnectError, Flag, InboundRequest, Incoming, ServerConfig,
    server::{self, peers::PeerSlot},
    tls,
};
use karst_identity::{peer_cert_error, peer_id};
use karst_model::{
    addr::{NetworkAddr, canonical, canonical_ip},
    identity::SpiffeId,
};
use karst_runtime::{drain, supervise::spawn_local_connection};
use karst_telemetry::{
    access_log::{Direction, Record},
    error_chain::Chain,
    metrics::tcp::Peer,
};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    carry,
    destination::{self, Destination},
    error::InboundError,
    http::Client,
    labels,
    mesh::Mesh,
    share,
    stream::Stream,
    tcp::Tracked,
    upstream::ClientKey,
    workers::{Worker, Workers},
};

/// How long our certificate may take when the first peer comes before it was issued.
const CREDENTIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long the TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting waits after a failure such as no free file descriptor.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How long a service that a client knows already may take to become known here.
const CONFIG_PATIENCE: Duration = Duration::from_secs(2);

/// Accepts HBONE connections and spreads them over the threads, until the drain is over. While it drains, connections
/// that come are served and told to go elsewhere for the next one.
pub async fn accept(listener: TcpListener, mesh: Arc<Mesh>, workers: Workers, drain: drain::Watch) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = mesh.stopped.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an HBONE connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let peer = canonical(peer);
        let Some(slot) = mesh.peers.admit(peer.ip()) else {
            mesh.metrics.peer_connections_refused.inc();
            continue;
        };
        let watch = drain.clone();
        let placed = workers.place("hbone connection", stream, move |worker, stream| {
            serve(worker, stream, peer, slot, watch)
        });
        if !placed {
            mesh.metrics.worker_queue_full.inc();
        }
    }
}

/// Everything that the streams of one connection share.
struct Session {
    worker: Rc<Worker>,
    peer: SocketAddr,
    identity: SpiffeId,
    labels: Arc<Peer>,
    key: ClientKey,
    drain: drain::Watch,
}

async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    slot: PeerSlot,
    drain: drain::Watch,
) {
    let Ok(local) = stream.local_addr().map(canonical) else {
        return;
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let mesh = worker.mesh.clone();
    let credential = match mesh
        .identities
        .wait(&mesh.identity, CREDENTIAL_PATIENCE)
        .await
    {
        Ok(credential) => credential,
        Err(error) => return refused(peer, local, Flag::IdentityError, &error),
    };
    let io = match tls::tls_accept(stream, credential.server_config(), TLS_TIMEOUT).await {
        Ok(io) => io,
        Err(error) => return refused(peer, local, Flag::TlsFailure, tls_reason(&error)),
    };
    let identity = match peer_id(tls::peer_certificates(&io)) {
        Ok(identity) => identity,
        Err(error) => return refused(peer, local, Flag::TlsFailure, &error),
    };
    let config = slot.limit(&ServerConfig {
        drain_deadline: mesh.config.drain_deadline(),
        ..ServerConfig::default()
    });
    let session = Rc::new(Session::new(worker, peer, identity, drain.clone()));
    let served = server::serve(io, &config, drain, |incoming| {
        let session = session.clone();
        spawn_local_connection(
            "client stream",
            async move { session.stream(incoming).await },
        );
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(peer = %session.peer, error = %Chain(&error), "an HBONE connection ended with an error");
    }
}

/// The refusal of the peer's certificate in our words, where that is what ended the handshake.
fn tls_reason(error: &ConnectError) -> &(dyn std::error::Error + 'static) {
    match error {
        ConnectError::Tls(io) => peer_cert_error(io).map_or(error, |refusal| refusal),
        _ => error,
    }
}

/// A connection that failed before anybody knew what it was for.
fn refused(peer: SocketAddr, local: SocketAddr, flag: Flag, error: &dyn std::error::Error) {
    let mut record = Record::new(Direction::Waypoint);
    record.source.addr = Some(peer);
    record.destination.addr = Some(local);
    record.error = Some(format!("{flag}: {}", Chain(error)));
    record.failed();
}

impl Session {
    fn new(worker: Rc<Worker>, peer: SocketAddr, identity: SpiffeId, drain: drain::Watch) -> Self {
        let at = NetworkAddr::new(worker.mesh.config.own_network(), peer.ip());
        // An address that another identity uses is no description of this one.
        let workload = worker
            .mesh
            .state
            .workload_at(&at)
            .filter(|workload| workload.identity().same_account(&identity));
        let labels = Arc::new(labels::peer(workload.as_deref(), Some(&identity)));
        let key = worker.upstreams.client(Some(&identity));
        Self {
            worker,
            peer,
            identity,
            labels,
            key,
            drain,
        }
    }

    async fn stream(&self, incoming: Incoming) {
        let mesh = &self.worker.mesh;
        if self.identity == mesh.identity && share::is_question(&incoming.request.authority) {
            return Box::pin(share::answer(mesh, incoming)).await;
        }
        let authority = incoming.request.authority.clone();
        let found = self.find(&incoming.request).await;
        let place = mesh.bounds.connection().ok_or(InboundError::Full);
        let (destination, place) = match found.and_then(|found| Ok((found, place?))) {
            Ok(found) => found,
            Err(error) => {
                if matches!(error, InboundError::Full) {
                    mesh.metrics.connections_refused.inc();
                }
                let mut record = Record::new(Direction::Waypoint);
                record.source.addr = Some(self.peer);
                record.source.identity = Some(self.identity.to_string());
                record.destination.hbone_addr = Some(authority.to_string());
                record.error = Some(format!("{}: {error}", error.flag()));
                record.failed();
                let status = StatusCode::from_u16(error.status());
                return incoming.reject(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
            }
        };
        let client = self.client(&incoming.request);
        if let Err(error) = carry::admit(&self.worker, &client, &destination) {
            Tracked::start(&self.worker, &client, &destination).refuse(&error);
            return incoming.reject(StatusCode::UNAUTHORIZED);
        }
        let Ok(tunnel) = incoming.accept(mesh.baggage.clone()) else {
            return;
        };
        carry::carry(
            self.worker.clone(),
            client,
            destination,
            Stream::Tunnel(tunnel),
            place,
            self.drain.clone(),
        )
        .await;
    }

    /// What the client asked for; what is not known here yet may be about to come.
    async fn find(&self, request: &InboundRequest) -> Result<Destination, InboundError> {
        let mesh = &self.worker.mesh;
        let find = || destination::find(mesh, &request.authority, &self.identity.namespace);
        match find() {
            Ok(found) => return Ok(found),
            Err(_unknown_now) => {}
        }
        let mut changes = mesh.state.changes();
        let arrival = async {
            loop {
                let found = find();
                if found.is_ok() || changes.next().await.is_none() {
                    return found;
                }
            }
        };
        tokio::time::timeout(CONFIG_PATIENCE, arrival)
            .await
            .unwrap_or_else(|_elapsed| find())
    }

    /// The peer's port is the agent's; the client's own is what the agent claims, and only shown.
    fn client(&self, request: &InboundRequest) -> Client {
        let addr = match request.forwarded_for {
            Some(claimed) if canonical_ip(claimed.ip()) == self.peer.ip() => claimed,
            _ => self.peer,
        };
        Client {
            identity: Some(self.identity.clone()),
            addr,
            labels: self.labels.clone(),
            key: self.key.clone(),
        }
    }
}
