//! Takes away what nobody reads, on arrival: a list of all pods of a large cluster waits in memory until every kind is
//! there, and most of a Pod is volumes, variables and status.

use std::collections::BTreeMap;

use karst_index::ROOTS_KEY;
use karst_k8s_api::{
    Object,
    k8s_openapi::{
        api::core::v1::{
            Container, Node, NodeSpec, Pod, PodSpec, PodStatus, Service, ServiceStatus,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    labels::CONFIG_MIRROR,
};

/// The annotation with which `kubectl apply` remembers a whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object without what the index does not read.
pub(super) fn trim(mut object: Object) -> Object {
    match &mut object {
        Object::Pod(pod) => trim_pod(pod),
        Object::Node(node) => trim_node(node),
        Object::Service(service) => trim_service(service),
        Object::Namespace(namespace) => {
            trim_meta(&mut namespace.metadata);
            namespace.spec = None;
        }
        Object::EndpointSlice(slice) => trim_meta(&mut slice.metadata),
        Object::ServiceAccount(account) => trim_meta(&mut account.metadata),
        Object::ConfigMap(map) => {
            trim_meta(&mut map.metadata);
            map.binary_data = None;
            if let Some(data) = &mut map.data {
                data.retain(|name, _| name == ROOTS_KEY);
            }
        }
        _ => {}
    }
    object
}

fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.finalizers = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn trim_node(node: &mut Node) {
    trim_meta(&mut node.metadata);
    node.metadata.annotations = None;
    node.spec = Some(NodeSpec::default());
    node.status = None;
}

fn trim_service(service: &mut Service) {
    trim_meta(&mut service.metadata);
    // What we have said of it is there.
    let conditions = service.status.take().and_then(|status| status.conditions);
    service.status = conditions.map(|conditions| ServiceStatus {
        conditions: Some(conditions),
        ..ServiceStatus::default()
    });
}

fn trim_pod(pod: &mut Pod) {
    trim_meta(&mut pod.metadata);
    if let Some(annotations) = &mut pod.metadata.annotations {
        keep_ours(annotations);
    }
    let spec = pod.spec.take().unwrap_or_default();
    pod.spec = Some(PodSpec {
        node_name: spec.node_name,
        service_account_name: spec.service_account_name,
        host_network: spec.host_network,
        containers: spec.containers.into_iter().map(trim_container).collect(),
        init_containers: spec
            .init_containers
            .map(|all| all.into_iter().map(trim_container).collect()),
        ..PodSpec::default()
    });
    let status = pod.status.take().unwrap_or_default();
    pod.status = Some(PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        conditions: status.conditions.map(|mut all| {
            all.retain(|condition| condition.type_ == "Ready");
            all
        }),
        ..PodStatus::default()
    });
}

/// Annotations of the mesh are all in one of its domains, but for the one that tells static pods.
fn keep_ours(annotations: &mut BTreeMap<String, String>) {
    let ours = |name: &str| {
        let domain = name.split('/').next().unwrap_or_default();
        domain.ends_with("istio.io") || domain.ends_with("karst.dev") || name == CONFIG_MIRROR
    };
    annotations.retain(|name, _| ours(name));
}

fn trim_container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        liveness_probe: container.liveness_probe,
        readiness_probe: container.readiness_probe,
        startup_probe: container.startup_probe,
        lifecycle: container.lifecycle,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use karst_index::{Event, Index, IndexConfig};
    use karst_k8s_api::Kind;
    use serde_json::json;

    use super::*;

    /// A pod with something in every field that the index reads, and much that it does not.
    fn pod() -> Object {
        let probe = |port: serde_json::Value| json!({"httpGet": {"port": port}});
        let container = json!({
            "name": "app", "image": "app:1", "env": [{"name": "A", "value": "b"}],
            "ports": [{"name": "web", "containerPort": 8080}],
            "livenessProbe": probe("web".into()), "readinessProbe": probe(9000.into()), "startupProbe": probe(9001.into()),
            "lifecycle": {"preStop": {"httpGet": {"port": 9002}}},
        });
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 7000}],
            "livenessProbe": probe("side".into())});
        let pod = json!({
            "metadata": {
                "name": "orders-7d9f-x", "namespace": "shop", "uid": "u1", "resourceVersion": "5",
                "labels": {"app": "orders", "pod-template-hash": "7d9f"},
                "annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "25", "other.example/big": "x",
                                "sidecar.istio.io/status": "{}", LAST_APPLIED: "{}"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-7d9f", "uid": "r", "controller": true}],
                "finalizers": ["f"],
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "orders", "containers": [container], "initContainers": [sidecar],
                     "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}],
                       "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
                       "containerStatuses": []},
        });
        Object::deserialize(Kind::Pod, pod).unwrap()
    }

    fn published(object: Object) -> String {
        let mut index = Index::new(IndexConfig::default());
        let namespace =
            json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
        let namespace = Object::deserialize(Kind::Namespace, namespace).unwrap();
        let delta = index.handle_all([Event::Apply(namespace), Event::Apply(object)]);
        format!("{delta:?}")
    }

    #[test]
    fn the_index_makes_the_same_of_a_trimmed_pod() {
        let trimmed = trim(pod());
        let json = format!("{trimmed:?}");
        for gone in ["other.example", "app:1", "Initialized", LAST_APPLIED] {
            assert!(!json.contains(gone), "{gone} is still there: {json}");
        }
        assert_eq!(published(trimmed), published(pod()));
    }

    #[test]
    fn of_a_config_map_its_roots_stay() {
        let map = json!({
            "metadata": {"name": "roots", "namespace": "shop"},
            "data": {"ca.crt": "PEM", "secret.conf": "x"}, "binaryData": {"big": "AAAA"},
        });
        let map = trim(Object::deserialize(Kind::ConfigMap, map).unwrap());
        let text = format!("{map:?}");
        assert!(text.contains("PEM"), "{text}");
        assert!(
            !text.contains("secret.conf") && !text.contains("big"),
            "{text}"
        );
    }

    #[test]
    fn the_index_makes_the_same_of_a_trimmed_static_pod() {
        const HASH: &str = "0123456789abcdef0123456789abcdef";
        let of_a_file = || {
            let Object::Pod(mut pod) = pod() else {
                unreachable!("made as one")
            };
            let meta = &mut pod.metadata;
            let mirror = (CONFIG_MIRROR.to_owned(), HASH.to_owned());
            meta.annotations.get_or_insert_default().extend([mirror]);
            meta.owner_references
                .iter_mut()
                .flatten()
                .for_each(|owner| "Node".clone_into(&mut owner.kind));
            Object::Pod(pod)
        };
        assert!(published(of_a_file()).contains(HASH));
        assert_eq!(published(trim(of_a_file())), published(of_a_file()));
    }
}
