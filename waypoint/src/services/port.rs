//! One port of a service: what it speaks, where its requests are routed, and its endpoints.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    name::ServiceKey, protocol::AppProtocol, route::Route, service::Service, workload::Workload,
};
use karst_routing::{
    balance::{self, Algorithm, Candidates, Found, Mode, NoEndpoint},
    table::Table,
};
use rand::Rng;

use super::{Endpoint, EndpointKey, Endpoints};

/// One port, compiled.
pub(crate) struct Port {
    service: ServiceKey,
    number: u16,
    pub(crate) app_protocol: AppProtocol,
    pub(crate) table: Table,
    cluster: Result<Cluster, NoEndpoint>,
}

/// The outcome of a choice.
pub(crate) type Chosen = Result<Arc<Endpoint>, NoEndpoint>;

impl Port {
    pub(super) fn compile(
        service: &Arc<Service>,
        (number, app_protocol): (u16, AppProtocol),
        routes: &[Arc<Route>],
        (endpoints, place): (&[Arc<Workload>], &Workload),
        known: &mut Endpoints,
    ) -> Self {
        let request = balance::Request {
            service,
            port: number,
            dialled: SocketAddr::new(family(service, place), number),
            source: place,
            sticky: None,
            mode: Mode::Standard,
        };
        Self {
            app_protocol,
            table: Table::compile(&service.key, number, routes.iter().cloned()),
            cluster: Cluster::new(&request, endpoints, known),
            service: service.key.clone(),
            number,
        }
    }

    /// An endpoint for one request: the less loaded of two at random; not one of `avoid` where there is another.
    pub(crate) fn choose(&self, avoid: &[u64], rng: &mut impl Rng) -> Chosen {
        let cluster = self.cluster.as_ref().map_err(Clone::clone)?;
        cluster
            .choose(avoid, rng)
            .ok_or_else(|| NoEndpoint::NoneUsable {
                service: self.service.clone(),
                port: self.number,
                found: Found {
                    without_address: cluster.endpoints.len(),
                    ..Found::default()
                },
            })
    }

    /// Every endpoint that may be chosen, for people who look.
    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        self.cluster.as_ref().map_or(&[], |cluster| &cluster.all)
    }
}

/// The address whose family is preferred.
fn family(service: &Service, place: &Workload) -> IpAddr {
    let vip = service.addresses.first().map(|vip| vip.ip);
    vip.or_else(|| place.addresses.first().copied())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The endpoints of the port that may be chosen; for each choice what we know of it, in the same order.
struct Cluster {
    candidates: Candidates,
    /// `None`: its address is not known here.
    endpoints: Vec<Option<Arc<Endpoint>>>,
    all: Vec<Arc<Endpoint>>,
}

impl Cluster {
    fn new(
        request: &balance::Request<'_>,
        endpoints: &[Arc<Workload>],
        known: &mut Endpoints,
    ) -> Result<Self, NoEndpoint> {
        let candidates = Candidates::new(request, endpoints)?;
        let further = &request.service.subject_alt_names;
        let endpoints: Vec<_> = candidates
            .choices()
            .iter()
            .map(|choice| {
                let key = EndpointKey {
                    workload: choice.workload.uid.clone(),
                    addr: SocketAddr::new(choice.ip()?, choice.target_port),
                };
                Some(known.get(&choice.workload, further, key))
            })
            .collect();
        Ok(Self {
            all: endpoints.iter().flatten().cloned().collect(),
            candidates,
            endpoints,
        })
    }

    fn choose(&self, avoid: &[u64], rng: &mut impl Rng) -> Option<Arc<Endpoint>> {
        let at = |index: usize| self.endpoints.get(index).and_then(Option::as_ref);
        let useless = |index| at(index).is_none_or(|endpoint| avoid.contains(&endpoint.id));
        let load = |index| at(index).map_or(u64::MAX, |endpoint| endpoint.in_flight().into());
        let index = self
            .candidates
            .pick(Algorithm::LeastRequest, useless, load, rng)?;
        at(index).cloned()
    }
}
