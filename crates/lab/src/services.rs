//! kube-proxy and the zone of cluster DNS, for pods outside the mesh: from services and ready pods to an nft ruleset
//! and a table of names. Pure but for [`apply`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use karst_k8s_api::{
    k8s_openapi::{
        api::{
            core::v1::{Container, Pod, Service, ServicePort},
            discovery::v1::EndpointSlice,
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    labels,
};

use crate::{LabError, command, desired::names, network};

/// Domain of the cluster's services.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";

/// A pod as services see it.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) node: String,
    pub(crate) pod: Pod,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
}

/// Names that cluster DNS answers: to addresses, or to another name (ExternalName).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) addresses: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) aliases: BTreeMap<String, String>,
}

/// What one port of one service address translates to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Translation {
    address: IpAddr,
    protocol: &'static str,
    port: u16,
    endpoints: Vec<(IpAddr, u16)>,
}

/// The ruleset of `node`: loading it replaces the one before in one transaction.
pub(crate) fn ruleset(
    node: &str,
    services: &[Service],
    slices: &[EndpointSlice],
    backends: &[Backend],
) -> String {
    let all: Vec<Translation> = services
        .iter()
        .flat_map(|service| translate(node, service, slices, backends))
        .collect();
    [("ip", true), ("ip6", false)]
        .map(|(family, v4)| table(family, all.iter().filter(|one| one.address.is_ipv4() == v4)))
        .concat()
}

/// Loads a ruleset in a node's namespace.
pub(crate) fn apply(node_netns: &str, ruleset: &str) -> Result<(), LabError> {
    network::inside(node_netns, || {
        command::run("nft", &["-f", "-"], ruleset).map(drop)
    })?
}

fn table<'a>(family: &str, translations: impl Iterator<Item = &'a Translation>) -> String {
    let (mut dnat, mut reject, mut hairpin) = (String::new(), String::new(), BTreeSet::new());
    for Translation {
        address,
        protocol,
        port,
        endpoints,
    } in translations
    {
        let to = format!("{family} daddr {address} {protocol} dport {port}");
        if endpoints.is_empty() {
            let _ = writeln!(reject, "  {to} reject");
            continue;
        }
        let choices: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(n, (ip, port))| format!("{n} : {ip} . {port}"))
            .collect();
        let _ = writeln!(
            dnat,
            "  {to} dnat to numgen random mod {} map {{ {} }}",
            endpoints.len(),
            choices.join(", ")
        );
        hairpin.extend(endpoints.iter().map(|(ip, _port)| *ip));
    }
    let hairpin: String = hairpin
        .iter()
        .map(|ip| format!("  {family} saddr {ip} {family} daddr {ip} ct status dnat masquerade\n"))
        .collect();
    // `add` then `delete` removes the table whether it was there or not.
    format!(
        "add table {family} karst-lab\ndelete table {family} karst-lab\ntable {family} karst-lab {{\n\
         chain pods {{\n  type nat hook prerouting priority -100\n{dnat}}}\n\
         chain node {{\n  type nat hook output priority -100\n{dnat}}}\n\
         chain none {{\n  type filter hook forward priority 0\n{reject}}}\n\
         chain none-from-node {{\n  type filter hook output priority 0\n{reject}}}\n\
         chain hairpin {{\n  type nat hook postrouting priority 100\n{hairpin}}}\n}}\n"
    )
}

fn translate(
    node: &str,
    service: &Service,
    slices: &[EndpointSlice],
    backends: &[Backend],
) -> Vec<Translation> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for address in cluster_ips(service) {
        for port in spec.ports.iter().flatten() {
            let Ok(number) = u16::try_from(port.port) else {
                continue;
            };
            let protocol = if port.protocol.as_deref() == Some("UDP") {
                "udp"
            } else {
                "tcp"
            };
            let endpoints = endpoints(node, service, port, slices, backends);
            let endpoints = endpoints
                .into_iter()
                .filter(|(ip, _)| ip.is_ipv4() == address.is_ipv4())
                .collect();
            found.push(Translation {
                address,
                protocol,
                port: number,
                endpoints,
            });
        }
    }
    found
}

fn endpoints(
    node: &str,
    service: &Service,
    port: &ServicePort,
    slices: &[EndpointSlice],
    backends: &[Backend],
) -> Vec<(IpAddr, u16)> {
    let local_only = service
        .spec
        .as_ref()
        .and_then(|spec| spec.internal_traffic_policy.as_deref())
        == Some("Local");
    let mut found = Vec::new();
    for backend in selected(service, backends) {
        if local_only && backend.node != node {
            continue;
        }
        if let Some(target) = target_port(port, &backend.pod) {
            found.extend(backend.addresses.iter().map(|ip| (*ip, target)));
        }
    }
    found.extend(
        slices
            .iter()
            .filter(|slice| belongs(slice, service))
            .flat_map(|slice| slice_endpoints(slice, port)),
    );
    found
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let (namespace, name) = names(&service.metadata);
    let owner = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|all| all.get(labels::SERVICE_NAME));
    owner == Some(&name) && names(&slice.metadata).0 == namespace
}

fn slice_endpoints(slice: &EndpointSlice, port: &ServicePort) -> Vec<(IpAddr, u16)> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let number = slice
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref().unwrap_or_default() == wanted);
    let Some(number) = number.and_then(|port| u16::try_from(port.port?).ok()) else {
        return Vec::new();
    };
    let ready = slice
        .endpoints
        .iter()
        .filter(|one| one.conditions.as_ref().and_then(|c| c.ready) != Some(false));
    ready
        .flat_map(|one| &one.addresses)
        .filter_map(|ip| Some((ip.parse().ok()?, number)))
        .collect()
}

