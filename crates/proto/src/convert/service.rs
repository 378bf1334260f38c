//! `istio.workload.Service`, and `karst.v1.ServiceExtension` inside it.

use karst_model::{
    addr::{Network, NetworkAddr},
    name::ServiceKey,
    service::{
        HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Naming, Scope, Service,
        ServicePort, SessionAffinity, Vip, Visibility,
    },
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    address::{
        app_protocol_from, app_protocol_to, gateway_from, gateway_to, ip_from, ip_to, max_prefix,
        port_from,
    },
    error::decode,
    workload::indexed,
};
use crate::{karst, type_url, workload as wire};

/// Name of our extension of a service.
const EXTENSION: &str = "karst.v1.ServiceExtension";

pub(super) fn service_from(
    s: wire::Service,
    interner: &mut Interner,
) -> Result<Service, ConvertError> {
    if s.hostname.is_empty() {
        return Err(Problem::Missing.at("hostname"));
    }
    let mut load_balancing = load_balancing_from(s.load_balancing.unwrap_or_default())?;
    let extension = extension_from(&s.extensions)?;
    load_balancing.session_affinity = extension.session_affinity.map(|a| SessionAffinity {
        idle_timeout_seconds: a.idle_timeout_seconds,
    });
    Ok(Service {
        name: s.name.as_str().into(),
        addresses: indexed("addresses", &s.addresses, |addr| vip_from(addr, interner))?,
        ports: indexed("ports", &s.ports, port_pair)?.into_iter().collect(),
        subject_alt_names: s
            .subject_alt_names
            .iter()
            .map(|name| interner.get(name))
            .collect(),
        waypoint: waypoint_from(s.waypoint, s.weighted_waypoints, interner)?,
        load_balancing,
        ip_families: ip_families_from(s.ip_families)?,
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        visibility: visibility_from(s.visibility)?,
        waypoint_optional: extension.waypoint_optional,
        naming: naming_from(extension.naming)?,
        key: ServiceKey {
            namespace: interner.get(&s.namespace),
            hostname: interner.get(&s.hostname),
        },
    })
}

/// The resource of a service.
pub fn service_to(s: &Service) -> wire::Address {
    let message = wire::Service {
        name: s.name.to_string(),
        namespace: s.key.namespace.to_string(),
        hostname: s.key.hostname.to_string(),
        addresses: s.addresses.iter().map(vip_to).collect(),
        ports: s
            .ports
            .iter()
            .map(|(port, target)| port_to(*port, target))
            .collect(),
        subject_alt_names: s
            .subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect(),
        waypoint: s.waypoint.as_ref().map(gateway_to),
        load_balancing: load_balancing_to(&s.load_balancing),
        ip_families: ip_families_to(s.ip_families).into(),
        extensions: extension_to(s).into_iter().collect(),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: Vec::new(),
        visibility: match s.visibility {
            Visibility::Public => wire::service::Visibility::Public,
            Visibility::Namespace => wire::service::Visibility::Namespace,
        }
        .into(),
    };
    wire::Address {
        r#type: Some(wire::address::Type::Service(message)),
    }
}

/// `<network>/<ip>`, or `<network>/<ip>/<len>` for a range, of each virtual address.
pub fn service_aliases(s: &Service) -> Vec<String> {
    let alias = |vip: &Vip| {
        let addr = NetworkAddr::new(vip.network.clone(), vip.ip);
        vip.prefix_len
            .map_or_else(|| addr.to_string(), |len| format!("{addr}/{len}"))
    };
    s.addresses.iter().map(alias).collect()
}

fn vip_from(addr: &wire::NetworkAddress, interner: &mut Interner) -> Result<Vip, Problem> {
    let ip = ip_from(&addr.address)?;
    let max = max_prefix(ip);
    let prefix_len = match addr.length {
        None => None,
        Some(len) => Some(
            u8::try_from(len)
                .ok()
                .filter(|l| *l <= max)
                .ok_or(Problem::PrefixLength { len, max })?,
        ),
    };
    Ok(Vip {
        network: Network(interner.get(&addr.network)),
        ip,
        prefix_len,
    })
}

