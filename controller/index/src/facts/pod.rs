//! What the index keeps of a Pod.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use karst_k8s_api::{
    k8s_openapi::{
        api::core::v1::{Container, LifecycleHandler, Pod, PodSpec, PodStatus, Probe},
        apimachinery::pkg::{
            apis::meta::v1::{ObjectMeta, OwnerReference},
            util::intstr::IntOrString,
        },
    },
    labels,
};
use karst_model::{addr::canonical_ip, enrollment::CaptureOptions, name::PodUid};

use crate::{
    conditions::{Condition, ConditionType},
    selector::Labels,
    shared::Shared,
};

#[derive(Debug, PartialEq)]
pub(crate) struct PodFacts {
    pub(crate) uid: PodUid,
    pub(crate) labels: Arc<Labels>,
    /// Empty until the pod is scheduled.
    pub(crate) node: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_network: bool,
    /// Succeeded or Failed: it runs no more, and its address may already be somebody else's.
    pub(crate) finished: bool,
    pub(crate) ready: bool,
    /// Somebody asked for its deletion.
    pub(crate) terminating: bool,
    /// TCP ports with a name.
    pub(crate) named_ports: Vec<(Box<str>, u16)>,
    pub(crate) probe_ports: Vec<u16>,
    /// None: all of it is captured, as by default.
    pub(crate) capture: Option<Box<CaptureOptions>>,
    /// Istio's injector gave it a sidecar.
    pub(crate) has_sidecar: bool,
    pub(crate) workload_name: Arc<str>,
    /// What of its annotations cannot be followed.
    pub(crate) complaints: Vec<Condition>,
}

impl PodFacts {
    pub(crate) fn new(pod: Pod, shared: &mut Shared) -> Self {
        let (mut meta, spec, status) = (
            pod.metadata,
            pod.spec.unwrap_or_default(),
            pod.status.unwrap_or_default(),
        );
        let mut complaints = Vec::new();
        let capture = capture_options(&meta, &mut complaints);
        let annotated = |name: &str| {
            meta.annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(name))
        };
        Self {
            uid: uid(&meta),
            node: shared.text(spec.node_name.as_deref().unwrap_or_default()),
            service_account: shared.text(
                spec.service_account_name
                    .as_deref()
                    .filter(|s| !s.is_empty())
                    .unwrap_or("default"),
            ),
            addresses: addresses(&status),
            host_network: spec.host_network.unwrap_or(false),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ready: is_ready(&status),
            terminating: meta.deletion_timestamp.is_some(),
            named_ports: named_ports(&spec),
            probe_ports: probe_ports(&spec),
            capture: (capture != CaptureOptions::default()).then(|| Box::new(capture)),
            has_sidecar: annotated(labels::SIDECAR_STATUS),
            workload_name: shared.text(&workload_name(&meta)),
            complaints,
            labels: shared.labels(meta.labels.take()),
        }
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The port of this pod that carries a name.
    pub(crate) fn named_port(&self, name: &str) -> Option<u16> {
        self.named_ports
            .iter()
            .find(|(known, _)| **known == *name)
            .map(|(_, port)| *port)
    }
}

/// The UID by which the pod's node knows it: `metadata.uid`, but for a static pod. Objects that never saw an API server
/// may lack one and are then known by their name.
fn uid(meta: &ObjectMeta) -> PodUid {
    match static_uid(meta).or(meta.uid.as_deref()) {
        Some(uid) if !uid.is_empty() => uid.into(),
        _ => {
            let part = |field: &Option<String>| field.clone().unwrap_or_default();
            format!("{}.{}", part(&meta.namespace), part(&meta.name))
                .as_str()
                .into()
        }
    }
}

