//! What the agent knows of the mesh: cheap lookups from any thread, and word of every change.
//!
//! One writer (the client) applies the updates of a response under one lock and only then tells the subscribers, so
//! that whoever wakes up reads the new state. Readers take `Arc`s out and hold no lock.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, RwLock, RwLockReadGuard},
    time::Duration,
};

use hashbrown::HashSet;
use karst_model::{
    addr::{Network, NetworkAddr},
    enrollment::NodeWorkload,
    identity::TrustDomains,
    name::{PodUid, PolicyKey, ServiceKey, WorkloadUid},
    policy::Authorization,
    rate_limit::RateLimit,
    route::Route,
    service::{Service, Vip},
    telemetry::Telemetry,
    token::RequestAuthentication,
    traffic::ServiceTraffic,
    waypoint_policy::WaypointPolicy,
    workload::{Health, Workload},
};
use karst_proto::convert;
use tokio::sync::{broadcast, watch};

use crate::{
    index::{Counts, Index, PoliciesFor},
    update::{Kind, Update},
};

/// Batches of changes that a subscriber may fall behind before it is told to look at everything.
const CHANGE_BACKLOG: usize = 256;

/// Something that is different now: look it up again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    Workload(WorkloadUid),
    Service(ServiceKey),
    /// An endpoint of this service came, went or changed.
    Endpoints(ServiceKey),
    Policy(PolicyKey),
    NodeWorkload(PodUid),
    /// Who stands behind this address; see [`State::knows_address`].
    Address(NetworkAddr),
    /// Which services stand behind this range of addresses.
    Range(Vip),
    /// The routes that are attached to this service.
    Routes(ServiceKey),
    WaypointPolicy(PolicyKey),
    /// What holds for the traffic of this service beyond its routes.
    Traffic(ServiceKey),
    RequestAuthentication(PolicyKey),
    RateLimit(PolicyKey),
    /// What is to be recorded.
    Telemetry,
    /// The names of the mesh's trust domain.
    TrustDomains,
}

impl Change {
    pub(crate) fn of_vip(vip: &Vip) -> Self {
        match vip.prefix_len {
            None => Self::Address(NetworkAddr::new(vip.network.clone(), vip.ip)),
            Some(_) => Self::Range(vip.clone()),
        }
    }
}

/// What [`Changes::next`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These, each once, in no order.
    Some(Arc<[Change]>),
    /// The subscriber fell behind: anything may be different.
    Everything,
}

/// A subscription to changes.
pub struct Changes(broadcast::Receiver<Arc<[Change]>>);