fn vip_to(vip: &Vip) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: vip.network.0.to_string(),
        address: ip_to(vip.ip),
        length: vip.prefix_len.map(u32::from),
    }
}

fn port_pair(port: &wire::Port) -> Result<(u16, ServicePort), Problem> {
    let target = ServicePort {
        target_port: port_from(port.target_port)?,
        app_protocol: app_protocol_from(port.app_protocol),
    };
    Ok((port_from(port.service_port)?, target))
}

fn port_to(port: u16, target: &ServicePort) -> wire::Port {
    wire::Port {
        service_port: port.into(),
        target_port: target.target_port.into(),
        app_protocol: app_protocol_to(target.app_protocol).into(),
    }
}

/// Weighted waypoints override the plain one. A share cannot be expressed in the model, so the heaviest gets all: the
/// service stays behind a waypoint of its own.
fn waypoint_from(
    plain: Option<wire::GatewayAddress>,
    weighted: Vec<wire::WeightedWaypoint>,
    interner: &mut Interner,
) -> Result<Option<karst_model::workload::GatewayAddr>, ConvertError> {
    let heaviest = weighted.into_iter().rev().max_by_key(|w| w.weight);
    match heaviest {
        Some(waypoint) => {
            let destination = waypoint.destination.ok_or(Problem::Missing);
            let destination = destination.map_err(|p| p.at("weighted_waypoints.destination"))?;
            gateway_from("weighted_waypoints.destination", destination, interner).map(Some)
        }
        None => plain
            .map(|g| gateway_from("waypoint", g, interner))
            .transpose(),
    }
}

