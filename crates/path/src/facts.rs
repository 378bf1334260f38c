//! What is known of a mesh, as its agents and its waypoints know it: the same store that they decide from, filled from
//! what the controller would send them.

use std::{collections::BTreeMap, sync::Arc};

use karst_discovery::{State, Update};
use karst_model::{
    addr::{Network, NetworkAddr},
    enrollment::NodeWorkload,
    name::{GatewayKey, WorkloadUid},
    workload::{GatewayAddr, GatewayDestination, Workload},
};

/// A mesh at one moment.
pub struct Facts {
    /// What every agent and every waypoint knows.
    pub(crate) mesh: State,
    /// What is for one waypoint: its routes, policies and traffic rules.
    waypoints: BTreeMap<GatewayKey, State>,
    none: State,
    /// Proxies in front of a waypoint whose entries in `x-forwarded-for` it believes, where there are any.
    trusted_proxies: BTreeMap<GatewayKey, usize>,
    /// Domain of service names.
    pub(crate) cluster_domain: Arc<str>,
    pub(crate) network: Network,
    pods: BTreeMap<WorkloadUid, Arc<NodeWorkload>>,
}

impl Facts {
    /// Nothing is known yet.
    pub fn new(cluster_domain: &str) -> Self {
        Self {
            mesh: State::new(),
            waypoints: BTreeMap::new(),
            none: State::new(),
            trusted_proxies: BTreeMap::new(),
            cluster_domain: cluster_domain.into(),
            network: Network::default(),
            pods: BTreeMap::new(),
        }
    }

    /// Adds what agents and waypoints alike are told, and what nodes are told of their pods.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) {
        let updates = updates.into_iter().inspect(|update| {
            if let Update::NodeWorkload(pod) = update {
                self.pods.insert(pod.workload_uid.clone(), pod.clone());
            }
        });
        self.mesh.apply(updates);
    }

    /// Adds what one waypoint is told.
    pub fn apply_to(&mut self, waypoint: &GatewayKey, updates: impl IntoIterator<Item = Update>) {
        let state = self.waypoints.entry(waypoint.clone()).or_default();
        state.apply(updates);
    }

    /// How many proxies in front of it a waypoint is told to believe.
    pub fn trust_proxies(&mut self, waypoint: &GatewayKey, count: usize) {
        self.trusted_proxies.insert(waypoint.clone(), count);
    }

    /// How many proxies in front of it a waypoint believes.
    pub(crate) fn trusted_proxies(&self, waypoint: &GatewayKey) -> usize {
        self.trusted_proxies.get(waypoint).copied().unwrap_or(0)
    }

    /// What all agents and waypoints know.
    pub fn mesh(&self) -> &State {
        &self.mesh
    }

    /// What only this waypoint knows.
    pub(crate) fn of_waypoint(&self, waypoint: &GatewayKey) -> &State {
        self.waypoints.get(waypoint).unwrap_or(&self.none)
    }

    /// Every waypoint and what only it knows.
    pub(crate) fn waypoints(&self) -> impl Iterator<Item = (&GatewayKey, &State)> {
        self.waypoints.iter()
    }

    /// What the node of a pod is told about it.
    pub(crate) fn pod(&self, workload: &Workload) -> Option<&Arc<NodeWorkload>> {
        self.pods.get(&workload.uid)
    }

    /// The Gateway that a waypoint's address stands for: it has the name of the waypoint's service.
    pub(crate) fn gateway(&self, waypoint: &GatewayAddr) -> Option<GatewayKey> {
        let service = match &waypoint.destination {
            GatewayDestination::Service(key) => self.mesh.service(key),
            GatewayDestination::Address(addr) => self.mesh.service_at(addr, ""),
        }?;
        Some(GatewayKey {
            namespace: service.key.namespace.clone(),
            name: service.name.clone(),
        })
    }

    pub(crate) fn addr(&self, ip: std::net::IpAddr) -> NetworkAddr {
        NetworkAddr::new(self.network.clone(), ip)
    }
}
