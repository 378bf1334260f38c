//! `istio.workload.Workload`.

use std::{collections::BTreeMap, sync::Arc};

use karst_model::{
    addr::{Network, NetworkAddr},
    identity::{DEFAULT_TRUST_DOMAIN, TrustDomain},
    locality::Locality,
    name::{PolicyKey, ServiceKey, WorkloadUid},
    protocol::TunnelProtocol,
    service::PortMap,
    workload::{ApplicationTunnel, Health, SealedPort, Workload, WorkloadType},
};
use prost::Message as _;

use super::{
    ConvertError, Interner, Problem,
    address::{gateway_from, gateway_to, ip_from, ip_to, port_from},
    error::decode,
};
use crate::{karst, type_url, workload as wire};

/// Name of our extension of a workload.
const EXTENSION: &str = "karst.v1.WorkloadExtension";

/// Cluster of a workload that names none.
const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Service account of a workload that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

pub(super) fn workload_from(
    w: wire::Workload,
    interner: &mut Interner,
) -> Result<Workload, ConvertError> {
    if w.uid.is_empty() {
        return Err(Problem::Missing.at("uid"));
    }
    let addresses = indexed("addresses", &w.addresses, |bytes| ip_from(bytes))?;
    let policies = indexed("authorization_policies", &w.authorization_policies, |key| {
        Ok(shared_policy_key(key.parse()?, interner))
    })?;
    let locality = w.locality.unwrap_or_default();
    let extension = extension_from(&w.extensions)?;
    Ok(Workload {
        name: w.name.as_str().into(),
        namespace: interner.get(&w.namespace),
        trust_domain: TrustDomain(interner.or(&w.trust_domain, DEFAULT_TRUST_DOMAIN)),
        service_account: interner.or(&w.service_account, DEFAULT_SERVICE_ACCOUNT),
        addresses,
        network: Network(interner.get(&w.network)),
        hostname: (!w.hostname.is_empty()).then(|| w.hostname.as_str().into()),
        tunnel: tunnel_from(w.tunnel_protocol)?,
        native_tunnel: w.native_tunnel,
        application_tunnel: application_tunnel_from(w.application_tunnel)?,
        sealed: sealed_from(extension.sealed, interner)?,
        labels: labels_from(extension.labels, interner),
        waypoint: w
            .waypoint
            .map(|g| gateway_from("waypoint", g, interner))
            .transpose()?,
        network_gateway: w
            .network_gateway
            .map(|g| gateway_from("network_gateway", g, interner))
            .transpose()?,
        node: interner.get(&w.node),
        locality: Locality {
            region: interner.get(&locality.region),
            zone: interner.get(&locality.zone),
            subzone: interner.get(&locality.subzone),
        },
        host_network: host_network_from(w.network_mode)?,
        health: health_from(w.status)?,
        capacity: w.capacity.unwrap_or(1),
        services: services_from(w.services, interner)?,
        policies,
        workload_type: workload_type_from(w.workload_type),
        workload_name: interner.get(&w.workload_name),
        canonical_name: interner.get(&w.canonical_name),
        canonical_revision: interner.get(&w.canonical_revision),
        cluster_id: interner.or(&w.cluster_id, DEFAULT_CLUSTER),
        uid: WorkloadUid(w.uid.into()),
    })
}

