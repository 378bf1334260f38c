//! From a ServiceEntry to the model: one service per host, and a workload per inline endpoint.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use karst_k8s_api::{
    istio::service_entry::{Resolution, ServicePort as EntryPort, WorkloadEntry},
    labels,
};
use karst_model::{
    addr::{Network, canonical_ip},
    locality::Locality,
    name::ServiceKey,
    protocol::{AppProtocol, TunnelProtocol},
    service::{
        HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Naming, PortMap, Service,
        ServicePort, Vip, Visibility,
    },
    workload::Workload,
};

use crate::{
    conditions::{Condition, ConditionType},
    config::IndexConfig,
    facts::{EntryFacts, Name, pod::PodFacts, service::app_protocol},
    index::LabelKeys,
    selector::Labels,
    services,
};

/// Whether a host of this entry should get an address of the automatic range.
pub(crate) fn wants_address(facts: &EntryFacts, host: &str) -> bool {
    facts.spec.addresses.is_empty()
        && facts.spec.resolution != Resolution::None
        && (!host.contains('*') || facts.spec.resolution == Resolution::DynamicDns)
        && facts
            .labels
            .get(labels::ENABLE_AUTOALLOCATE_IP)
            .map(String::as_str)
            != Some("false")
        && facts.assigned.iter().all(|assigned| assigned.host != host)
}

/// The service of one host. `allocated` are the addresses of the automatic range, if it wants them.
pub(crate) fn service(
    name: &Name,
    facts: &EntryFacts,
    key: ServiceKey,
    network: &Network,
    allocated: Option<[IpAddr; 2]>,
) -> Service {
    let ports = facts
        .spec
        .ports
        .iter()
        .map(|port| (port.number, service_port(port)));
    Service {
        addresses: vips(facts, &key.hostname, network, allocated),
        ports: ports.collect(),
        name: name.name.clone(),
        subject_alt_names: facts
            .spec
            .subject_alt_names
            .iter()
            .map(|san| san.as_str().into())
            .collect(),
        waypoint: None,
        waypoint_optional: false,
        load_balancing: load_balancing(facts.spec.resolution),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        ingress_use_waypoint: false,
        naming: naming(facts, &key.hostname),
        visibility: services::visibility(&facts.spec.export_to).unwrap_or(Visibility::Namespace),
        key,
    }
}

/// A wildcard host whose names nobody has listed is resolved as it is asked for.
fn naming(facts: &EntryFacts, host: &str) -> Naming {
    let listed = !facts.spec.endpoints.is_empty() || facts.selector().is_some();
    match facts.spec.resolution {
        Resolution::DynamicDns => Naming::Asked,
        Resolution::Dns | Resolution::DnsRoundRobin if host.contains('*') && !listed => {
            Naming::Asked
        }
        Resolution::DnsRoundRobin => Naming::One,
        _ => Naming::Every,
    }
}

fn service_port(port: &EntryPort) -> ServicePort {
    ServicePort {
        target_port: port.target_port.unwrap_or(port.number),
        app_protocol: app_protocol(Some(&port.protocol), &port.name),
    }
}

fn load_balancing(resolution: Resolution) -> LoadBalancing {
    match resolution {
        Resolution::None => LoadBalancing {
            mode: LoadBalancingMode::Passthrough,
            health_policy: HealthPolicy::AllowAll,
            ..LoadBalancing::default()
        },
        _ => LoadBalancing::default(),
    }
}

fn vips(
    facts: &EntryFacts,
    host: &str,
    network: &Network,
    allocated: Option<[IpAddr; 2]>,
) -> Vec<Vip> {
    if !facts.spec.addresses.is_empty() {
        return facts
            .spec
            .addresses
            .iter()
            .filter_map(|text| range(text, network))
            .collect();
    }
    let assigned = facts
        .assigned
        .iter()
        .filter(|assigned| assigned.host == host);
    let assigned = assigned
        .filter_map(|assigned| assigned.value.parse().ok())
        .map(canonical_ip);
    assigned
        .chain(allocated.into_iter().flatten())
        .map(|ip| services::vip(network, ip))
        .collect()
}

