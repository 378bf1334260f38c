//! From the dialled address to the upstream of one connection: the decision is `karst-path`'s, what it draws is drawn
//! here, and a tunnel gets its key in the pool.

use std::{net::SocketAddr, sync::Arc};

use karst_hbone::PoolKey;
use karst_model::{service::Service, workload::Workload};
use karst_path::outbound::{self, Choose, Egress, Hop, Replica, Tunnel};
use karst_routing::balance::{Choice, NoEndpoint};

use crate::{error::OutboundError, mesh::Mesh, outbound::waypoint::Stream};

/// Where a connection goes, and what telemetry says about it.
pub(crate) struct Route {
    pub(crate) upstream: Upstream,
    pub(crate) service: Option<Arc<Service>>,
    /// What is connected: an endpoint, or a replica of the waypoint.
    pub(crate) workload: Option<Arc<Workload>>,
    /// Counts a stream to a waypoint for as long as the route is held.
    pub(crate) _stream: Option<Stream>,
}

/// How the destination is reached.
pub(crate) enum Upstream {
    /// Through HBONE; `target` is the authority of the CONNECT.
    Tunnel { key: PoolKey, target: SocketAddr },
    /// Plain TCP: the destination is not in the mesh.
    Direct { addr: SocketAddr },
}

/// Decides one connection from `source` to `dialled`.
pub(crate) fn resolve(
    mesh: &Mesh,
    source: &Workload,
    egress: Egress,
    dialled: SocketAddr,
) -> Result<Route, OutboundError> {
    let network = mesh.config.own_network();
    let way = outbound::resolve(&mesh.state, &network, mesh, source, dialled)?;
    let way = egress.check(way)?;
    let upstream = match way.hop {
        Hop::Tunnel(tunnel) => Upstream::Tunnel {
            target: tunnel.target,
            key: pool_key(source, tunnel),
        },
        Hop::Direct { addr } => Upstream::Direct { addr },
    };
    Ok(Route {
        upstream,
        service: way.service,
        workload: way.workload,
        _stream: way.held,
    })
}

fn pool_key(source: &Workload, tunnel: Tunnel) -> PoolKey {
    PoolKey {
        source: source.uid.clone(),
        source_identity: source.identity(),
        destination: tunnel.destination,
        addr: tunnel.addr,
        accepted: tunnel.accepted.into_iter().collect(),
    }
}

impl Choose for Mesh {
    type Held = Stream;

    fn endpoint(
        &self,
        source: &Workload,
        service: &Service,
        dialled: SocketAddr,
        endpoints: &[Arc<Workload>],
    ) -> Result<Choice, NoEndpoint> {
        self.balancer.choose(source, service, dialled, endpoints)
    }

    fn replica(&self, usable: &[Replica<'_>]) -> (usize, Stream) {
        self.waypoints.draw(usable)
    }
}