/// The resource of a workload.
pub fn workload_to(w: &Workload) -> wire::Address {
    let message = wire::Workload {
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|ip| ip_to(*ip)).collect(),
        network: w.network.0.to_string(),
        tunnel_protocol: match w.tunnel {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: unless(&w.trust_domain.0, DEFAULT_TRUST_DOMAIN),
        service_account: unless(&w.service_account, DEFAULT_SERVICE_ACCOUNT),
        waypoint: w.waypoint.as_ref().map(gateway_to),
        node: w.node.to_string(),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: workload_type_to(w.workload_type).into(),
        workload_name: w.workload_name.to_string(),
        native_tunnel: w.native_tunnel,
        authorization_policies: w.policies.iter().map(ToString::to_string).collect(),
        status: match w.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: unless(&w.cluster_id, DEFAULT_CLUSTER),
        network_gateway: w.network_gateway.as_ref().map(gateway_to),
        uid: w.uid.0.to_string(),
        hostname: w.hostname.as_deref().unwrap_or_default().to_owned(),
        services: w
            .services
            .iter()
            .map(|(key, ports)| (key.to_string(), ports_to(ports)))
            .collect(),
        application_tunnel: w.application_tunnel.map(application_tunnel_to),
        locality: locality_to(&w.locality),
        network_mode: match w.host_network {
            false => wire::NetworkMode::Standard,
            true => wire::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: extension_to(w).into_iter().collect(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    };
    wire::Address {
        r#type: Some(wire::address::Type::Workload(message)),
    }
}

/// `<network>/<ip>` of each address. None for host network: its address is the node's and names no one workload.
pub fn workload_aliases(w: &Workload) -> Vec<String> {
    if w.host_network {
        return Vec::new();
    }
    w.addresses
        .iter()
        .map(|ip| NetworkAddr::new(w.network.clone(), *ip).to_string())
        .collect()
}

/// Istio's third protocol, mutual TLS of sidecars, is one that neither ztunnel nor we speak: such a workload is refused
/// rather than sent plaintext.
fn tunnel_from(value: i32) -> Result<TunnelProtocol, ConvertError> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) => {
            Err(Problem::Unsupported("LEGACY_ISTIO_MTLS").at("tunnel_protocol"))
        }
        Err(_) => Err(Problem::UnknownValue(value).at("tunnel_protocol")),
    }
}

/// A protocol that we do not speak refuses the workload: bytes without what it waits for are not for the application.
fn application_tunnel_from(
    tunnel: Option<wire::ApplicationTunnel>,
) -> Result<Option<ApplicationTunnel>, ConvertError> {
    use wire::application_tunnel::Protocol;
    let Some(tunnel) = tunnel else {
        return Ok(None);
    };
    match Protocol::try_from(tunnel.protocol) {
        Ok(Protocol::None) => Ok(None),
        Ok(Protocol::Proxy) => {
            let port = port_from(tunnel.port).map_err(|p| p.at("application_tunnel.port"))?;
            let port = (port != 0).then_some(port);
            Ok(Some(ApplicationTunnel::Proxy { port }))
        }
        Err(_) => Err(Problem::UnknownValue(tunnel.protocol).at("application_tunnel.protocol")),
    }
}

fn application_tunnel_to(tunnel: ApplicationTunnel) -> wire::ApplicationTunnel {
    let ApplicationTunnel::Proxy { port } = tunnel;
    wire::ApplicationTunnel {
        protocol: wire::application_tunnel::Protocol::Proxy.into(),
        port: port.unwrap_or(0).into(),
    }
}

fn host_network_from(value: i32) -> Result<bool, ConvertError> {
    match wire::NetworkMode::try_from(value) {
        Ok(wire::NetworkMode::Standard) => Ok(false),
        Ok(wire::NetworkMode::HostNetwork) => Ok(true),
        Err(_) => Err(Problem::UnknownValue(value).at("network_mode")),
    }
}

fn health_from(value: i32) -> Result<Health, ConvertError> {
    match wire::WorkloadStatus::try_from(value) {
        Ok(wire::WorkloadStatus::Healthy) => Ok(Health::Healthy),
        Ok(wire::WorkloadStatus::Unhealthy) => Ok(Health::Unhealthy),
        Err(_) => Err(Problem::UnknownValue(value).at("status")),
    }
}

/// Telemetry only: an unknown kind of owner counts as a bare pod.
fn workload_type_from(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value).unwrap_or(wire::WorkloadType::Pod) {
        wire::WorkloadType::Deployment => WorkloadType::Deployment,
        wire::WorkloadType::Cronjob => WorkloadType::CronJob,
        wire::WorkloadType::Pod => WorkloadType::Pod,
        wire::WorkloadType::Job => WorkloadType::Job,
    }
}

fn workload_type_to(kind: WorkloadType) -> wire::WorkloadType {
    match kind {
        WorkloadType::Deployment => wire::WorkloadType::Deployment,
        WorkloadType::CronJob => wire::WorkloadType::Cronjob,
        WorkloadType::Pod => wire::WorkloadType::Pod,
        WorkloadType::Job => wire::WorkloadType::Job,
    }
}

