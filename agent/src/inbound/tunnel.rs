//! HBONE to a captured pod: one mutual-TLS connection per peer, one authorized stream per application connection.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::StatusCode;
use karst_hbone::{
    Baggage, ConnectError, End, Flag, InboundRequest, Incoming, RelayEnd, ServerConfig, relay,
    server::{self, peers::PeerSlot},
    tls,
};
use karst_identity::{peer_cert_error, peer_id};
use karst_model::{
    addr::canonical, addr::canonical_ip, identity::SpiffeId, service::Service, workload::Workload,
};
use karst_path::outbound::replicas;
use karst_policy::Connection;
use karst_runtime::{drain, supervise::spawn_local_connection};
use karst_telemetry::{
    access_log::{Direction, Record},
    error_chain::Chain,
    settings::Side,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    capture::pods::LocalPod,
    error::InboundError,
    inbound::{
        admit, dial_application, labels, own_workload,
        target::{Handover, Target},
    },
    live::Registered,
    mesh::Mesh,
    tracked::{Bytes, Tracked},
    workers::Worker,
};

/// How long a certificate for the pod may take when the first peer comes before it was issued.
const CREDENTIAL_PATIENCE: Duration = Duration::from_secs(5);

/// How long the TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// The peer reset its request while the application was still being dialled.
#[derive(Debug, thiserror::Error)]
#[error("the peer gave up before the application had answered")]
struct Abandoned;

/// Everything that the streams of one connection share.
struct Session {
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    peer: SocketAddr,
    local: SocketAddr,
    identity: SpiffeId,
}

