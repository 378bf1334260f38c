//! From a Service to the model's service, and what an endpoint of it serves.

use std::sync::Arc;

use karst_k8s_api::istio::WorkloadEntrySpec;
use karst_model::{
    addr::Network,
    name::ServiceKey,
    service::{
        HealthPolicy, LoadBalancing, LoadBalancingMode, Naming, PortMap, Scope, Service,
        ServicePort, Vip, Visibility,
    },
};

use crate::{
    conditions::{Condition, ConditionType},
    config::IndexConfig,
    facts::{
        Name,
        pod::PodFacts,
        service::{ServiceFacts, Target},
    },
};

/// `<name>.<namespace>.svc.<cluster domain>`.
pub(crate) fn hostname(config: &IndexConfig, name: &Name) -> Arc<str> {
    format!(
        "{}.{}.svc.{}",
        name.name, name.namespace, config.cluster_domain
    )
    .into()
}

/// What surrounds a service and changes what it becomes.
pub(crate) struct Surroundings<'a> {
    pub(crate) key: ServiceKey,
    pub(crate) network: &'a Network,
    /// The namespace's annotation for trafficDistribution.
    pub(crate) traffic_distribution: Option<&'a str>,
}

pub(crate) fn compile(
    name: &Name,
    facts: &ServiceFacts,
    visibility: Visibility,
    around: &Surroundings<'_>,
) -> Service {
    let target = |target: &Target| match target {
        Target::Number(number) => *number,
        Target::Name(_) => 0,
    };
    let ports = facts.ports.iter().map(|port| {
        (
            port.number,
            ServicePort {
                target_port: target(&port.target),
                app_protocol: port.app_protocol,
            },
        )
    });
    Service {
        key: around.key.clone(),
        name: name.name.clone(),
        addresses: facts
            .vips
            .iter()
            .map(|ip| vip(around.network, *ip))
            .collect(),
        ports: ports.collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        waypoint_optional: false,
        load_balancing: load_balancing(facts, around.traffic_distribution),
        ip_families: facts.ip_families,
        canonical: true,
        ingress_use_waypoint: false,
        visibility,
        naming: Naming::default(),
    }
}

pub(crate) fn vip(network: &Network, ip: std::net::IpAddr) -> Vip {
    Vip {
        network: network.clone(),
        ip,
        prefix_len: None,
    }
}

fn load_balancing(facts: &ServiceFacts, of_namespace: Option<&str>) -> LoadBalancing {
    let wish = facts.traffic_distribution.as_deref().or(of_namespace);
    let (mode, routing_preference) = match distribution(wish) {
        // A demand; it beats every preference.
        _ if facts.node_local => (LoadBalancingMode::Strict, vec![Scope::Node]),
        Some(scopes) => (LoadBalancingMode::Failover, scopes.to_vec()),
        None => (LoadBalancingMode::Unspecified, Vec::new()),
    };
    LoadBalancing {
        routing_preference,
        mode,
        health_policy: if facts.publish_not_ready {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        },
        session_affinity: facts.session_affinity,
    }
}

/// Scopes of a trafficDistribution, or nothing for none and for those that nobody knows.
fn distribution(name: Option<&str>) -> Option<&'static [Scope]> {
    match name {
        Some("PreferClose" | "PreferSameZone") => {
            Some(&[Scope::Network, Scope::Region, Scope::Zone])
        }
        Some("PreferSameNode") => Some(&[
            Scope::Network,
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
        ]),
        _ => None,
    }
}

/// Who may see a service; nothing where nobody may.
pub(crate) fn visibility(export_to: &[String]) -> Option<Visibility> {
    let has = |wanted: &str| export_to.iter().any(|given| given == wanted);
    if export_to.is_empty() || has("*") {
        Some(Visibility::Public)
    } else if export_to.iter().all(|given| given == "~") {
        None
    } else {
        // A list of namespaces cannot be told to clients; fewer see it than could.
        Some(Visibility::Namespace)
    }
}

/// What of the visibility cannot be followed.
pub(crate) fn visibility_complaint(export_to: &[String], namespace: &str) -> Option<Condition> {
    let others = export_to
        .iter()
        .any(|given| !matches!(given.as_str(), "*" | "." | "~") && given != namespace);
    let public = export_to.iter().any(|given| given == "*");
    (others && !public).then(|| {
        let message = "exportTo of single namespaces is not supported: only the service's own namespace sees it";
        Condition::no(ConditionType::Accepted, "UnsupportedValue", message)
    })
}

pub(crate) fn conditions(name: &Name, facts: &ServiceFacts) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = visibility_complaint(&facts.export_to, &name.namespace)
        .into_iter()
        .collect();
    let mut no = |reason, message: String| {
        conditions.push(Condition::no(ConditionType::Accepted, reason, message))
    };
    if !facts.other_ports.is_empty() {
        let ports = facts
            .other_ports
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        no(
            "UnsupportedProtocol",
            format!("ports {ports} are not TCP: the mesh leaves them alone, unprotected"),
        );
    }
    if let Some(wish) = facts
        .traffic_distribution
        .as_deref()
        .filter(|wish| distribution(Some(wish)).is_none())
    {
        no(
            "UnsupportedValue",
            format!("traffic distribution {wish:?} is not known: endpoints are chosen without it"),
        );
    }
    if !facts.is_external_name && !facts.headless && facts.vips.is_empty() {
        no("NoAddress", "the service has no clusterIP yet: it is reached by the addresses of its endpoints only".to_owned());
    }
    conditions
}

/// Ports of a service at a pod that its selector picks. A named port that the pod lacks is left out.
pub(crate) fn ports_at_pod(facts: &ServiceFacts, pod: &PodFacts) -> PortMap {
    let at_pod = |target: &Target| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod.named_port(name),
    };
    facts
        .ports
        .iter()
        .filter_map(|port| Some((port.number, at_pod(&port.target)?)))
        .collect()
}

/// Ports of a service at a WorkloadEntry that its selector picks: what that calls by the port's name, else the target. A
/// named target that the WorkloadEntry lacks is left out.
pub(crate) fn ports_at_machine(facts: &ServiceFacts, machine: &WorkloadEntrySpec) -> PortMap {
    let named = |name: &str| machine.ports.get(name).copied();
    let target = |target: &Target| match target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => named(name),
    };
    facts
        .ports
        .iter()
        .filter_map(|port| {
            Some((
                port.number,
                named(&port.name).or_else(|| target(&port.target))?,
            ))
        })
        .collect()
}

/// Ports of a service at the endpoints of a slice, which names them as the service does.
pub(crate) fn ports_at_slice(facts: &ServiceFacts, slice_ports: &[(Box<str>, u16)]) -> PortMap {
    let at_slice = |name: &str| {
        slice_ports
            .iter()
            .find(|(known, _)| **known == *name)
            .map(|(_, port)| *port)
    };
    facts
        .ports
        .iter()
        .filter_map(|port| Some((port.number, at_slice(&port.name)?)))
        .collect()
}
