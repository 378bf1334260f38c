//! What the index keeps of a Service.

use std::net::IpAddr;

use karst_k8s_api::{
    k8s_openapi::{
        api::core::v1::{Service, ServicePort, ServiceSpec},
        apimachinery::pkg::util::intstr::IntOrString,
    },
    labels,
};
use karst_model::{
    addr::canonical_ip,
    protocol::AppProtocol,
    service::{IpFamilies, SessionAffinity},
};

use super::Created;
use crate::{seals::SealWish, selector::Labels};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where unset: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Debug, PartialEq)]
pub(crate) struct ServiceFacts {
    pub(crate) created: Created,
    pub(crate) labels: Labels,
    /// Empty: endpoints come from EndpointSlices alone.
    pub(crate) selector: Labels,
    pub(crate) ports: Vec<PortFacts>,
    /// Ports that are not TCP, which the mesh leaves alone.
    pub(crate) other_ports: Vec<i32>,
    pub(crate) vips: Vec<IpAddr>,
    pub(crate) headless: bool,
    /// Only an alias of another name, which the cluster's resolver follows.
    pub(crate) is_external_name: bool,
    pub(crate) publish_not_ready: bool,
    pub(crate) node_local: bool,
    /// From the field, else from the annotation.
    pub(crate) traffic_distribution: Option<String>,
    pub(crate) session_affinity: Option<SessionAffinity>,
    pub(crate) ip_families: IpFamilies,
    pub(crate) export_to: Vec<String>,
    pub(crate) seal: Option<SealWish>,
    /// Clients may do without its waypoint while no replica of that is ready.
    pub(crate) waypoint_optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortFacts {
    pub(crate) number: u16,
    pub(crate) name: Box<str>,
    pub(crate) target: Target,
    pub(crate) app_protocol: AppProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Number(u16),
    /// Each endpoint says what it stands for.
    Name(Box<str>),
}

impl ServiceFacts {
    pub(crate) fn new(service: Service) -> Self {
        let (meta, spec) = (service.metadata, service.spec.unwrap_or_default());
        let annotation = |name: &str| {
            meta.annotations
                .as_ref()
                .and_then(|all| all.get(name))
                .cloned()
        };
        let is_tcp = |port: &&ServicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let ports = spec.ports.as_deref().unwrap_or_default();
        let external = spec.type_.as_deref() == Some("ExternalName");
        Self {
            created: Created::of(&meta),
            ports: ports
                .iter()
                .filter(is_tcp)
                .filter_map(PortFacts::new)
                .collect(),
            other_ports: ports
                .iter()
                .filter(|port| !is_tcp(port))
                .map(|port| port.port)
                .collect(),
            vips: vips(&spec),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            is_external_name: external,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            traffic_distribution: spec
                .traffic_distribution
                .clone()
                .or_else(|| annotation(labels::TRAFFIC_DISTRIBUTION)),
            session_affinity: session_affinity(&spec),
            ip_families: ip_families(spec.ip_families.as_deref().unwrap_or_default()),
            export_to: export_to(annotation(labels::EXPORT_TO)),
            seal: SealWish::of(annotation(labels::SEAL).as_ref()),
            waypoint_optional: annotation(labels::WAYPOINT_REQUIRED).as_deref()
                == Some(labels::WAYPOINT_REQUIRED_WHEN_READY),
            // An ExternalName never has endpoints.
            selector: if external {
                Labels::new()
            } else {
                spec.selector.unwrap_or_default()
            },
            labels: meta.labels.unwrap_or_default(),
        }
    }

    /// Whether the other has the same waypoint and the same seal, as far as they are the service's own.
    pub(crate) fn attaches_as(&self, other: &Self) -> bool {
        self.labels == other.labels
            && self.seal == other.seal
            && self.waypoint_optional == other.waypoint_optional
    }

    /// Whether endpoints of the other would get other port maps, or be other ones.
    pub(crate) fn same_endpoints(&self, other: &Self) -> bool {
        self.selector == other.selector
            && self.ports == other.ports
            && self.is_external_name == other.is_external_name
            && self.export_to == other.export_to
    }
}

impl PortFacts {
    fn new(port: &ServicePort) -> Option<Self> {
        let number = u16::try_from(port.port).ok()?;
        let name = port.name.as_deref().unwrap_or_default();
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Target::Number(number),
            Some(IntOrString::Int(target)) => Target::Number(u16::try_from(*target).ok()?),
            Some(IntOrString::String(text)) => match text.parse() {
                Ok(target) => Target::Number(target),
                Err(_) => Target::Name(text.as_str().into()),
            },
        };
        Some(Self {
            number,
            name: name.into(),
            target,
            app_protocol: app_protocol(port.app_protocol.as_deref(), name),
        })
    }
}

/// What `appProtocol` says, else what the port's name starts with.
pub(crate) fn app_protocol(declared: Option<&str>, port_name: &str) -> AppProtocol {
    let from_name = || match port_name.split('-').collect::<Vec<_>>()[..] {
        // `grpc-web` is a protocol of its own, the only one with a dash.
        ["grpc", "web", ..] => "grpc-web",
        [first, ..] => first,
        [] => "",
    };
    let word = declared
        .filter(|word| !word.is_empty())
        .unwrap_or_else(from_name)
        .to_ascii_lowercase();
    match word.as_str() {
        "http" | "grpc-web" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "postgres" | "postgresql" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn vips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut vips: Vec<IpAddr> = Vec::new();
    for ip in all.filter_map(|ip| ip.parse().ok()).map(canonical_ip) {
        if !vips.contains(&ip) {
            vips.push(ip);
        }
    }
    vips
}

fn session_affinity(spec: &ServiceSpec) -> Option<SessionAffinity> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    let seconds = seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or(DEFAULT_AFFINITY_SECONDS);
    Some(SessionAffinity {
        idle_timeout_seconds: seconds,
    })
}

fn ip_families(families: &[String]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|given| given == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::V4Only,
        (false, true) => IpFamilies::V6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn export_to(annotation: Option<String>) -> Vec<String> {
    let text = annotation.unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}
