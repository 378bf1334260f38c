//! From the dialled address to where the connection goes: service and endpoint, waypoint, or the address itself.
//!
//! No I/O: reads the discovered state and decides. The order is Istio's node proxy's: a service address is looked at
//! before a workload address; a waypoint that is bound and cannot be used closes the connection. What is sent to a pod's
//! own address goes through a waypoint only where that is for pods, or the port is sealed.
//!
//! What is drawn at random, or depends on load, is the caller's to draw ([`Choose`]): the agent draws one, `why` wants
//! to know of all.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_discovery::State;
use karst_model::{
    addr::{Network, NetworkAddr},
    identity::SpiffeId,
    name::{ServiceKey, WorkloadUid},
    protocol::{HBONE_PORT, TunnelProtocol},
    service::{LoadBalancingMode, Service},
    workload::{GatewayAddr, GatewayDestination, Health, Workload},
};
use karst_routing::balance::{Choice, NoEndpoint};

/// Where a connection goes.
#[derive(Clone, Debug)]
pub struct Way<H = ()> {
    pub hop: Hop,
    /// What was dialled, where it is a service.
    pub service: Option<Arc<Service>>,
    /// What is connected: an endpoint, or a replica of the waypoint.
    pub workload: Option<Arc<Workload>>,
    /// The waypoint that it goes through.
    pub waypoint: Option<GatewayAddr>,
    /// What the choice of a replica wants to be held.
    pub held: Option<H>,
}

/// The next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Plain TCP: the destination is not in the mesh.
    Direct { addr: SocketAddr },
    /// Through HBONE.
    Tunnel(Tunnel),
}

/// A stream of HBONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The workload at the other end.
    pub destination: WorkloadUid,
    /// Where the tunnel's connection goes.
    pub addr: SocketAddr,
    /// The authority of the CONNECT.
    pub target: SocketAddr,
    /// Identities that are taken of the server.
    pub accepted: Vec<SpiffeId>,
}

/// A replica of a waypoint that may be chosen, and its address.
pub type Replica<'a> = (&'a Arc<Workload>, IpAddr);

/// Draws where there is more than one that may be chosen.
pub trait Choose {
    /// Is held for as long as the connection to a replica lives.
    type Held;

    /// An endpoint of the service for one connection.
    ///
    /// # Errors
    /// That no endpoint may be chosen, and why.
    fn endpoint(
        &self,
        source: &Workload,
        service: &Service,
        dialled: SocketAddr,
        endpoints: &[Arc<Workload>],
    ) -> Result<Choice, NoEndpoint>;

    /// The index of one of `usable`, of which there is at least one.
    fn replica(&self, usable: &[Replica<'_>]) -> (usize, Self::Held);
}

/// Why a connection is refused at the client's node. Nothing was sent anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("service {service} has no port {port}")]
    NoPort { service: ServiceKey, port: u16 },
    #[error("service {service} has no endpoint to send this to: {why}")]
    NoEndpoint { service: ServiceKey, why: String },
    #[error(
        "{name} must be reached through its waypoint {waypoint}, and that cannot be used: {why}"
    )]
    Waypoint {
        name: String,
        waypoint: String,
        why: String,
    },
    #[error(
        "port {port} of {name} is sealed: it accepts its waypoint only, and none is bound to the service"
    )]
    Sealed { name: String, port: u16 },
    #[error(
        "{addr} is in no registry of the mesh, and outboundTrafficPolicy REGISTRY_ONLY lets pods reach nothing else: a \
         ServiceEntry makes it known"
    )]
    NotInRegistry { addr: SocketAddr },
    #[error("{name} is in network {network}, for which no gateway is known")]
    OtherNetwork { name: String, network: String },
}

/// What of the destinations that the mesh does not know may be reached (`outboundTrafficPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// All of them, plainly.
    #[default]
    Any,
    /// None.
    RegistryOnly,
}

