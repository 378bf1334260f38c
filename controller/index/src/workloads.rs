//! From a Pod, or a bare endpoint of a slice, to the model's workload; and to what the pod's node is told.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use karst_k8s_api::labels;
use karst_model::{
    addr::Network,
    enrollment::{CaptureOptions, NodeWorkload},
    locality::Locality,
    name::{PolicyKey, ServiceKey, WorkloadUid},
    protocol::TunnelProtocol,
    service::PortMap,
    workload::{ApplicationTunnel, GatewayAddr, Health, SealedPort, Workload, WorkloadType},
};

use crate::{
    capture::Standing,
    config::IndexConfig,
    facts::{Name, pod::PodFacts, slice::EndpointFacts},
    selector::Labels,
};

/// What other objects say about a pod.
pub(crate) struct Surroundings {
    pub(crate) services: BTreeMap<ServiceKey, PortMap>,
    pub(crate) policies: Vec<PolicyKey>,
    pub(crate) waypoint: Option<GatewayAddr>,
    pub(crate) sealed: Vec<SealedPort>,
    pub(crate) application_tunnel: Option<ApplicationTunnel>,
    pub(crate) locality: Locality,
    pub(crate) network: Network,
    /// Captured and published.
    pub(crate) hbone: bool,
}

/// `<cluster>//Pod/<namespace>/<name>`.
pub(crate) fn pod_uid(config: &IndexConfig, name: &Name) -> WorkloadUid {
    format!(
        "{}//Pod/{}/{}",
        config.cluster_id, name.namespace, name.name
    )
    .as_str()
    .into()
}

/// The workload of a pod; none while it has no address or once it has finished.
pub(crate) fn of_pod(
    config: &IndexConfig,
    name: &Name,
    pod: &PodFacts,
    around: Surroundings,
) -> Option<Workload> {
    if pod.finished || pod.addresses.is_empty() {
        return None;
    }
    let native_tunnel = pod
        .label(labels::TUNNEL)
        .is_some_and(|value| value.contains("http"));
    let hbone = native_tunnel || around.hbone;
    let first = |names: [&str; 3]| names.into_iter().find_map(|name| pod.label(name));
    let canonical_name = first([labels::CANONICAL_NAME, labels::APP_NAME, labels::APP]);
    let revision = first([
        labels::CANONICAL_REVISION,
        labels::APP_VERSION,
        labels::VERSION,
    ]);
    Some(Workload {
        uid: pod_uid(config, name),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        trust_domain: config.trust_domain.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.clone(),
        network: around.network,
        hostname: None,
        tunnel: if hbone {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        },
        native_tunnel,
        application_tunnel: around.application_tunnel,
        waypoint: around.waypoint,
        sealed: around.sealed,
        network_gateway: None,
        node: pod.node.clone(),
        locality: around.locality,
        host_network: pod.host_network,
        health: if pod.ready && !pod.terminating {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        capacity: 1,
        services: around.services,
        policies: around.policies,
        workload_type: WorkloadType::Pod,
        workload_name: pod.workload_name.clone(),
        canonical_name: canonical_name.map_or_else(|| pod.workload_name.clone(), Arc::from),
        canonical_revision: revision.unwrap_or("latest").into(),
        cluster_id: config.cluster_id.clone(),
        labels: Arc::default(),
    })
}

/// What a pod's node is told; nothing before it has a node and after it has finished.
pub(crate) fn for_node(
    config: &IndexConfig,
    name: &Name,
    pod: &PodFacts,
    standing: &Standing,
    registry_only: bool,
) -> Option<NodeWorkload> {
    (!pod.finished && !pod.node.is_empty()).then(|| NodeWorkload {
        pod_uid: pod.uid.clone(),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        service_account: pod.service_account.clone(),
        workload_uid: pod_uid(config, name),
        addresses: pod.addresses.clone(),
        mode: standing.mode,
        generation: standing.generation,
        plaintext: standing.plaintext,
        capture: CaptureOptions {
            registry_only,
            ..pod.capture.as_deref().cloned().unwrap_or_default()
        },
        probe_ports: pod.probe_ports.clone(),
    })
}

/// Whether a pod should be in the mesh. `namespace` are the labels of its namespace.
pub(crate) fn is_enrolled(
    config: &IndexConfig,
    name: &Name,
    pod: &PodFacts,
    namespace: Option<&Labels>,
) -> bool {
    let excluded = pod.finished
        || pod.host_network
        || pod.has_sidecar
        || config.excluded_namespaces.contains(&name.namespace)
        || is_of_the_mesh(config, name, pod);
    let of_namespace = namespace
        .and_then(|labels| labels.get(labels::DATAPLANE_MODE))
        .map(String::as_str);
    let wish = pod.label(labels::DATAPLANE_MODE);
    !excluded
        && match wish {
            Some(labels::DATAPLANE_MODE_AMBIENT) => true,
            Some(labels::DATAPLANE_MODE_NONE) => false,
            _ => of_namespace == Some(labels::DATAPLANE_MODE_AMBIENT),
        }
}

/// Whether a pod is one of the mesh's own: by our label, or one of Istio's names, in the root namespace.
fn is_of_the_mesh(config: &IndexConfig, name: &Name, pod: &PodFacts) -> bool {
    name.namespace == config.root_namespace
        && (pod.label(labels::PART_OF) == Some(labels::PART_OF_KARST)
            || matches!(
                pod.label(labels::APP),
                Some("ztunnel" | "istiod" | "istio-cni-node")
            ))
}

/// An endpoint of a slice that is no pod.
pub(crate) struct BareEndpoint<'a> {
    pub(crate) slice: &'a Name,
    pub(crate) endpoint: &'a EndpointFacts,
    pub(crate) ip: IpAddr,
    pub(crate) locality: Option<&'a Locality>,
    pub(crate) network: &'a Network,
    pub(crate) service: (ServiceKey, PortMap),
}

/// Its workload: only a destination, without identity and policies, at an address that others may share.
pub(crate) fn of_endpoint(config: &IndexConfig, bare: BareEndpoint<'_>) -> Workload {
    let Name { namespace, name } = bare.slice;
    let uid = format!(
        "{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{}",
        config.cluster_id, bare.ip
    );
    let of_zone = || Locality {
        zone: bare.endpoint.zone.clone(),
        ..Locality::default()
    };
    Workload {
        name: name.clone(),
        namespace: namespace.clone(),
        trust_domain: config.trust_domain.clone(),
        service_account: "".into(),
        addresses: vec![bare.ip],
        network: bare.network.clone(),
        node: bare.endpoint.node.clone(),
        locality: bare.locality.cloned().unwrap_or_else(of_zone),
        host_network: true,
        health: if bare.endpoint.ready {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        services: BTreeMap::from([bare.service]),
        workload_name: name.clone(),
        canonical_name: name.clone(),
        canonical_revision: "latest".into(),
        cluster_id: config.cluster_id.clone(),
        ..Workload::new(&uid)
    }
}
