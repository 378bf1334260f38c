//! From the dialled address to where the connection goes: service and endpoint, waypoint, or the address itself.
//!
//! No I/O: reads the discovered state and decides. The order is Istio's node proxy's: a service address is looked at
//! before a workload address; a waypoint that is bound and cannot be used closes the connection. What is sent to a pod's
//! own address goes through a waypoint only where that is for pods, or the port is sealed.

use std::{net::SocketAddr, sync::Arc};

use karst_hbone::PoolKey;
use karst_model::{
    addr::NetworkAddr,
    identity::SpiffeId,
    protocol::{HBONE_PORT, TunnelProtocol},
    service::{LoadBalancingMode, Service},
    workload::{GatewayAddr, GatewayDestination, Workload},
};

use crate::{
    error::OutboundError,
    mesh::Mesh,
    outbound::waypoint::{self, Stream},
};

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
            _stream: None,
        });
    };
    if let Some(waypoint) = waypoint_of_pod(&workload, dialled.port())?
        && !is_replica(source, &waypoint)
    {
        let name = workload.uid.to_string();
        return to_waypoint(mesh, source, dialled, &name, &waypoint);
    }
    Ok(Route {
        upstream: upstream(source, &workload, dialled, &[]),
        service: None,
        workload: Some(workload),
        _stream: None,
    })
}

fn to_service(
    mesh: &Mesh,
    source: &Workload,
    dialled: SocketAddr,
    service: Arc<Service>,
) -> Result<Route, OutboundError> {
    let passthrough = service.load_balancing.mode == LoadBalancingMode::Passthrough;
    if !passthrough && !service.ports.contains_key(&dialled.port()) {
        return Err(OutboundError::NoPort {
            service: service.key.clone(),
            port: dialled.port(),
        });
    }
    if let Some(waypoint) = &service.waypoint {
        let route = to_waypoint(mesh, source, dialled, &service.key.to_string(), waypoint)?;
        return Ok(Route {
            service: Some(service),
            ..route
        });
    }
    if passthrough {
        return Ok(Route {
            upstream: Upstream::Direct { addr: dialled },
            service: Some(service),
            workload: None,
            _stream: None,
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
        _stream: None,
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
            let addr = SocketAddr::new(target.ip(), HBONE_PORT);
            let key = pool_key(source, workload, addr, further_names);
            Upstream::Tunnel { key, target }
        }
    }
}

fn pool_key(
    source: &Workload,
    destination: &Workload,
    addr: SocketAddr,
    further_names: &[Arc<str>],
) -> PoolKey {
    let further = further_names
        .iter()
        .filter_map(|name| name.parse::<SpiffeId>().ok());
    PoolKey {
        source: source.uid.clone(),
        source_identity: source.identity(),
        destination: destination.uid.clone(),
        addr,
        accepted: std::iter::once(destination.identity())
            .chain(further)
            .collect(),
    }
}

/// The waypoint that a connection to a pod's own address goes through.
fn waypoint_of_pod(workload: &Workload, port: u16) -> Result<Option<GatewayAddr>, OutboundError> {
    let sealed = workload.sealed.iter().find(|sealed| sealed.port == port);
    match sealed.map(|sealed| &sealed.waypoint) {
        Some(Some(waypoint)) => Ok(Some(waypoint.clone())),
        Some(None) => Err(OutboundError::Sealed {
            name: workload.uid.to_string(),
            port,
        }),
        None => Ok(workload.waypoint.clone()),
    }
}

/// Whether the source is a replica of the waypoint itself.
fn is_replica(source: &Workload, waypoint: &GatewayAddr) -> bool {
    match &waypoint.destination {
        GatewayDestination::Service(key) => source.services.contains_key(key),
        GatewayDestination::Address(addr) => source.addresses.contains(&addr.ip),
    }
}

/// HBONE to a replica of the waypoint, whatever its workload says it speaks; the authority is what was dialled.
fn to_waypoint(
    mesh: &Mesh,
    source: &Workload,
    dialled: SocketAddr,
    name: &str,
    waypoint: &GatewayAddr,
) -> Result<Route, OutboundError> {
    let network = mesh.config.own_network();
    let chosen = mesh
        .waypoints
        .choose(&mesh.state, &network, waypoint, dialled.ip());
    let chosen = chosen.map_err(|why| OutboundError::Waypoint {
        name: name.to_owned(),
        waypoint: waypoint::shown(waypoint),
        why,
    })?;
    let names = match &waypoint.destination {
        GatewayDestination::Service(key) => mesh.state.service(key),
        GatewayDestination::Address(_) => None,
    };
    let names = names.map(|service| service.subject_alt_names.clone());
    let key = pool_key(
        source,
        &chosen.workload,
        chosen.addr,
        &names.unwrap_or_default(),
    );
    Ok(Route {
        upstream: Upstream::Tunnel {
            key,
            target: dialled,
        },
        service: None,
        workload: Some(chosen.workload.clone()),
        _stream: Some(chosen.stream),
    })
}
