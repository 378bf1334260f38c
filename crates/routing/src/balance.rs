//! Which endpoint of a service a connection goes to, and at which address and port of it.
//!
//! Rules, in order: the service has the port; an endpoint is usable (health, weight, target port, address); the
//! routing preference ranks what is left and only the best rank stays; session affinity, then weights decide.
//! Source: `ambient-facts.md` 6.3. The endpoints come from discovery, the random numbers from the caller.

mod candidates;
mod levels;
mod locality;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    name::{ServiceKey, WorkloadUid},
    service::{HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service},
    workload::{GatewayAddr, Health, Workload},
};
use rand::{Rng, RngExt};

pub use self::{
    candidates::{Algorithm, Candidates},
    levels::{Levels, Wanted},
};

/// A connection that wants an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub service: &'a Service,
    /// The service's port.
    pub port: u16,
    /// What the application dialled: a virtual address, or an endpoint's own address.
    pub dialled: SocketAddr,
    /// The workload that dials; its place decides the ranks.
    pub source: &'a Workload,
    /// The endpoint that session affinity asks for, from [`crate::affinity::AffinityTable::endpoint`].
    pub sticky: Option<&'a WorkloadUid>,
    pub mode: Mode,
}

/// What the endpoint is chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The endpoint is the destination. Choosing a waypoint will be the other mode.
    #[default]
    Standard,
}

/// An endpoint, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub workload: Arc<Workload>,
    pub address: EndpointAddress,
    /// The endpoint's own port, never 0.
    pub target_port: u16,
}

impl Choice {
    /// The endpoint's address, where it is known without DNS.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.address {
            EndpointAddress::Ip(ip) => Some(ip),
            EndpointAddress::Hostname { .. } | EndpointAddress::Gateway(_) => None,
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointAddress {
    Ip(IpAddr),
    /// To be resolved by DNS, to any of its addresses of these families, the preferred one first.
    Hostname {
        name: Arc<str>,
        families: Families,
    },
    /// Known only to the gateway of its network.
    Gateway(GatewayAddr),
}

/// Address families that may be used, the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    OnlyV4,
    OnlyV6,
    PreferV4,
    PreferV6,
}

impl Families {
    /// What the service allows, with the family of the dialled address first.
    fn new(allowed: IpFamilies, dialled: IpAddr) -> Self {
        match allowed {
            IpFamilies::V4Only => Self::OnlyV4,
            IpFamilies::V6Only => Self::OnlyV6,
            IpFamilies::Automatic | IpFamilies::Dual if dialled.to_canonical().is_ipv4() => {
                Self::PreferV4
            }
            IpFamilies::Automatic | IpFamilies::Dual => Self::PreferV6,
        }
    }

    /// The first address of the preferred family, else the first allowed one.
    pub fn pick(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        let first = |v4: bool| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
        match self {
            Self::OnlyV4 => first(true),
            Self::OnlyV6 => first(false),
            Self::PreferV4 => first(true).or_else(|| first(false)),
            Self::PreferV6 => first(false).or_else(|| first(true)),
        }
    }
}

/// Why there is no endpoint. The fault lies with the destination or its configuration, never with the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    #[error("service {service} has no port {port}")]
    UnknownPort { service: ServiceKey, port: u16 },
    /// The service wants no choice: connect what was dialled.
    #[error("service {service} passes connections through to the address that was dialled")]
    Passthrough { service: ServiceKey },
    #[error("service {service} has no endpoint that can take port {port}: {found}")]
    NoneUsable {
        service: ServiceKey,
        port: u16,
        found: Found,
    },
}

