//! One port of a service: what it speaks, where its requests are routed, and its endpoints.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hashbrown::HashMap;
use karst_model::{
    protocol::AppProtocol,
    route::Route,
    service::Service,
    traffic::{ServiceTraffic, TrafficPolicy},
    workload::Workload,
};
use karst_routing::{
    balance::{self, Mode, NoEndpoint},
    table::Table,
};

use super::{Endpoints, cluster::Cluster};

/// One port, compiled.
pub(crate) struct Port {
    pub(crate) app_protocol: AppProtocol,
    pub(crate) table: Table,
    whole: Compiled,
    subsets: HashMap<Arc<str>, Compiled>,
}

/// `Err`: no endpoint can be chosen.
type Compiled = Result<Arc<Cluster>, NoEndpoint>;

/// Why there is no endpoint for a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoMember {
    #[error("the service has no subset {0}")]
    NoSubset(Arc<str>),
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
}

/// Where something about a service comes from.
pub(super) struct Sources<'a> {
    pub(super) service: &'a Arc<Service>,
    pub(super) routes: &'a [Arc<Route>],
    pub(super) endpoints: &'a [Arc<Workload>],
    pub(super) traffic: Option<&'a ServiceTraffic>,
    /// Where this waypoint runs.
    pub(super) place: &'a Workload,
}

impl Port {
    pub(super) fn compile(
        sources: &Sources<'_>,
        (number, app_protocol): (u16, AppProtocol),
        known: &mut Endpoints,
    ) -> Self {
        let service = sources.service;
        let request = balance::Request {
            service,
            port: number,
            dialled: SocketAddr::new(family(service, sources.place), number),
            source: sources.place,
            sticky: None,
            mode: Mode::Standard,
        };
        let mut cluster = |subset: Option<&karst_model::traffic::Subset>| {
            let name = subset.map(|subset| &*subset.name);
            let policy = sources
                .traffic
                .and_then(|traffic| traffic.policy(number, name));
            let policy: Arc<TrafficPolicy> = policy.cloned().map(Arc::new).unwrap_or_default();
            Cluster::compile(&request, sources.endpoints, (&policy, subset), known).map(Arc::new)
        };
        let whole = cluster(None);
        let subsets = sources.traffic.map_or(&[][..], |traffic| &traffic.subsets);
        Self {
            app_protocol,
            table: Table::compile(&service.key, number, sources.routes.iter().cloned()),
            whole,
            subsets: subsets
                .iter()
                .map(|subset| (subset.name.clone(), cluster(Some(subset))))
                .collect(),
        }
    }

    /// The endpoints of the port, or of a subset.
    pub(crate) fn cluster(&self, subset: Option<&Arc<str>>) -> Result<&Arc<Cluster>, NoMember> {
        let compiled = match subset {
            None => &self.whole,
            Some(name) => self
                .subsets
                .get(name)
                .ok_or_else(|| NoMember::NoSubset(name.clone()))?,
        };
        compiled.as_ref().map_err(|error| error.clone().into())
    }

    /// The sets of endpoints of the port, for people who look.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let all = std::iter::once(&self.whole).chain(self.subsets.values());
        all.filter_map(|compiled| compiled.as_ref().ok())
    }
}

/// The address whose family is preferred.
fn family(service: &Service, place: &Workload) -> IpAddr {
    let vip = service.addresses.first().map(|vip| vip.ip);
    vip.or_else(|| place.addresses.first().copied())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
