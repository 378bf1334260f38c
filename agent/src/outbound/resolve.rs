//! From the dialled address to where the connection goes: service and endpoint, waypoint, or the address itself.
//!
//! No I/O: reads the discovered state and decides. The order is Istio's node proxy's: a service address is looked at
//! before a workload address; a waypoint that is named and cannot be used closes the connection.

use std::{net::SocketAddr, sync::Arc};

use karst_hbone::PoolKey;
use karst_model::{
    addr::NetworkAddr,
    identity::SpiffeId,
    protocol::{HBONE_PORT, TunnelProtocol},
    service::{LoadBalancingMode, Service},
    workload::{GatewayAddr, GatewayDestination, Workload},
};

use crate::{error::OutboundError, mesh::Mesh};

/// Where a connection goes, and what telemetry says about it.
pub(crate) struct Route {
    pub(crate) upstream: Upstream,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) workload: Option<Arc<Workload>>,
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
    dialled: SocketAddr,
) -> Result<Route, OutboundError> {
    let network = mesh.config.own_network();
    let addr = NetworkAddr::new(network, dialled.ip());
    if let Some(service) = mesh.state.service_at(&addr, &source.namespace) {
        return to_service(mesh, source, dialled, service);
    }
    let Some(workload) = mesh.state.workload_at(&addr) else {
        return Ok(Route {
            upstream: Upstream::Direct { addr: dialled },
            service: None,
            workload: None,
        });
    };
    if let Some(waypoint) = &workload.waypoint {
        return Err(waypoint_unsupported(&workload.uid.to_string(), waypoint));
    }
    Ok(Route {
        upstream: upstream(source, &workload, dialled, &[]),
        service: None,
        workload: Some(workload),
    })
}

fn to_service(
    mesh: &Mesh,
    source: &Workload,
    dialled: SocketAddr,
    service: Arc<Service>,
) -> Result<Route, OutboundError> {
    if let Some(waypoint) = &service.waypoint {
        return Err(waypoint_unsupported(&service.key.to_string(), waypoint));
    }
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return Ok(Route {
            upstream: Upstream::Direct { addr: dialled },
            service: Some(service),
            workload: None,
        });
    }
    if !service.ports.contains_key(&dialled.port()) {
        return Err(OutboundError::NoPort {
            service: service.key.clone(),
            port: dialled.port(),
        });
    }
    let endpoints = mesh.state.endpoints(&service.key);
    let chosen = mesh.balancer.choose(source, &service, dialled, &endpoints);
    let chosen = chosen.map_err(|error| OutboundError::NoEndpoint {
        service: service.key.clone(),
        why: error.to_string(),
    })?;
    let Some(ip) = chosen.ip() else {
        let why = "the chosen endpoint has a host name and no address, and names are not resolved here yet".to_owned();
        return Err(OutboundError::NoEndpoint {
            service: service.key.clone(),
            why,
        });
    };
    let workload = chosen.workload.clone();
    if workload.network != mesh.config.own_network() {
        return Err(OutboundError::OtherNetwork {
            name: workload.uid.to_string(),
            network: workload.network.0.to_string(),
        });
    }
    let target = SocketAddr::new(ip, chosen.target_port);
    let upstream = upstream(source, &workload, target, &service.subject_alt_names);
    Ok(Route {
        upstream,
        service: Some(service),
        workload: Some(workload),
    })
}

fn upstream(
    source: &Workload,
    workload: &Workload,
    target: SocketAddr,
    further_names: &[Arc<str>],
) -> Upstream {
    match workload.tunnel {
        TunnelProtocol::None => Upstream::Direct { addr: target },
        TunnelProtocol::Hbone => {
            let further = further_names
                .iter()
                .filter_map(|name| name.parse::<SpiffeId>().ok());
            let accepted: Arc<[SpiffeId]> = std::iter::once(workload.identity())
                .chain(further)
                .collect();
            let key = PoolKey {
                source: source.uid.clone(),
                source_identity: source.identity(),
                destination: workload.uid.clone(),
                addr: SocketAddr::new(target.ip(), HBONE_PORT),
                accepted,
            };
            Upstream::Tunnel { key, target }
        }
    }
}

/// Waypoints are the next step of the road map; until then one that is named cannot be used, and nothing goes around it.
fn waypoint_unsupported(name: &str, waypoint: &GatewayAddr) -> OutboundError {
    let waypoint = match &waypoint.destination {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(addr) => addr.to_string(),
    };
    let why = "this version has no waypoints".to_owned();
    OutboundError::Waypoint {
        name: name.to_owned(),
        waypoint,
        why,
    }
}
