//! A workload: one pod, VM or external endpoint, and how to reach it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    addr::{Network, NetworkAddr},
    identity::{SpiffeId, TrustDomain},
    locality::Locality,
    name::{PolicyKey, ServiceKey, WorkloadUid},
    protocol::TunnelProtocol,
    service::PortMap,
};

/// One endpoint of the mesh. Field meanings follow Istio's `istio.workload.Workload`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub trust_domain: TrustDomain,
    pub service_account: Arc<str>,
    /// May be empty when `hostname` is set.
    pub addresses: Vec<IpAddr>,
    pub network: Network,
    /// Resolved by DNS where there are no addresses.
    pub hostname: Option<Arc<str>>,
    pub tunnel: TunnelProtocol,
    /// The application itself speaks HBONE (a waypoint): its traffic is not redirected.
    pub native_tunnel: bool,
    /// How its node's agent hands over what came through HBONE, where not as plain TCP.
    pub application_tunnel: Option<ApplicationTunnel>,
    pub waypoint: Option<GatewayAddr>,
    /// Its ports that accept a waypoint only, in order.
    pub sealed: Vec<SealedPort>,
    pub network_gateway: Option<GatewayAddr>,
    pub node: Arc<str>,
    pub locality: Locality,
    pub host_network: bool,
    pub health: Health,
    /// Weight in load balancing; 1 where unset.
    pub capacity: u32,
    /// Services that this workload is an endpoint of, with the ports it serves there.
    pub services: BTreeMap<ServiceKey, PortMap>,
    /// Selector policies that apply, beside those of its namespace and of the mesh.
    pub policies: Vec<PolicyKey>,
    pub workload_type: WorkloadType,
    /// Name of the owning controller, for telemetry.
    pub workload_name: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub cluster_id: Arc<str>,
    /// Those of its labels whose keys some rule refers to (subsets, sourceLabels, failover priorities, telemetry), in
    /// the order of their keys. Others are not told.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
}

impl Workload {
    /// A workload with this key and everything else at its default; builders and tests start from it.
    pub fn new(uid: &str) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            uid: uid.into(),
            name: empty.clone(),
            namespace: empty.clone(),
            trust_domain: TrustDomain::default(),
            service_account: "default".into(),
            addresses: Vec::new(),
            network: Network::default(),
            hostname: None,
            tunnel: TunnelProtocol::None,
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            sealed: Vec::new(),
            network_gateway: None,
            node: empty.clone(),
            locality: Locality::default(),
            host_network: false,
            health: Health::Healthy,
            capacity: 1,
            services: BTreeMap::new(),
            policies: Vec::new(),
            workload_type: WorkloadType::Pod,
            workload_name: empty.clone(),
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            cluster_id: empty,
            labels: Arc::default(),
        }
    }

    /// The value of a label that some rule refers to.
    pub fn label(&self, key: &str) -> Option<&Arc<str>> {
        let found = self.labels.iter().find(|(known, _)| &**known == key);
        found.map(|(_, value)| value)
    }

    /// The identity that its certificate carries.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }
}

/// A port of a workload that accepts one waypoint only, since requests to it are decided there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SealedPort {
    pub port: u16,
    /// `None`: no waypoint is bound, so nobody is let in.
    pub waypoint: Option<GatewayAddr>,
}

/// What an application wants to be told of the connections that its node's agent ends for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ApplicationTunnel {
    /// The PROXY protocol, version 2.
    Proxy {
        /// Where all of them go; to the port that was asked for where unset.
        port: Option<u16>,
    },
}

/// Whether an endpoint should get traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    #[default]
    Healthy,
    /// Not ready or terminating: kept, so that it can still be identified, but not chosen.
    Unhealthy,
}

/// Kind of object that owns the workload, for telemetry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkloadType {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// Where a waypoint or a network gateway is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatewayAddr {
    pub destination: GatewayDestination,
    pub hbone_port: u16,
}

/// A gateway is named either by its service or by its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GatewayDestination {
    Service(ServiceKey),
    Address(NetworkAddr),
}