impl Egress {
    /// What the mesh lets through as if it were not there, or not.
    ///
    /// # Errors
    /// That what was dialled is neither a service nor a workload.
    pub fn check<H>(self, way: Way<H>) -> Result<Way<H>, Refused> {
        match &way.hop {
            Hop::Direct { addr }
                if self == Self::RegistryOnly
                    && way.service.is_none()
                    && way.workload.is_none() =>
            {
                Err(Refused::NotInRegistry { addr: *addr })
            }
            _ => Ok(way),
        }
    }
}

/// Decides one connection from `source`, which is in `network`, to `dialled`.
///
/// # Errors
/// Why the connection is refused.
pub fn resolve<C: Choose>(
    state: &State,
    network: &Network,
    choose: &C,
    source: &Workload,
    dialled: SocketAddr,
) -> Result<Way<C::Held>, Refused> {
    let asked = Asked {
        state,
        network,
        choose,
        source,
        dialled,
    };
    let addr = NetworkAddr::new(network.clone(), dialled.ip());
    if let Some(service) = state.service_at(&addr, &source.namespace) {
        return asked.to_service(service);
    }
    let Some(workload) = state.workload_at(&addr) else {
        return Ok(Way::direct(dialled));
    };
    if let Some(waypoint) = waypoint_of_pod(&workload, dialled.port())?
        && !is_replica(source, &waypoint)
    {
        let name = workload.uid.to_string();
        return asked.to_waypoint(&name, &waypoint);
    }
    Ok(Way {
        hop: hop(&workload, dialled, &[]),
        workload: Some(workload),
        ..Way::direct(dialled)
    })
}

/// One connection that is being decided.
struct Asked<'a, C> {
    state: &'a State,
    network: &'a Network,
    choose: &'a C,
    source: &'a Workload,
    dialled: SocketAddr,
}

impl<H> Way<H> {
    fn direct(addr: SocketAddr) -> Self {
        Self {
            hop: Hop::Direct { addr },
            service: None,
            workload: None,
            waypoint: None,
            held: None,
        }
    }
}

impl<C: Choose> Asked<'_, C> {
    fn to_service(&self, service: Arc<Service>) -> Result<Way<C::Held>, Refused> {
        let port = self.dialled.port();
        let passthrough = service.load_balancing.mode == LoadBalancingMode::Passthrough;
        if !passthrough && !service.ports.contains_key(&port) {
            return Err(Refused::NoPort {
                service: service.key.clone(),
                port,
            });
        }
        if let Some(waypoint) = &service.waypoint {
            match self.to_waypoint(&service.key.to_string(), waypoint) {
                Ok(way) => {
                    return Ok(Way {
                        service: Some(service),
                        ..way
                    });
                }
                // None of its replicas is ready, and somebody has written that the service matters more.
                Err(Refused::Waypoint { .. }) if service.waypoint_optional => {}
                Err(refused) => return Err(refused),
            }
        }
        if passthrough {
            return Ok(Way {
                service: Some(service),
                ..Way::direct(self.dialled)
            });
        }
        self.to_endpoint(service)
    }

    fn to_endpoint(&self, service: Arc<Service>) -> Result<Way<C::Held>, Refused> {
        let endpoints = self.state.endpoints(&service.key);
        let chosen = self
            .choose
            .endpoint(self.source, &service, self.dialled, &endpoints);
        let none = |why: String| Refused::NoEndpoint {
            service: service.key.clone(),
            why,
        };
        let chosen = chosen.map_err(|error| none(error.to_string()))?;
        let Some(ip) = chosen.ip() else {
            return Err(none("the chosen endpoint has a host name and no address, and names are not resolved here yet".to_owned()));
        };
        let workload = chosen.workload;
        if workload.network != *self.network {
            return Err(Refused::OtherNetwork {
                name: workload.uid.to_string(),
                network: workload.network.0.to_string(),
            });
        }
        let target = SocketAddr::new(ip, chosen.target_port);
        Ok(Way {
            hop: hop(&workload, target, &service.subject_alt_names),
            service: Some(service),
            workload: Some(workload),
            ..Way::direct(target)
        })
    }

    /// HBONE to a replica of the waypoint, whatever its workload says it speaks; the authority is what was dialled.
    fn to_waypoint(&self, name: &str, waypoint: &GatewayAddr) -> Result<Way<C::Held>, Refused> {
        let replicas = replicas(self.state, waypoint);
        let usable = usable(&replicas, self.network, self.dialled.ip());
        if usable.is_empty() {
            return Err(Refused::Waypoint {
                name: name.to_owned(),
                waypoint: shown(waypoint),
                why: none_ready(replicas.len()),
            });
        }
        let (index, held) = self.choose.replica(&usable);
        let (workload, ip) = usable[index.min(usable.len() - 1)];
        let names = match &waypoint.destination {
            GatewayDestination::Service(key) => self.state.service(key),
            GatewayDestination::Address(_) => None,
        };
        let names = names.map(|service| service.subject_alt_names.clone());
        let tunnel = Tunnel {
            destination: workload.uid.clone(),
            addr: SocketAddr::new(ip, waypoint.hbone_port),
            target: self.dialled,
            accepted: accepted(workload, &names.unwrap_or_default()),
        };
        Ok(Way {
            hop: Hop::Tunnel(tunnel),
            service: None,
            workload: Some(workload.clone()),
            waypoint: Some(waypoint.clone()),
            held: Some(held),
        })
    }
}