fn selected<'a>(service: &Service, backends: &'a [Backend]) -> impl Iterator<Item = &'a Backend> {
    let (namespace, _name) = names(&service.metadata);
    let spec = service.spec.clone().unwrap_or_default();
    let selector = spec.selector.filter(|selector| !selector.is_empty());
    let not_ready_too = spec.publish_not_ready_addresses == Some(true);
    backends.iter().filter(move |backend| {
        let Some(selector) = &selector else {
            return false;
        };
        let labels = backend.pod.metadata.labels.as_ref();
        let matches = selector
            .iter()
            .all(|(key, value)| labels.and_then(|all| all.get(key)) == Some(value));
        let serves = not_ready_too || (backend.ready && !backend.terminating);
        matches && serves && names(&backend.pod.metadata).0 == namespace
    })
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            named_port(pod.spec.iter().flat_map(|spec| &spec.containers), name)
        }
    }
}

/// The number of a container port by its name.
pub(crate) fn named_port<'a>(
    containers: impl Iterator<Item = &'a Container>,
    name: &str,
) -> Option<u16> {
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}

/// The service's virtual addresses; none for headless ones and ExternalName.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.clone().unwrap_or_default();
    let listed = spec
        .cluster_ips
        .unwrap_or_default()
        .into_iter()
        .chain(spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The names of all services, in lower case and without a final dot.
pub(crate) fn zone(services: &[Service], slices: &[EndpointSlice], backends: &[Backend]) -> Zone {
    let mut zone = Zone::default();
    for service in services {
        let (namespace, name) = names(&service.metadata);
        let full = format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}").to_ascii_lowercase();
        let spec = service.spec.clone().unwrap_or_default();
        if let Some(external) = spec
            .external_name
            .filter(|_| spec.type_.as_deref() == Some("ExternalName"))
        {
            zone.aliases
                .insert(full, external.trim_end_matches('.').to_ascii_lowercase());
            continue;
        }
        let mut addresses = cluster_ips(service);
        if addresses.is_empty() {
            addresses = selected(service, backends)
                .flat_map(|backend| backend.addresses.clone())
                .collect();
            let of_slices = slices
                .iter()
                .filter(|slice| belongs(slice, service))
                .flat_map(|slice| &slice.endpoints);
            addresses.extend(
                of_slices
                    .flat_map(|one| &one.addresses)
                    .filter_map(|ip| ip.parse::<IpAddr>().ok()),
            );
        }
        zone.addresses.insert(full, addresses);
    }
    zone
}

#[cfg(test)]
mod tests {
    use karst_k8s_api::Object;

    use super::*;

    fn service(spec: &str) -> Service {
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: a}}, spec: {spec}}}"
        );
        let (objects, problems) = karst_files::parse(std::path::Path::new("t.yaml"), &yaml);
        assert!(problems.is_empty(), "{problems:?}");
        let Object::Service(service) = &objects[0] else {
            panic!("no service")
        };
        (**service).clone()
    }

    fn backend(host: u8, node: &str, ready: bool) -> Backend {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("a".to_owned());
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        let addresses = vec![
            [10, 244, 0, host].into(),
            format!("fd00::{host}").parse().unwrap(),
        ];
        Backend {
            node: node.to_owned(),
            pod,
            addresses,
            ready,
            terminating: false,
        }
    }

    const PLAIN: &str = "{clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, 'fd00:10:96::1'], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]";

    #[test]
    fn ready_pods_are_translated_to_in_both_families() {
        let services = [service(&format!("{PLAIN}}}"))];
        let rules = ruleset(
            "n1",
            &services,
            &[],
            &[
                backend(2, "n1", true),
                backend(3, "n2", true),
                backend(4, "n2", false),
            ],
        );
        assert!(rules.contains("ip daddr 10.96.1.1 tcp dport 80 dnat to numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.0.3 . 8080 }"), "{rules}");
        assert!(
            rules.contains("ip6 daddr fd00:10:96::1 tcp dport 80 dnat"),
            "{rules}"
        );
        assert!(!rules.contains("10.244.0.4"), "{rules}");
    }

    #[test]
    fn no_endpoint_means_refused_and_local_means_local() {
        let services = [service(&format!("{PLAIN}, internalTrafficPolicy: Local}}"))];
        let rules = ruleset("n1", &services, &[], &[backend(3, "n2", true)]);
        assert!(
            rules.contains("ip daddr 10.96.1.1 tcp dport 80 reject"),
            "{rules}"
        );
    }

    #[test]
    fn names_answer_with_addresses_pods_or_aliases() {
        let zone_of = |spec: &str| {
            zone(
                &[service(spec)],
                &[],
                &[backend(2, "n1", true), backend(3, "n1", false)],
            )
        };
        let name = "web.a.svc.cluster.local";
        assert_eq!(zone_of(&format!("{PLAIN}}}")).addresses[name].len(), 2);
        let headless = zone_of("{clusterIP: None, selector: {app: web}}");
        assert!(headless.addresses[name].contains(&[10, 244, 0, 2].into()));
        assert_eq!(headless.addresses[name].len(), 2, "one pod, two families");
        assert_eq!(
            zone_of("{type: ExternalName, externalName: example.com}").aliases[name],
            "example.com"
        );
    }
}