fn services_from(
    services: BTreeMap<String, wire::PortList>,
    interner: &mut Interner,
) -> Result<BTreeMap<ServiceKey, PortMap>, ConvertError> {
    let mut found = BTreeMap::new();
    for (name, list) in services {
        let key: ServiceKey = name
            .parse()
            .map_err(|error| Problem::from(error).at(format_args!("services[{name:?}]")))?;
        let key = ServiceKey {
            namespace: interner.get(&key.namespace),
            hostname: interner.get(&key.hostname),
        };
        let mut ports = PortMap::new();
        for port in &list.ports {
            let at = |p: Problem| p.at(format_args!("services[{name:?}].ports"));
            ports.insert(
                port_from(port.service_port).map_err(at)?,
                port_from(port.target_port).map_err(at)?,
            );
        }
        found.insert(key, ports);
    }
    Ok(found)
}

fn ports_to(ports: &PortMap) -> wire::PortList {
    let port = |(service, target): (&u16, &u16)| wire::Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: 0,
    };
    wire::PortList {
        ports: ports.iter().map(port).collect(),
    }
}

fn locality_to(locality: &Locality) -> Option<wire::Locality> {
    (*locality != Locality::default()).then(|| wire::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    })
}

fn shared_policy_key(key: PolicyKey, interner: &mut Interner) -> PolicyKey {
    PolicyKey {
        namespace: interner.get(&key.namespace),
        name: interner.get(&key.name),
    }
}

/// Extensions of others are none of our business; ours must be readable.
fn extension_from(
    extensions: &[wire::Extension],
) -> Result<karst::WorkloadExtension, ConvertError> {
    let ours = extensions.iter().find(|e| e.name == EXTENSION);
    match ours.and_then(|e| e.config.as_ref()) {
        Some(config) => decode(EXTENSION, &config.value),
        None => Ok(karst::WorkloadExtension::default()),
    }
}

fn sealed_from(
    sealed: Vec<karst::SealedPort>,
    interner: &mut Interner,
) -> Result<Vec<SealedPort>, ConvertError> {
    let sealed = sealed.into_iter().map(|sealed| {
        let waypoint = sealed.waypoint;
        Ok(SealedPort {
            port: port_from(sealed.port).map_err(|p| p.at("extensions.sealed.port"))?,
            waypoint: waypoint
                .map(|g| gateway_from("extensions.sealed.waypoint", g, interner))
                .transpose()?,
        })
    });
    sealed.collect()
}

fn labels_from(
    labels: BTreeMap<String, String>,
    interner: &mut Interner,
) -> Arc<[(Arc<str>, Arc<str>)]> {
    let labels = labels.iter();
    labels
        .map(|(key, value)| (interner.get(key), interner.get(value)))
        .collect()
}

fn extension_to(w: &Workload) -> Option<wire::Extension> {
    let port = |one: &SealedPort| karst::SealedPort {
        port: one.port.into(),
        waypoint: one.waypoint.as_ref().map(gateway_to),
    };
    let labels = w.labels.iter();
    let message = karst::WorkloadExtension {
        sealed: w.sealed.iter().map(port).collect(),
        labels: labels
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
    };
    (message != karst::WorkloadExtension::default()).then(|| wire::Extension {
        name: EXTENSION.to_owned(),
        config: Some(prost_types::Any {
            type_url: type_url::WORKLOAD_EXTENSION.to_owned(),
            value: message.encode_to_vec(),
        }),
    })
}

/// Converts each item, naming the index of the one that fails.
pub(super) fn indexed<T, U>(
    field: &str,
    items: &[T],
    mut convert: impl FnMut(&T) -> Result<U, Problem>,
) -> Result<Vec<U>, ConvertError> {
    let numbered = items.iter().enumerate();
    numbered
        .map(|(n, item)| convert(item).map_err(|p| p.at(format_args!("{field}[{n}]"))))
        .collect()
}

fn unless(text: &str, default: &str) -> String {
    if text == default {
        String::new()
    } else {
        text.to_owned()
    }
}