/// Serves one HBONE connection until its peer or the drain ends it. `slot` is the peer's place among the connections of
/// its address: it says how much this one may hold.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    drain: drain::Watch,
    stream: TcpStream,
    peer: SocketAddr,
    slot: PeerSlot,
) {
    let Ok(local) = stream.local_addr().map(canonical) else {
        return;
    };
    let credential = match worker
        .mesh
        .identities
        .wait(&pod.identity, CREDENTIAL_PATIENCE)
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
        drain_deadline: worker.mesh.config.drain_deadline(),
        ..ServerConfig::default()
    });
    let session = Rc::new(Session {
        worker,
        pod,
        peer,
        local,
        identity,
    });
    let served = server::serve(io, &config, drain, |incoming| {
        let session = session.clone();
        spawn_local_connection(
            "hbone stream",
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
    let mut record = Record::new(Direction::Inbound);
    record.source.addr = Some(peer);
    record.destination.addr = Some(local);
    record.error = Some(format!("{flag}: {}", Chain(error)));
    record.failed();
}

/// A request that was let in, and the application's end of it.
struct Prepared {
    registered: Registered,
    application: TcpStream,
    /// What the application reads before what the client sends.
    header: Option<Vec<u8>>,
}

impl Session {
    async fn stream(&self, mut incoming: Incoming) {
        let mesh = &self.worker.mesh;
        let own = own_workload(mesh, &self.pod).await;
        let target = own
            .as_deref()
            .ok_or_else(|| InboundError::UnknownWorkload(self.pod.workload_uid.clone()))
            .and_then(|own| Target::of(&mesh.state, own, self.local.ip(), &incoming.request));
        let destination = match &target {
            Ok(target) => target.destination,
            Err(_refused) => self.local,
        };
        let connection = Arc::new(Connection {
            source: Some(self.identity.clone()),
            source_ip: self.peer.ip(),
            destination,
        });
        let service = own
            .as_deref()
            .and_then(|own| reported_service(mesh, own, &incoming.request, destination.port()));
        let labels = labels(mesh, own.as_deref(), &connection, service.as_deref());
        let mut tracked = Tracked::start(&mesh.metrics.tcp, labels, self.peer, self.local)
            .recorded_for(&mesh.hub, own.as_deref(), Side::Server);
        tracked.through_tunnel(self.local, incoming.request.authority.to_string());
        let client = self.client_to_show(&incoming.request);
        if let (Some(own), Some(behind)) = (own.as_deref(), &incoming.request.client)
            && is_its_waypoint(mesh, own, &self.identity)
        {
            tracked.on_behalf_of(behind);
        }
        let prepared = match target {
            Ok(target) => tokio::select! {
                prepared = self.prepare(&connection, &target, client) => prepared,
                // Nobody waits any more: the dial ends here, and what it held is free again.
                () = incoming.abandoned() => return tracked.refuse(&Abandoned, Flag::None),
            },
            Err(error) => Err(error),
        };
        let Prepared {
            registered,
            mut application,
            header,
        } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                incoming.reject(
                    StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                );
                return tracked.refuse(&error, error.flag());
            }
        };
        let baggage = own.as_deref().and_then(|own| Baggage::of(own).encode());
        let Ok(tunnel) = incoming.accept(baggage) else {
            return;
        };
        tracked.opened();
        if let Some(header) = header
            && let Err(error) = application.write_all(&header).await
        {
            // Dropped unfinished, the tunnel is reset.
            drop(tunnel);
            return tracked.finish(Bytes::default(), &End::App(error), None);
        }
        let cut = &registered.cut;
        let RelayEnd {
            sent,
            received,
            end,
        } = relay(application, tunnel, &cut.flow).await;
        if cut.reason().is_some() {
            mesh.metrics.cut_by_policy.inc();
        }
        // The relay counts from the application's side: what it was given is the request.
        tracked.finish(
            Bytes {
                request: received,
                response: sent,
            },
            &end,
            cut.reason(),
        );
    }

    async fn prepare(
        &self,
        connection: &Arc<Connection>,
        target: &Target,
        client: SocketAddr,
    ) -> Result<Prepared, InboundError> {
        let mesh = &self.worker.mesh;
        let dialled = target.dialled();
        if self.pod.is_reserved(dialled.port()) {
            return Err(InboundError::Reserved {
                port: dialled.port(),
            });
        }
        // Told by the header where there is one: the connection itself is the agent's.
        let shown = (target.handover == Handover::Plain).then_some(client);
        Ok(Prepared {
            registered: admit(mesh, &self.pod, connection)?,
            application: dial_application(mesh, &self.pod, dialled, shown).await?,
            header: target.header(client, &self.identity),
        })
    }

    /// The application sees the TCP peer's address, with the client's own port where the peer tells it. The port is
    /// only shown, never decided on, so a peer that lies about it lies to its own server alone.
    fn client_to_show(&self, request: &InboundRequest) -> SocketAddr {
        match request.forwarded_for {
            Some(claimed) if canonical_ip(claimed.ip()) == self.peer.ip() => claimed,
            _ => self.peer,
        }
    }
}

/// Whether a peer is a replica of a waypoint that the workload, or a service of it, is bound to: only such a one is
/// believed for whom it asks.
fn is_its_waypoint(mesh: &Mesh, own: &Workload, peer: &SpiffeId) -> bool {
    let services = own.services.keys();
    let services = services.filter_map(|key| mesh.state.service(key)?.waypoint.clone());
    let waypoints = own.waypoint.clone().into_iter().chain(services);
    waypoints
        .into_iter()
        .flat_map(|waypoint| replicas(&mesh.state, &waypoint))
        .any(|replica| replica.identity().same_account(peer))
}

/// The service that telemetry names: the one the peer says it meant if it is ours, else the first with this port.
fn reported_service(
    mesh: &Mesh,
    own: &Workload,
    request: &InboundRequest,
    port: u16,
) -> Option<Arc<Service>> {
    let meant = request.forwarded_host.as_deref();
    let named = own.services.keys().find(|key| meant == Some(&key.hostname));
    let by_port = || {
        own.services
            .iter()
            .find(|(_, ports)| ports.values().any(|target| *target == port))
            .map(|(key, _)| key)
    };
    mesh.state.service(named.or_else(by_port)?)
}