/// What was found instead of a usable endpoint, each endpoint counted under the first reason that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub unhealthy: usize,
    pub without_weight: usize,
    pub without_port: usize,
    pub without_address: usize,
    /// Outside of what a STRICT routing preference demands.
    pub elsewhere: usize,
    /// Without the labels of the subset.
    pub not_in_subset: usize,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = [
            (self.unhealthy, "not ready"),
            (self.without_weight, "of weight 0"),
            (self.without_port, "without the target port"),
            (
                self.without_address,
                "without an address of an allowed family",
            ),
            (self.elsewhere, "outside the strict routing preference"),
            (self.not_in_subset, "without the labels of the subset"),
        ];
        let mut seen = counts.iter().filter(|(count, _)| *count > 0).peekable();
        if seen.peek().is_none() {
            return f.write_str("it has no endpoints at all");
        }
        for (index, (count, what)) in seen.enumerate() {
            write!(f, "{}{count} {what}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Chooses an endpoint among all endpoints of the service, unhealthy ones included.
pub fn choose(
    request: &Request<'_>,
    endpoints: &[Arc<Workload>],
    rng: &mut impl Rng,
) -> Result<Choice, NoEndpoint> {
    refuse_unchoosable(request)?;
    let best = Best::survey(request, endpoints)?;
    let candidates = endpoints.iter().filter_map(|endpoint| {
        let (rank, candidate) = evaluate(request, endpoint).ok()?;
        (rank == best.rank).then_some(candidate)
    });
    let drawn = draw(candidates, request.sticky, rng.random_range(0..best.weight));
    Ok(drawn
        .expect("the survey found this weight at this rank")
        .into_choice(request))
}

/// Services that want no choice, and ports that they do not have.
fn refuse_unchoosable(request: &Request<'_>) -> Result<(), NoEndpoint> {
    let service = request.service;
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return Err(NoEndpoint::Passthrough {
            service: service.key.clone(),
        });
    }
    if !service.ports.contains_key(&request.port) {
        return Err(NoEndpoint::UnknownPort {
            service: service.key.clone(),
            port: request.port,
        });
    }
    Ok(())
}

/// The highest rank that a usable endpoint has, and the weight of all of that rank.
struct Best {
    rank: usize,
    weight: u64,
}

impl Best {
    fn survey(request: &Request<'_>, endpoints: &[Arc<Workload>]) -> Result<Self, NoEndpoint> {
        let (mut best, mut found) = (Self { rank: 0, weight: 0 }, Found::default());
        for endpoint in endpoints {
            match evaluate(request, endpoint) {
                Ok((rank, _)) if rank < best.rank => {}
                Ok((rank, candidate)) if rank == best.rank => best.weight += candidate.weight(),
                Ok((rank, candidate)) => {
                    best = Self {
                        rank,
                        weight: candidate.weight(),
                    }
                }
                Err(useless) => found.count(useless),
            }
        }
        if best.weight > 0 {
            return Ok(best);
        }
        Err(NoEndpoint::NoneUsable {
            service: request.service.key.clone(),
            port: request.port,
            found,
        })
    }
}

/// The sticky candidate if it is one, else the one at the point of the summed weights.
fn draw<'a>(
    candidates: impl Iterator<Item = Candidate<'a>>,
    sticky: Option<&WorkloadUid>,
    point: u64,
) -> Option<Candidate<'a>> {
    let (mut drawn, mut below) = (None, 0);
    for candidate in candidates {
        if sticky == Some(&candidate.endpoint.uid) {
            return Some(candidate);
        }
        let reaches = below + candidate.weight();
        if drawn.is_none() && point < reaches {
            if sticky.is_none() {
                return Some(candidate);
            }
            drawn = Some(candidate);
        } else {
            below = reaches;
        }
    }
    drawn
}

/// An endpoint that may be chosen.
struct Candidate<'a> {
    endpoint: &'a Arc<Workload>,
    target_port: u16,
    reach: Reach,
}

impl Candidate<'_> {
    fn weight(&self) -> u64 {
        self.endpoint.capacity.into()
    }

    fn into_choice(self, request: &Request<'_>) -> Choice {
        let endpoint = self.endpoint;
        let hostname = || endpoint.hostname.clone().unwrap_or_else(|| "".into());
        let address = match (self.reach, &endpoint.network_gateway) {
            (Reach::Ip(ip), _) => EndpointAddress::Ip(ip),
            (Reach::Gateway, Some(gateway)) => EndpointAddress::Gateway(gateway.clone()),
            (Reach::Hostname | Reach::Gateway, _) => EndpointAddress::Hostname {
                name: hostname(),
                families: Families::new(request.service.ip_families, request.dialled.ip()),
            },
        };
        Choice {
            workload: endpoint.clone(),
            address,
            target_port: self.target_port,
        }
    }
}