fn load_balancing_from(lb: wire::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use wire::load_balancing as w;
    let mode = match w::Mode::try_from(lb.mode) {
        Ok(w::Mode::UnspecifiedMode) => LoadBalancingMode::Unspecified,
        Ok(w::Mode::Strict) => LoadBalancingMode::Strict,
        Ok(w::Mode::Failover) => LoadBalancingMode::Failover,
        Ok(w::Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(Problem::UnknownValue(lb.mode).at("load_balancing.mode")),
    };
    let health_policy = match w::HealthPolicy::try_from(lb.health_policy) {
        Ok(w::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(w::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => {
            return Err(Problem::UnknownValue(lb.health_policy).at("load_balancing.health_policy"));
        }
    };
    let routing_preference = indexed(
        "load_balancing.routing_preference",
        &lb.routing_preference,
        |scope| scope_from(*scope),
    )?;
    Ok(LoadBalancing {
        routing_preference,
        mode,
        health_policy,
        session_affinity: None,
    })
}

fn load_balancing_to(lb: &LoadBalancing) -> Option<wire::LoadBalancing> {
    use wire::load_balancing as w;
    let mode = match lb.mode {
        LoadBalancingMode::Unspecified => w::Mode::UnspecifiedMode,
        LoadBalancingMode::Strict => w::Mode::Strict,
        LoadBalancingMode::Failover => w::Mode::Failover,
        LoadBalancingMode::Passthrough => w::Mode::Passthrough,
    };
    let health_policy = match lb.health_policy {
        HealthPolicy::OnlyHealthy => w::HealthPolicy::OnlyHealthy,
        HealthPolicy::AllowAll => w::HealthPolicy::AllowAll,
    };
    let message = wire::LoadBalancing {
        routing_preference: lb
            .routing_preference
            .iter()
            .map(|scope| scope_to(*scope).into())
            .collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    };
    (message != wire::LoadBalancing::default()).then_some(message)
}

fn scope_from(value: i32) -> Result<Scope, Problem> {
    use wire::load_balancing::Scope as W;
    match W::try_from(value) {
        Ok(W::Region) => Ok(Scope::Region),
        Ok(W::Zone) => Ok(Scope::Zone),
        Ok(W::Subzone) => Ok(Scope::Subzone),
        Ok(W::Node) => Ok(Scope::Node),
        Ok(W::Cluster) => Ok(Scope::Cluster),
        Ok(W::Network) => Ok(Scope::Network),
        Ok(W::UnspecifiedScope) | Err(_) => Err(Problem::UnknownValue(value)),
    }
}

fn scope_to(scope: Scope) -> wire::load_balancing::Scope {
    use wire::load_balancing::Scope as W;
    match scope {
        Scope::Region => W::Region,
        Scope::Zone => W::Zone,
        Scope::Subzone => W::Subzone,
        Scope::Node => W::Node,
        Scope::Cluster => W::Cluster,
        Scope::Network => W::Network,
    }
}

fn ip_families_from(value: i32) -> Result<IpFamilies, ConvertError> {
    match wire::IpFamilies::try_from(value) {
        Ok(wire::IpFamilies::Automatic) => Ok(IpFamilies::Automatic),
        Ok(wire::IpFamilies::Ipv4Only) => Ok(IpFamilies::V4Only),
        Ok(wire::IpFamilies::Ipv6Only) => Ok(IpFamilies::V6Only),
        Ok(wire::IpFamilies::Dual) => Ok(IpFamilies::Dual),
        Err(_) => Err(Problem::UnknownValue(value).at("ip_families")),
    }
}

fn ip_families_to(families: IpFamilies) -> wire::IpFamilies {
    match families {
        IpFamilies::Automatic => wire::IpFamilies::Automatic,
        IpFamilies::V4Only => wire::IpFamilies::Ipv4Only,
        IpFamilies::V6Only => wire::IpFamilies::Ipv6Only,
        IpFamilies::Dual => wire::IpFamilies::Dual,
    }
}

fn visibility_from(value: i32) -> Result<Visibility, ConvertError> {
    match wire::service::Visibility::try_from(value) {
        Ok(wire::service::Visibility::Public) => Ok(Visibility::Public),
        Ok(wire::service::Visibility::Namespace) => Ok(Visibility::Namespace),
        Err(_) => Err(Problem::UnknownValue(value).at("visibility")),
    }
}

/// Extensions of others are none of our business; ours must be readable.
fn extension_from(extensions: &[wire::Extension]) -> Result<karst::ServiceExtension, ConvertError> {
    let ours = extensions.iter().find(|e| e.name == EXTENSION);
    match ours.and_then(|e| e.config.as_ref()) {
        Some(config) => decode(EXTENSION, &config.value),
        None => Ok(karst::ServiceExtension::default()),
    }
}

fn naming_from(value: i32) -> Result<Naming, ConvertError> {
    match karst::service_extension::Naming::try_from(value) {
        Ok(karst::service_extension::Naming::Every) => Ok(Naming::Every),
        Ok(karst::service_extension::Naming::One) => Ok(Naming::One),
        Ok(karst::service_extension::Naming::Asked) => Ok(Naming::Asked),
        Err(_) => Err(Problem::UnknownValue(value).at("extensions.naming")),
    }
}

fn extension_to(s: &Service) -> Option<wire::Extension> {
    let affinity = s.load_balancing.session_affinity;
    let naming = match s.naming {
        Naming::Every => karst::service_extension::Naming::Every,
        Naming::One => karst::service_extension::Naming::One,
        Naming::Asked => karst::service_extension::Naming::Asked,
    };
    let message = karst::ServiceExtension {
        session_affinity: affinity.map(|affinity| karst::SessionAffinity {
            idle_timeout_seconds: affinity.idle_timeout_seconds,
        }),
        naming: naming.into(),
        waypoint_optional: s.waypoint_optional,
    };
    (message != karst::ServiceExtension::default()).then(|| wire::Extension {
        name: EXTENSION.to_owned(),
        config: Some(prost_types::Any {
            type_url: type_url::SERVICE_EXTENSION.to_owned(),
            value: message.encode_to_vec(),
        }),
    })
}
