//! From the authority of a tunnel to what is behind it: a port of a service, or one workload.

use std::{net::SocketAddr, sync::Arc};

use karst_hbone::Authority;
use karst_model::{
    addr::NetworkAddr,
    service::{LoadBalancingMode, Service},
    workload::Workload,
};

use crate::{
    error::InboundError,
    mesh::Mesh,
    services::{self, Endpoint, EndpointKey, Slot},
};

/// What a client asked for.
pub(crate) struct Destination {
    /// The service whose policies and telemetry apply.
    pub(crate) slot: Option<Arc<Slot>>,
    /// Further services behind this waypoint that have the workload's port too: their policies apply as well.
    pub(crate) also: Vec<(Arc<Slot>, u16)>,
    /// The service's own port; the port that was dialled where there is no service.
    pub(crate) port: u16,
    /// What the client dialled, where it named an address.
    pub(crate) dialled: Option<SocketAddr>,
    /// The client named a workload: there is nothing to choose and nothing to route.
    pub(crate) pinned: Option<Arc<Endpoint>>,
}

/// Finds what `authority` means for a client of `client_namespace`.
pub(crate) fn find(
    mesh: &Mesh,
    authority: &Authority,
    client_namespace: &str,
) -> Result<Destination, InboundError> {
    let not_served = || InboundError::NotServed {
        asked: authority.clone(),
    };
    let state = &mesh.state;
    match authority {
        Authority::Host(host, port) => {
            let service = state
                .service_by_host(host, client_namespace)
                .ok_or_else(not_served)?;
            to_service(mesh, &service, *port, None)
        }
        Authority::Addr(addr) => {
            let at = NetworkAddr::new(mesh.config.own_network(), addr.ip());
            if let Some(service) = state.service_at(&at, client_namespace) {
                return to_service(mesh, &service, addr.port(), Some(*addr));
            }
            let workload = state.workload_at(&at).ok_or_else(not_served)?;
            to_workload(mesh, &workload, *addr).ok_or_else(not_served)
        }
    }
}

fn to_service(
    mesh: &Mesh,
    service: &Service,
    port: u16,
    dialled: Option<SocketAddr>,
) -> Result<Destination, InboundError> {
    let named = || service.key.to_string();
    if !mesh.services.is_own(service.waypoint.as_ref()) {
        return Err(InboundError::NotServed {
            asked: Authority::Host(service.key.hostname.clone(), port),
        });
    }
    if !service.ports.contains_key(&port) {
        return Err(InboundError::NoPort {
            service: named(),
            port,
        });
    }
    let slot = mesh.services.get(&service.key);
    let passes = service.load_balancing.mode == LoadBalancingMode::Passthrough;
    let pinned = dialled.filter(|_| passes).map(|addr| {
        let at = NetworkAddr::new(mesh.config.own_network(), addr.ip());
        let known = mesh.state.workload_at(&at);
        let workload = known.unwrap_or_else(|| Arc::new(services::dialled(service, addr.ip())));
        let workload_uid = workload.uid.clone();
        let key = EndpointKey {
            workload: workload_uid,
            addr,
        };
        mesh.services.endpoint(&workload, key)
    });
    Ok(Destination {
        slot: Some(slot.ok_or_else(|| InboundError::NoPort {
            service: named(),
            port,
        })?),
        also: Vec::new(),
        port,
        dialled,
        pinned,
    })
}

/// A workload is served when it names this waypoint, or when the port is sealed behind it.
fn to_workload(mesh: &Mesh, workload: &Arc<Workload>, addr: SocketAddr) -> Option<Destination> {
    let services = &mesh.services;
    let sealed = workload
        .sealed
        .iter()
        .any(|sealed| sealed.port == addr.port() && services.is_own(sealed.waypoint.as_ref()));
    if !sealed && !services.is_own(workload.waypoint.as_ref()) {
        return None;
    }
    let mut behind = services_behind(mesh, workload, addr.port());
    let key = EndpointKey {
        workload: workload.uid.clone(),
        addr,
    };
    let first = (!behind.is_empty()).then(|| behind.remove(0));
    let (slot, port) = first.map_or((None, addr.port()), |(slot, port)| (Some(slot), port));
    Some(Destination {
        slot,
        also: behind,
        port,
        dialled: Some(addr),
        pinned: Some(services.endpoint(workload, key)),
    })
}

/// The services behind this waypoint of which a port is this target port at the workload; those with an address first,
/// since telemetry names the first.
fn services_behind(mesh: &Mesh, workload: &Workload, target: u16) -> Vec<(Arc<Slot>, u16)> {
    let mut found: Vec<_> = workload
        .services
        .iter()
        .filter_map(|(key, ports)| {
            let slot = mesh.services.get(key)?;
            let served = slot.load();
            let service = served.service.as_ref().filter(|_| served.bound)?;
            let mapped = ports.iter().find(|(_, mapped)| **mapped == target);
            let declared = || {
                let mut declared = service.ports.iter();
                declared.find(|(_, port)| port.target_port == target)
            };
            let port = mapped
                .map(|(port, _)| *port)
                .or_else(|| declared().map(|(port, _)| *port))?;
            let headless = service.addresses.is_empty();
            Some((headless, (slot.clone(), port)))
        })
        .collect();
    found.sort_by_key(|(headless, _)| *headless);
    found.into_iter().map(|(_, behind)| behind).collect()
}