impl Changes {
    /// The changes of the next batch; `None` when the state is gone.
    pub async fn next(&mut self) -> Option<Changed> {
        match self.0.recv().await {
            Ok(changes) => Some(Changed::Some(changes)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Changed::Everything),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Where the state comes from; see [`State::origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nothing is known: unknown addresses must not be taken for destinations outside the mesh.
    Empty,
    /// The last known state of an earlier run.
    Disk,
    /// A controller has answered for every kind of resource.
    Controller,
}

/// The store. Share it in an `Arc`.
pub struct State {
    index: RwLock<Index>,
    changes: broadcast::Sender<Arc<[Change]>>,
    origin: watch::Sender<Origin>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            index: RwLock::default(),
            changes: broadcast::Sender::new(CHANGE_BACKLOG),
            origin: watch::Sender::new(Origin::Empty),
        }
    }
}

impl State {
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies updates in order, then tells subscribers.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) {
        let mut changes = HashSet::new();
        {
            let mut index = self
                .index
                .write()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            for update in updates {
                index.apply(update, &mut changes);
            }
        }
        if !changes.is_empty() {
            // An error only means that nobody listens.
            let _ = self.changes.send(changes.into_iter().collect());
        }
    }

    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.read().workloads.get(uid).cloned()
    }

    /// The workload at an address; never a host-network pod.
    pub fn workload_at(&self, addr: &NetworkAddr) -> Option<Arc<Workload>> {
        self.read().workloads.at(addr).cloned()
    }

    /// A workload that is known by name and not by address.
    pub fn workload_by_hostname(&self, hostname: &str) -> Option<Arc<Workload>> {
        self.read().workloads.by_hostname(hostname).cloned()
    }

    pub fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.read().services.get(key).cloned()
    }

    /// The service at a virtual address, or at the best range around it, as `client_namespace` sees it.
    pub fn service_at(&self, addr: &NetworkAddr, client_namespace: &str) -> Option<Arc<Service>> {
        self.read().services.at(addr, client_namespace).cloned()
    }

    /// The service of a hostname as `client_namespace` sees it.
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<Arc<Service>> {
        self.read()
            .services
            .by_host(hostname, client_namespace)
            .cloned()
    }

    /// All endpoints of a service, healthy or not, ordered by uid.
    pub fn endpoints(&self, key: &ServiceKey) -> Arc<[Arc<Workload>]> {
        self.read().endpoints.list(key)
    }

    pub fn policy(&self, key: &PolicyKey) -> Option<Arc<Authorization>> {
        self.read().policies.get(key).cloned()
    }

    /// The policies that apply to a workload, and those that it names and that are not here.
    pub fn policies_for(&self, workload: &Workload) -> PoliciesFor {
        self.read().policies.for_workload(workload)
    }

    pub fn node_workload(&self, uid: &PodUid) -> Option<Arc<NodeWorkload>> {
        self.read().node_workloads.get(uid).cloned()
    }

    /// The pods of this node.
    pub fn node_workloads(&self) -> Vec<Arc<NodeWorkload>> {
        self.read().node_workloads.values().cloned().collect()
    }

    /// Whether a workload or a service has exactly this address.
    pub fn knows_address(&self, addr: &NetworkAddr) -> bool {
        let index = self.read();
        index.workloads.has_address(addr) || index.services.has_address(addr)
    }

    /// Every address of a workload or a service in `network`.
    pub fn addresses(&self, network: &Network) -> Vec<IpAddr> {
        let index = self.read();
        let all = index
            .workloads
            .addresses()
            .chain(index.services.addresses());
        let mut found: Vec<_> = all
            .filter(|addr| addr.network == *network)
            .map(|addr| addr.ip)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.read().workloads.iter().cloned().collect()
    }

    pub fn services(&self) -> Vec<Arc<Service>> {
        self.read().services.iter().cloned().collect()
    }

    pub fn policies(&self) -> Vec<Arc<Authorization>> {
        self.read().policies.iter().cloned().collect()
    }

    /// The routes that are attached to a service, in the order of their keys (which is not that of precedence).
    pub fn routes_of(&self, service: &ServiceKey) -> Vec<Arc<Route>> {
        self.read().routes.of_service(service)
    }

    pub fn routes(&self) -> Vec<Arc<Route>> {
        self.read().routes.iter().cloned().collect()
    }

    /// Every request policy, in the order of their keys: the controller sends a waypoint only those that concern it.
    pub fn waypoint_policies(&self) -> Vec<Arc<WaypointPolicy>> {
        self.read().waypoint_policies.iter().cloned().collect()
    }

    /// Where a service's port is served now: its healthy endpoints, each with the port that stands for it there.
    pub fn sockets(&self, service: &ServiceKey, port: u16) -> Vec<SocketAddr> {
        let endpoints = self.endpoints(service);
        let serving = endpoints.iter().filter(|one| one.health == Health::Healthy);
        let sockets = serving.filter_map(|one| {
            let target = one.services.get(service)?.get(&port)?;
            Some(SocketAddr::new(*one.addresses.first()?, *target))
        });
        sockets.collect()
    }

    /// What is to be recorded and where it goes, in the order of the names.
    pub fn telemetries(&self) -> Vec<Arc<Telemetry>> {
        self.read().telemetries.iter().cloned().collect()
    }

    /// The names of the mesh's trust domain, where a controller has said them.
    pub fn trust_domains(&self) -> Option<Arc<TrustDomains>> {
        self.read().trust_domains.clone()
    }

    /// Every RequestAuthentication, in the order of their keys: the controller sends a waypoint only those that concern it.
    pub fn request_authentications(&self) -> Vec<Arc<RequestAuthentication>> {
        self.read()
            .request_authentications
            .iter()
            .cloned()
            .collect()
    }

    /// What holds for the traffic of a service beyond its routes.
    pub fn traffic_of(&self, service: &ServiceKey) -> Option<Arc<ServiceTraffic>> {
        self.read().traffic.get(service).cloned()
    }

    pub fn traffic(&self) -> Vec<Arc<ServiceTraffic>> {
        self.read().traffic.iter().cloned().collect()
    }

    /// Every rate limit, in the order of their keys: the controller sends a waypoint only those that concern it.
    pub fn rate_limits(&self) -> Vec<Arc<RateLimit>> {
        self.read().rate_limits.iter().cloned().collect()
    }

    pub fn counts(&self) -> Counts {
        self.read().counts()
    }

    /// A subscription to everything that changes from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    /// The workload, waiting for discovery to bring it, at most for `patience`.
    pub async fn wait_for_workload(
        &self,
        uid: &WorkloadUid,
        patience: Duration,
    ) -> Option<Arc<Workload>> {
        let mut changes = self.changes();
        let arrival = async {
            loop {
                if let Some(found) = self.workload(uid) {
                    return Some(found);
                }
                changes.next().await?;
            }
        };
        tokio::time::timeout(patience, arrival)
            .await
            .unwrap_or(None)
    }

    /// Where what is here comes from. The data plane starts at [`Origin::Disk`] or later.
    pub fn origin(&self) -> watch::Receiver<Origin> {
        self.origin.subscribe()
    }

    /// Raises the origin; it never falls.
    pub fn raise_origin(&self, origin: Origin) {
        self.origin.send_if_modified(|current| {
            let raised = origin > *current;
            *current = origin.max(*current);
            raised
        });
    }

    /// The names of all resources of a kind, as the wire knows them.
    pub(crate) fn names(&self, kind: Kind) -> Vec<Arc<str>> {
        let index = self.read();
        match kind {
            Kind::Address => {
                let services = index.services.iter().map(|s| s.key.to_string().into());
                index
                    .workloads
                    .iter()
                    .map(|w| w.uid.0.clone())
                    .chain(services)
                    .collect()
            }
            Kind::Authorization => index
                .policies
                .iter()
                .map(|p| p.key.to_string().into())
                .collect(),
            Kind::NodeWorkload => index
                .node_workloads
                .keys()
                .map(|uid| uid.0.clone())
                .collect(),
            Kind::Route => index
                .routes
                .iter()
                .map(|route| route.key.to_string().into())
                .collect(),
            Kind::ServiceTraffic => index
                .traffic
                .iter()
                .map(|traffic| traffic.service.to_string().into())
                .collect(),
            Kind::WaypointPolicy => index
                .waypoint_policies
                .iter()
                .map(|policy| policy.key.to_string().into())
                .collect(),
            Kind::Telemetry => index.telemetries.iter().map(|one| one.name()).collect(),
            Kind::TrustDomains => index
                .trust_domains
                .iter()
                .map(|_| convert::TRUST_DOMAINS_NAME.into())
                .collect(),
            Kind::RateLimit => index
                .rate_limits
                .iter()
                .map(|limit| limit.key.to_string().into())
                .collect(),
            Kind::RequestAuthentication => index
                .request_authentications
                .iter()
                .map(|one| one.key.to_string().into())
                .collect(),
        }
    }

    /// No writer panics half way through an update that readers depend on, so a poisoned lock is still good.
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