/// How an endpoint can be reached, without the data for it.
#[derive(Clone, Copy)]
enum Reach {
    Ip(IpAddr),
    Hostname,
    Gateway,
}

/// Why an endpoint may not be chosen.
enum Useless {
    Unhealthy,
    NoWeight,
    NoPort,
    NoAddress,
    Elsewhere,
    NotInSubset,
}

impl Found {
    fn count(&mut self, useless: Useless) {
        *match useless {
            Useless::Unhealthy => &mut self.unhealthy,
            Useless::NoWeight => &mut self.without_weight,
            Useless::NoPort => &mut self.without_port,
            Useless::NoAddress => &mut self.without_address,
            Useless::Elsewhere => &mut self.elsewhere,
            Useless::NotInSubset => &mut self.not_in_subset,
        } += 1;
    }
}

fn evaluate<'a>(
    request: &Request<'_>,
    endpoint: &'a Arc<Workload>,
) -> Result<(usize, Candidate<'a>), Useless> {
    let balancing = &request.service.load_balancing;
    if balancing.health_policy == HealthPolicy::OnlyHealthy && endpoint.health == Health::Unhealthy
    {
        return Err(Useless::Unhealthy);
    }
    if endpoint.capacity == 0 {
        return Err(Useless::NoWeight);
    }
    let target_port = target_port(request, endpoint).ok_or(Useless::NoPort)?;
    let reach = reach(request, endpoint).ok_or(Useless::NoAddress)?;
    let rank = rank(balancing, request.source, endpoint).ok_or(Useless::Elsewhere)?;
    Ok((
        rank,
        Candidate {
            endpoint,
            target_port,
            reach,
        },
    ))
}

/// The endpoint's own mapping of the service port, else the service's number. 0 stands for a named port, which this
/// endpoint then does not have.
fn target_port(request: &Request<'_>, endpoint: &Workload) -> Option<u16> {
    let own = endpoint
        .services
        .get(&request.service.key)
        .and_then(|ports| ports.get(&request.port))
        .copied();
    let of_service = || {
        request
            .service
            .ports
            .get(&request.port)
            .map(|port| port.target_port)
    };
    own.filter(|port| *port != 0)
        .or_else(of_service)
        .filter(|port| *port != 0)
}

fn reach(request: &Request<'_>, endpoint: &Workload) -> Option<Reach> {
    let dialled = request.dialled.ip().to_canonical();
    if endpoint.addresses.contains(&dialled) {
        return Some(Reach::Ip(dialled));
    }
    if let Some(ip) = Families::new(request.service.ip_families, dialled).pick(&endpoint.addresses)
    {
        return Some(Reach::Ip(ip));
    }
    if endpoint
        .hostname
        .as_ref()
        .is_some_and(|name| !name.is_empty())
    {
        return Some(Reach::Hostname);
    }
    let elsewhere =
        endpoint.network != request.source.network && endpoint.network_gateway.is_some();
    (elsewhere && endpoint.addresses.is_empty()).then_some(Reach::Gateway)
}

/// How near the endpoint is; higher is nearer. `None` if a STRICT preference rules it out.
fn rank(balancing: &LoadBalancing, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let scopes = &balancing.routing_preference;
    match balancing.mode {
        LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => Some(0),
        LoadBalancingMode::Strict => scopes
            .iter()
            .all(|scope| shares(*scope, source, endpoint))
            .then_some(scopes.len()),
        LoadBalancingMode::Failover => Some(failover_rank(scopes, source, endpoint)),
    }
}

/// Number of leading scopes in common. A first scope NETWORK is worth more than all others together; endpoints of
/// other networks skip it, so that their localities still order them.
fn failover_rank(scopes: &[Scope], source: &Workload, endpoint: &Workload) -> usize {
    let leading = |scopes: &[Scope]| {
        scopes
            .iter()
            .take_while(|scope| shares(**scope, source, endpoint))
            .count()
    };
    match scopes {
        [Scope::Network, rest @ ..] if shares(Scope::Network, source, endpoint) => {
            scopes.len() + leading(rest)
        }
        [Scope::Network, rest @ ..] => leading(rest),
        _ => leading(scopes),
    }
}

fn shares(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}
