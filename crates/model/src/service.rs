//! A service: a name, its virtual addresses and how one of its endpoints is chosen.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{addr::Network, name::ServiceKey, protocol::AppProtocol, workload::GatewayAddr};

/// Service port to target port at one endpoint.
pub type PortMap = BTreeMap<u16, u16>;

/// A service, as Istio's `istio.workload.Service` describes it, with what Kubernetes knows and Istio leaves out
/// (`session_affinity`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub key: ServiceKey,
    /// Name of the object, without the domain.
    pub name: Arc<str>,
    /// Virtual addresses; empty for a headless service.
    pub addresses: Vec<Vip>,
    pub ports: BTreeMap<u16, ServicePort>,
    /// Further identities that endpoints may have (SPIFFE URIs).
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<GatewayAddr>,
    /// While no replica of the waypoint is ready, the service is reached without it. Never where the service is sealed.
    pub waypoint_optional: bool,
    pub load_balancing: LoadBalancing,
    pub ip_families: IpFamilies,
    /// Wins among services of the same hostname or address.
    pub canonical: bool,
    pub ingress_use_waypoint: bool,
    pub visibility: Visibility,
    pub naming: Naming,
}

impl Service {
    /// A service with this key and everything else at its default; builders and tests start from it.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self {
            key: ServiceKey {
                namespace: namespace.into(),
                hostname: hostname.into(),
            },
            name: hostname.split('.').next().unwrap_or_default().into(),
            addresses: Vec::new(),
            ports: BTreeMap::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            waypoint_optional: false,
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: true,
            ingress_use_waypoint: false,
            visibility: Visibility::Public,
            naming: Naming::default(),
        }
    }
}

/// A virtual address, or a range of them (ServiceEntry with a CIDR).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vip {
    pub network: Network,
    pub ip: IpAddr,
    /// Prefix length where the address is a range.
    pub prefix_len: Option<u8>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// 0 means a named port: each endpoint says what it stands for.
    pub target_port: u16,
    pub app_protocol: AppProtocol,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancing {
    /// Scopes from the first that must match to the last.
    pub routing_preference: Vec<Scope>,
    pub mode: LoadBalancingMode,
    pub health_policy: HealthPolicy,
    pub session_affinity: Option<SessionAffinity>,
}

/// What two workloads can have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What the routing preference means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LoadBalancingMode {
    /// No preference.
    #[default]
    Unspecified,
    /// Only endpoints that match every scope.
    Strict,
    /// Endpoints with the longest matching prefix of scopes.
    Failover,
    /// No choice: the dialled address is connected.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    /// `publishNotReadyAddresses`.
    AllowAll,
}

/// `sessionAffinity: ClientIP`: a client stays with its endpoint until it was idle for this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionAffinity {
    pub idle_timeout_seconds: u32,
}

/// What the host names of endpoints that have no address stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Naming {
    /// Every address of a name is an endpoint (`DNS`).
    #[default]
    Every,
    /// One address of a name at a time; connections that are open stay when the answer changes (`DNS_ROUND_ROBIN`).
    One,
    /// There are no endpoints: the host that a client asks for is resolved (`DYNAMIC_DNS`, and wildcard hosts without
    /// endpoints).
    Asked,
}

/// Address families of endpoints that clients may be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    #[default]
    Automatic,
    V4Only,
    V6Only,
    Dual,
}

/// Who may use a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    #[default]
    Public,
    /// Only clients of the service's own namespace.
    Namespace,
}