/// How a workload is reached at one of its own addresses.
pub fn hop(workload: &Workload, target: SocketAddr, further_names: &[Arc<str>]) -> Hop {
    match workload.tunnel {
        TunnelProtocol::None => Hop::Direct { addr: target },
        TunnelProtocol::Hbone => Hop::Tunnel(Tunnel {
            destination: workload.uid.clone(),
            addr: SocketAddr::new(target.ip(), HBONE_PORT),
            target,
            accepted: accepted(workload, further_names),
        }),
    }
}

/// The identities that a server at `destination` may show.
fn accepted(destination: &Workload, further_names: &[Arc<str>]) -> Vec<SpiffeId> {
    let further = further_names
        .iter()
        .filter_map(|name| name.parse::<SpiffeId>().ok());
    std::iter::once(destination.identity())
        .chain(further)
        .collect()
}

/// The waypoint that a connection to a pod's own address goes through.
fn waypoint_of_pod(workload: &Workload, port: u16) -> Result<Option<GatewayAddr>, Refused> {
    let sealed = workload.sealed.iter().find(|sealed| sealed.port == port);
    match sealed.map(|sealed| &sealed.waypoint) {
        Some(Some(waypoint)) => Ok(Some(waypoint.clone())),
        Some(None) => Err(Refused::Sealed {
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

/// Every replica of a waypoint, ready or not.
pub fn replicas(state: &State, waypoint: &GatewayAddr) -> Vec<Arc<Workload>> {
    match &waypoint.destination {
        GatewayDestination::Service(key) => state.endpoints(key).to_vec(),
        GatewayDestination::Address(addr) => at_address(state, addr),
    }
}

/// A waypoint named by address: that of a pod, or of a service.
fn at_address(state: &State, addr: &NetworkAddr) -> Vec<Arc<Workload>> {
    match state.service_at(addr, "") {
        Some(service) => state.endpoints(&service.key).to_vec(),
        None => state.workload_at(addr).into_iter().collect(),
    }
}

/// The replicas that may be chosen, each at an address of the dialled one's family where it has one.
pub fn usable<'a>(
    replicas: &'a [Arc<Workload>],
    network: &Network,
    dialled: IpAddr,
) -> Vec<Replica<'a>> {
    replicas
        .iter()
        .filter(|one| one.health == Health::Healthy && one.network == *network)
        .filter_map(|one| Some((one, address(one, dialled)?)))
        .collect()
}

fn none_ready(all: usize) -> String {
    match all {
        0 => "it has no replicas at all".to_owned(),
        1 => "its only replica is not ready".to_owned(),
        all => format!("none of its {all} replicas is ready"),
    }
}

/// An address of the workload, of the other's family where it has one.
fn address(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let same = workload
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == like.is_ipv4());
    same.or_else(|| workload.addresses.first()).copied()
}

/// As messages name it.
pub fn shown(waypoint: &GatewayAddr) -> String {
    match &waypoint.destination {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(addr) => addr.to_string(),
    }
}
