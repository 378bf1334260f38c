//! One port of a service: what it speaks, where its requests are routed, and its endpoints.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use karst_model::{protocol::AppProtocol, route::Route, service::Service, workload::Workload};
use karst_routing::{
    balance::{self, Mode, NoEndpoint},
    table::Table,
};
use rand::{Rng, RngExt as _};

use super::{Endpoint, EndpointKey, Endpoints};

/// One port, compiled.
pub(crate) struct Port {
    pub(crate) app_protocol: AppProtocol,
    pub(crate) table: Table,
    cluster: Result<Vec<Arc<Endpoint>>, NoEndpoint>,
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
            cluster: cluster(&request, endpoints, known),
        }
    }

    /// An endpoint for one request: the less loaded of two at random; not one of `avoid` where there is another.
    pub(crate) fn choose(&self, avoid: &[u64], rng: &mut impl Rng) -> Chosen {
        let all = self.cluster.as_ref().map_err(Clone::clone)?;
        Ok(pick(all, avoid, rng).clone())
    }

    /// Every endpoint that may be chosen, for people who look.
    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        self.cluster.as_deref().unwrap_or_default()
    }
}

/// The address whose family is preferred.
fn family(service: &Service, place: &Workload) -> IpAddr {
    let vip = service.addresses.first().map(|vip| vip.ip);
    vip.or_else(|| place.addresses.first().copied())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The endpoints of the port that may be chosen.
fn cluster(
    request: &balance::Request<'_>,
    endpoints: &[Arc<Workload>],
    known: &mut Endpoints,
) -> Result<Vec<Arc<Endpoint>>, NoEndpoint> {
    // Says why there is none.
    balance::choose(request, endpoints, &mut rand::rng())?;
    let usable = endpoints.iter().filter_map(|endpoint| {
        let one = std::slice::from_ref(endpoint);
        let choice = balance::choose(request, one, &mut rand::rng()).ok()?;
        let addr = SocketAddr::new(choice.ip()?, choice.target_port);
        let key = EndpointKey {
            workload: endpoint.uid.clone(),
            addr,
        };
        Some(known.get(endpoint, &request.service.subject_alt_names, key))
    });
    Ok(usable.collect())
}

fn pick<'a>(all: &'a [Arc<Endpoint>], avoid: &[u64], rng: &mut impl Rng) -> &'a Arc<Endpoint> {
    let mut draw = || &all[rng.random_range(0..all.len())];
    let (one, other) = (draw(), draw());
    let load = |endpoint: &Endpoint| (avoid.contains(&endpoint.id), endpoint.in_flight());
    if load(other) < load(one) { other } else { one }
}
