//! Plaintext to a captured pod: from callers outside the mesh, with no identity. Policy decides (STRICT refuses them),
//! except while the pod enters or leaves the mesh.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use karst_hbone::{RelayEnd, copy_tcp};
use karst_model::addr::canonical;
use karst_policy::Connection;
use karst_runtime::drain;
use karst_telemetry::settings::Side;
use tokio::net::TcpStream;

use crate::{
    capture::pods::LocalPod,
    error::InboundError,
    inbound::{admit, dial_application, labels, own_workload},
    live::{Cut, Registered},
    mesh::Mesh,
    reset,
    tracked::{Bytes, Tracked},
    workers::Worker,
};

/// Serves one plaintext connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    _drain: drain::Watch,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let mesh = &worker.mesh;
    // The connection was steered, not rewritten: its local address is what the client dialled.
    let Ok(local) = stream.local_addr() else {
        return;
    };
    let target = canonical(local);
    let connection = Arc::new(Connection {
        source: None,
        source_ip: peer.ip(),
        destination: target,
    });
    let own = own_workload(mesh, &pod).await;
    let labels = labels(mesh, own.as_deref(), &connection, None);
    let mut tracked = Tracked::start(&mesh.metrics.tcp, labels, peer, target).recorded_for(
        &mesh.hub,
        own.as_deref(),
        Side::Server,
    );
    let known = own
        .map(|_| ())
        .ok_or_else(|| InboundError::UnknownWorkload(pod.workload_uid.clone()));
    let prepared = match known {
        Ok(()) => prepare(mesh, &pod, &connection, peer).await,
        Err(error) => Err(error),
    };
    let (registered, application) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            tracked.refuse(&error, error.flag());
            return reset::close(stream);
        }
    };
    tracked.opened();
    let cut = registered
        .as_ref()
        .map_or_else(Cut::default, |registered| registered.cut.clone());
    let RelayEnd {
        sent,
        received,
        end,
    } = copy_tcp(stream, application, &cut.flow).await;
    if cut.reason().is_some() {
        mesh.metrics.cut_by_policy.inc();
    }
    tracked.finish(
        Bytes {
            request: sent,
            response: received,
        },
        &end,
        cut.reason(),
    );
}

async fn prepare(
    mesh: &Mesh,
    pod: &LocalPod,
    connection: &Arc<Connection>,
    peer: SocketAddr,
) -> Result<(Option<Registered>, TcpStream), InboundError> {
    let target = connection.destination;
    if pod.is_reserved(target.port()) {
        return Err(InboundError::Reserved {
            port: target.port(),
        });
    }
    // A pod on its way into or out of the mesh has peers that have not heard of it yet, or have already: what they dial
    // plainly shows no identity and would be refused for a moment. See docs/design/0007-enrolment-in-steps.md.
    let registered = if pod.is_plaintext_open() {
        None
    } else {
        Some(admit(mesh, pod, connection)?)
    };
    Ok((
        registered,
        dial_application(mesh, pod, target, Some(peer)).await?,
    ))
}