/// A static pod's UID, which its cgroup and the CNI call have: a hash of its file. The object at the API server is made
/// by the kubelet, owned by its Node, and has a UID of its own. Anybody may write an annotation, so the value must look
/// like such a hash, which no UID of the API server does.
fn static_uid(meta: &ObjectMeta) -> Option<&str> {
    let hash = meta.annotations.as_ref()?.get(labels::CONFIG_MIRROR)?;
    let mut owners = meta.owner_references.iter().flatten();
    let of_a_node = owners.any(|owner| owner.kind == "Node" && owner.controller == Some(true));
    let is_hash = hash.len() == 32 && hash.chars().all(|it| it.is_ascii_hexdigit());
    (of_a_node && is_hash).then_some(hash)
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut parsed: Vec<IpAddr> = all
        .filter_map(|ip| ip.parse().ok())
        .map(canonical_ip)
        .collect();
    if parsed.is_empty() {
        parsed.extend(
            status
                .pod_ip
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .map(canonical_ip),
        );
    }
    parsed
}

fn is_ready(status: &PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Containers that run beside each other: the main ones, and init containers that restart always.
fn running_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars =
        sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

fn named_ports(spec: &PodSpec) -> Vec<(Box<str>, u16)> {
    let ports = running_containers(spec).flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        Some((
            port.name.as_deref()?.into(),
            u16::try_from(port.container_port).ok()?,
        ))
    })
    .collect()
}

fn probe_ports(spec: &PodSpec) -> Vec<u16> {
    let mut ports: Vec<u16> = running_containers(spec)
        .flat_map(container_probe_ports)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn container_probe_ports(container: &Container) -> Vec<u16> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let probes = probes
        .into_iter()
        .flatten()
        .flat_map(|probe| probe_targets(container, probe));
    let lifecycle = container.lifecycle.as_ref();
    let hooks = lifecycle
        .into_iter()
        .flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop])
        .flatten();
    probes
        .chain(hooks.flat_map(|hook| hook_targets(container, hook)))
        .collect()
}

fn probe_targets(container: &Container, probe: &Probe) -> Vec<u16> {
    let http = probe
        .http_get
        .as_ref()
        .and_then(|get| container_port(container, &get.port));
    let tcp = probe
        .tcp_socket
        .as_ref()
        .and_then(|tcp| container_port(container, &tcp.port));
    let grpc = probe
        .grpc
        .as_ref()
        .and_then(|grpc| u16::try_from(grpc.port).ok());
    [http, tcp, grpc].into_iter().flatten().collect()
}

fn hook_targets(container: &Container, hook: &LifecycleHandler) -> Vec<u16> {
    let http = hook
        .http_get
        .as_ref()
        .and_then(|get| container_port(container, &get.port));
    let tcp = hook
        .tcp_socket
        .as_ref()
        .and_then(|tcp| container_port(container, &tcp.port));
    [http, tcp].into_iter().flatten().collect()
}

/// A probe's port: a number, or the name of a port of the same container.
fn container_port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let declared = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name));
            declared
                .and_then(|port| u16::try_from(port.container_port).ok())
                .or_else(|| name.parse().ok())
        }
    }
}

fn capture_options(meta: &ObjectMeta, complaints: &mut Vec<Condition>) -> CaptureOptions {
    let annotation = |name: &str| {
        meta.annotations
            .as_ref()
            .and_then(|all| all.get(name))
            .map(String::as_str)
    };
    for name in labels::UNSUPPORTED_CAPTURE
        .into_iter()
        .filter(|name| annotation(name).is_some())
    {
        let message = format!(
            "annotation {name} is not supported: all traffic of the pod is captured as without it"
        );
        complaints.push(Condition::no(
            ConditionType::Accepted,
            "UnsupportedValue",
            message,
        ));
    }
    CaptureOptions {
        exclude_outbound_ports: list(
            labels::EXCLUDE_OUTBOUND_PORTS,
            annotation,
            "a port",
            complaints,
        ),
        exclude_inbound_ports: list(
            labels::EXCLUDE_INBOUND_PORTS,
            annotation,
            "a port",
            complaints,
        ),
        exclude_outbound_cidrs: list::<Range>(
            labels::EXCLUDE_OUTBOUND_IP_RANGES,
            annotation,
            "a CIDR",
            complaints,
        )
        .into_iter()
        .map(|range| range.0)
        .collect(),
        dns_capture: match annotation(labels::DNS_CAPTURE) {
            None => None,
            Some(text) => text.parse().map_or_else(
                |_| {
                    complaints.push(unreadable(labels::DNS_CAPTURE, text, "true or false"));
                    None
                },
                Some,
            ),
        },
        registry_only: false,
    }
}

