//! Traffic to captured pods: HBONE from the mesh, plaintext from everybody else, both authorized before a byte reaches
//! the application.

pub(crate) mod authorize;
pub(crate) mod passthrough;
pub(crate) mod target;
pub(crate) mod tunnel;

use std::{net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use karst_model::{addr::NetworkAddr, service::Service, workload::Workload};
use karst_netns::Family;
use karst_policy::Connection;
use karst_telemetry::metrics::tcp::{Reporter, ResponseFlags, Security, TcpLabels};
use tokio::net::TcpStream;

use crate::{
    capture::pods::LocalPod,
    error::InboundError,
    inbound::authorize::Occasion,
    live::Registered,
    mesh::Mesh,
    metrics::{peer, service_labels},
    outbound::dial::connected,
};

/// How long an application may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a new pod may take to become known to the mesh before its connections are refused.
const WORKLOAD_PATIENCE: Duration = Duration::from_secs(5);

/// Registers the connection, then decides it. The order matters: a policy that changes in between is not missed.
fn admit(
    mesh: &Mesh,
    pod: &LocalPod,
    connection: &Arc<Connection>,
) -> Result<Registered, InboundError> {
    let registered = mesh.live.register(&pod.workload_uid, connection);
    match mesh
        .authorizer
        .check(&pod.workload_uid, connection, Occasion::New)
    {
        Ok(()) => Ok(registered),
        Err(reason) => Err(InboundError::Denied { reason }),
    }
}

/// Connects to the application at one of the pod's own addresses, showing it `client` as its peer, or the pod itself.
async fn dial_application(
    mesh: &Mesh,
    pod: &LocalPod,
    addr: SocketAddr,
    client: Option<SocketAddr>,
) -> Result<TcpStream, InboundError> {
    let failed = |source| InboundError::Application { addr, source };
    let socket =
        karst_netns::local_connect_socket(&pod.netns, Family::of(&addr)).map_err(failed)?;
    let cookie = karst_netns::socket_cookie(socket.as_fd()).map_err(failed)?;
    if let Some(client) = client
        && let Err(error) = mesh.datapath.announce_dial(cookie, client)
    {
        tracing::debug!(%error, "the application will see the agent's port instead of its client's");
    }
    connected(socket, addr, CONNECT_TIMEOUT)
        .await
        .map_err(failed)
}

/// The workload of a pod, waiting for a new one to become known.
pub(crate) async fn own_workload(mesh: &Mesh, pod: &LocalPod) -> Option<Arc<Workload>> {
    match mesh.state.workload(&pod.workload_uid) {
        Some(workload) => Some(workload),
        None => {
            mesh.state
                .wait_for_workload(&pod.workload_uid, WORKLOAD_PATIENCE)
                .await
        }
    }
}

/// Who talks to whom, as the destination reports it.
fn labels(
    mesh: &Mesh,
    own: Option<&Workload>,
    connection: &Connection,
    service: Option<&Service>,
) -> TcpLabels {
    let source_addr = NetworkAddr::new(mesh.config.own_network(), connection.source_ip);
    let source = mesh.state.workload_at(&source_addr);
    let mutual_tls = connection.source.is_some();
    let own_identity = own.filter(|_| mutual_tls).map(Workload::identity);
    TcpLabels {
        reporter: Reporter::Destination,
        source: peer(source.as_deref(), connection.source.as_ref()),
        destination: peer(own, own_identity.as_ref()),
        service: service_labels(service),
        response_flags: ResponseFlags::None,
        security: if mutual_tls {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    }
}