fn range(text: &str, network: &Network) -> Option<Vip> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(services::vip(network, canonical_ip(ip)));
    }
    let net: IpNet = text.parse().ok()?;
    let whole = net.prefix_len() == net.max_prefix_len();
    Some(Vip {
        network: network.clone(),
        ip: net.network(),
        prefix_len: (!whole).then_some(net.prefix_len()),
    })
}

/// The workloads that the entry itself brings; `keys` are the services of those of its hosts that it owns.
pub(crate) fn workloads(
    config: &IndexConfig,
    name: &Name,
    facts: &EntryFacts,
    (keys, told): (&[ServiceKey], &LabelKeys),
    network: &Network,
) -> Vec<Workload> {
    let spec = &facts.spec;
    let is_dns = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if !spec.endpoints.is_empty() {
        let mut workloads: Vec<Workload> = Vec::new();
        for endpoint in spec
            .endpoints
            .iter()
            .filter(|endpoint| is_reachable(endpoint))
        {
            let mut workload = inline(config, name, facts, endpoint, keys, network);
            workload.labels = told.pick(&endpoint.labels, &workload);
            // One address, one workload: the first endpoint of it counts.
            if workloads.iter().all(|other| other.uid != workload.uid) {
                workloads.push(workload);
            }
        }
        workloads
    } else if is_dns && facts.selector().is_none() {
        let concrete = keys.iter().filter(|key| !key.hostname.contains('*'));
        concrete
            .map(|key| by_name(config, name, facts, key, network))
            .collect()
    } else {
        Vec::new()
    }
}

pub(crate) fn is_reachable(endpoint: &WorkloadEntry) -> bool {
    !endpoint.address.is_empty() && !endpoint.address.starts_with("unix:")
}

fn inline(
    config: &IndexConfig,
    name: &Name,
    facts: &EntryFacts,
    endpoint: &WorkloadEntry,
    keys: &[ServiceKey],
    network: &Network,
) -> Workload {
    let ports: PortMap = facts
        .spec
        .ports
        .iter()
        .map(|port| (port.number, endpoint_port(port, endpoint)))
        .collect();
    let mut workload = base(config, name, &endpoint.address, network);
    describe(&mut workload, endpoint, &endpoint.labels);
    workload.services = keys
        .iter()
        .map(|key| (key.clone(), ports.clone()))
        .collect();
    workload
}

/// What an endpoint or a WorkloadEntry says of its workload, except for its services.
pub(crate) fn describe(workload: &mut Workload, endpoint: &WorkloadEntry, own: &Labels) {
    match endpoint.address.parse::<IpAddr>() {
        Ok(ip) => workload.addresses = vec![canonical_ip(ip)],
        Err(_) => workload.hostname = Some(endpoint.address.as_str().into()),
    }
    if !endpoint.network.is_empty() {
        workload.network = Network(endpoint.network.as_str().into());
    }
    let label = |name: &str| own.get(name).map(String::as_str);
    if label(labels::TUNNEL).is_some_and(|value| value.contains("http")) {
        (workload.tunnel, workload.native_tunnel) = (TunnelProtocol::Hbone, true);
    }
    workload.service_account = endpoint.service_account.as_str().into();
    workload.locality = locality(endpoint);
    workload.capacity = endpoint.weight.max(1);
    let first = |names: [&str; 3]| names.into_iter().find_map(label);
    if let Some(canonical) = first([labels::CANONICAL_NAME, labels::APP_NAME, labels::APP]) {
        workload.canonical_name = canonical.into();
    }
    let revision = first([
        labels::CANONICAL_REVISION,
        labels::APP_VERSION,
        labels::VERSION,
    ]);
    workload.canonical_revision = revision.unwrap_or("latest").into();
}

/// A host that clients resolve by DNS.
fn by_name(
    config: &IndexConfig,
    name: &Name,
    facts: &EntryFacts,
    key: &ServiceKey,
    network: &Network,
) -> Workload {
    let mut workload = base(config, name, &key.hostname, network);
    workload.hostname = Some(key.hostname.clone());
    let ports = facts
        .spec
        .ports
        .iter()
        .map(|port| (port.number, port.target_port.unwrap_or(port.number)));
    workload.services.insert(key.clone(), ports.collect());
    workload
}