/// A CIDR, or a single address as one.
struct Range(IpNet);

impl std::str::FromStr for Range {
    type Err = ipnet::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>()
            .or_else(|error| text.parse::<IpAddr>().map(IpNet::from).or(Err(error)))
            .map(Self)
    }
}

/// The readable values of a comma-separated annotation; the others are complained about.
fn list<'a, T: std::str::FromStr>(
    name: &str,
    annotation: impl Fn(&str) -> Option<&'a str>,
    expected: &str,
    complaints: &mut Vec<Condition>,
) -> Vec<T> {
    let parts = annotation(name)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let mut values = Vec::new();
    for part in parts {
        match part.parse() {
            Ok(value) => values.push(value),
            Err(_) => complaints.push(unreadable(name, part, expected)),
        }
    }
    values
}

fn unreadable(name: &str, text: &str, expected: &str) -> Condition {
    let message = format!("annotation {name}: {text:?} is left out, expected {expected}");
    Condition::no(ConditionType::Accepted, "Invalid", message)
}

/// Name of the controller behind the pod: its label, else what the names of its owner tell, else its own name.
fn workload_name(meta: &ObjectMeta) -> String {
    let label = |name: &str| {
        meta.labels
            .as_ref()
            .and_then(|all| all.get(name))
            .map(String::as_str)
    };
    if let Some(name) = label(labels::WORKLOAD_NAME) {
        return name.to_owned();
    }
    let owner = meta
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    match owner {
        Some(owner) => owner_name(owner, &label).to_owned(),
        None => meta.name.clone().unwrap_or_default(),
    }
}

fn owner_name<'a>(owner: &'a OwnerReference, label: &impl Fn(&str) -> Option<&'a str>) -> &'a str {
    let name = owner.name.as_str();
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash =
                label(labels::POD_TEMPLATE_HASH).or_else(|| label(labels::ROLLOUT_TEMPLATE_HASH));
            hash.and_then(|hash| name.strip_suffix(hash))
                .and_then(|rest| rest.strip_suffix('-'))
                .unwrap_or(name)
        }
        "ReplicationController" => label(labels::DEPLOYMENT_CONFIG).unwrap_or(name),
        "Job" => match name.rsplit_once('-') {
            // A CronJob names its Jobs by the minute: eight digits since 1.21, ten (seconds) before.
            Some((cron, time))
                if matches!(time.len(), 8 | 10) && time.bytes().all(|b| b.is_ascii_digit()) =>
            {
                cron
            }
            _ => name,
        },
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn uid_of(mirror: &str, owner: &str) -> String {
        let meta = json!({
            "uid": "0f7f5e3c-91d3-4c3b-9a52-5a3d2b1c0e9f",
            "annotations": {"kubernetes.io/config.mirror": mirror},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": owner, "name": "n1", "uid": "u", "controller": true},
            ],
        });
        let meta: ObjectMeta = serde_json::from_value(meta).unwrap();
        uid(&meta).to_string()
    }

    #[test]
    fn a_static_pod_is_known_by_the_uid_of_its_node_and_nobody_takes_another_pod_s() {
        let own = "0f7f5e3c-91d3-4c3b-9a52-5a3d2b1c0e9f";
        assert_eq!(uid_of(HASH, "Node"), HASH);
        assert_eq!(uid_of(HASH, "ReplicaSet"), own);
        assert_eq!(uid_of("11111111-2222-3333-4444-555555555555", "Node"), own);
    }
}