fn base(config: &IndexConfig, name: &Name, address: &str, network: &Network) -> Workload {
    let uid = format!(
        "{}/networking.istio.io/ServiceEntry/{}/{}/{address}",
        config.cluster_id, name.namespace, name.name
    );
    Workload {
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        trust_domain: config.trust_domain.clone(),
        service_account: "".into(),
        network: network.clone(),
        workload_name: name.name.clone(),
        canonical_name: name.name.clone(),
        canonical_revision: "latest".into(),
        cluster_id: config.cluster_id.clone(),
        ..Workload::new(&uid)
    }
}

/// Ports of the entry at a WorkloadEntry that its selector picks.
pub(crate) fn ports_at_machine(facts: &EntryFacts, machine: &WorkloadEntry) -> PortMap {
    let ports = facts.spec.ports.iter();
    ports
        .map(|port| (port.number, endpoint_port(port, machine)))
        .collect()
}

fn endpoint_port(port: &EntryPort, endpoint: &WorkloadEntry) -> u16 {
    endpoint
        .ports
        .get(&port.name)
        .copied()
        .or(port.target_port)
        .unwrap_or(port.number)
}

/// Ports of the entry at a pod that its selector picks: a container port of the same name, else the entry's own.
pub(crate) fn ports_at_pod(facts: &EntryFacts, pod: &PodFacts) -> PortMap {
    let at_pod = |port: &EntryPort| {
        pod.named_port(&port.name)
            .or(port.target_port)
            .unwrap_or(port.number)
    };
    facts
        .spec
        .ports
        .iter()
        .map(|port| (port.number, at_pod(port)))
        .collect()
}

fn locality(endpoint: &WorkloadEntry) -> Locality {
    let mut parts = endpoint.locality.splitn(3, '/').map(Arc::from);
    let mut next = || parts.next().unwrap_or_else(|| "".into());
    Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    }
}

/// What of the entry cannot be followed. `taken` are hosts that another object of the namespace already stands for.
pub(crate) fn conditions(
    name: &Name,
    facts: &EntryFacts,
    taken: &[&str],
    without_address: &[&str],
    bound: bool,
) -> Vec<Condition> {
    let spec = &facts.spec;
    let mut conditions: Vec<Condition> =
        services::visibility_complaint(&spec.export_to, &name.namespace)
            .into_iter()
            .collect();
    let mut no = |reason, message: String| {
        conditions.push(Condition::no(ConditionType::Accepted, reason, message))
    };
    for host in taken {
        no(
            "Conflicted",
            format!(
                "host {host} already stands for an older object of the namespace: left out here"
            ),
        );
    }
    for host in without_address {
        no(
            "NoAddress",
            format!(
                "no address of the automatic range is free for host {host}: give spec.addresses"
            ),
        );
    }
    if spec.resolution == Resolution::DynamicDns && !bound {
        no(
            "UnsupportedValue",
            "resolution DYNAMIC_DNS needs a waypoint: the hosts have no endpoints".to_owned(),
        );
    }
    let by_name = || {
        spec.hosts
            .iter()
            .any(|host| naming(facts, host) == Naming::Asked)
    };
    for port in spec
        .ports
        .iter()
        .filter(|port| service_port(port).app_protocol == AppProtocol::Tcp)
    {
        if by_name() {
            no(
                "UnsupportedValue",
                format!(
                    "port {} of protocol {}: a host is resolved as clients name it, in HTTP or TLS, and there they name none: connections fail",
                    port.number, port.protocol
                ),
            );
        }
    }
    if spec.resolution == Resolution::None && spec.addresses.is_empty() {
        no(
            "NoAddress",
            "resolution NONE without addresses: nobody is led to the hosts, and connections go past the entry".to_owned(),
        );
    }
    for endpoint in spec
        .endpoints
        .iter()
        .filter(|endpoint| !is_reachable(endpoint))
    {
        no(
            "UnsupportedValue",
            format!(
                "endpoint {:?} is left out, expected an IP address or a name",
                endpoint.address
            ),
        );
    }
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        no(
            "Invalid",
            "endpoints and workloadSelector exclude each other: both are used".to_owned(),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    for endpoint in spec
        .endpoints
        .iter()
        .filter(|endpoint| !seen.insert(endpoint.address.as_str()))
    {
        no(
            "Conflicted",
            format!(
                "endpoint {} is given twice: the first counts",
                endpoint.address
            ),
        );
    }
    conditions
}
