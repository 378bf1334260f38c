//! A Gateway of the waypoints' class becomes what a cluster's controller would deploy for it: pods that run
//! `karst-waypoint`, and a Service. Pure.

use karst_k8s_api::{
    gateway::{Gateway, gateway_class::WAYPOINT_CLASS},
    k8s_openapi::api::core::v1::{Pod, Service},
    labels,
};
use serde_json::{Value, json};

use crate::{addressing::CONTROLLER, desired::names, mesh::DISCOVERY_PORT};

/// Volume with the waypoint's credential, and where the container sees it.
pub(crate) const RUN_VOLUME: &str = "run";
const RUN_DIR: &str = "/mnt/run";
/// The file in it with which the waypoint joins.
pub(crate) const JOIN_TOKEN: &str = "join-token";
/// User that waypoints run as, Istio's.
const USER: u32 = 1337;
/// Most replicas of one waypoint.
const MOST_REPLICAS: u32 = 50;

/// What is made for one Gateway.
pub(crate) struct Made {
    pub(crate) pods: Vec<Pod>,
    pub(crate) service: Service,
}

/// Whether the lab runs it: of the waypoints' class, and not run by somebody else (`spec.addresses`).
pub(crate) fn is_ours(gateway: &Gateway) -> bool {
    gateway.spec.gateway_class_name == WAYPOINT_CLASS && gateway.spec.addresses.is_empty()
}

/// `<namespace>/<name>` of the waypoint that a pod is a replica of.
pub(crate) fn of_pod(pod: &Pod) -> Option<String> {
    let labels = pod.metadata.labels.as_ref()?;
    let managed = labels.get(labels::GATEWAY_MANAGED)?;
    let gateway = labels.get(labels::GATEWAY_NAME)?;
    (managed == labels::GATEWAY_MANAGED_WAYPOINT)
        .then(|| format!("{}/{gateway}", names(&pod.metadata).0))
}

/// The pods and the Service of a Gateway.
///
/// # Errors
/// What of the Gateway cannot be run.
pub(crate) fn expand(gateway: &Gateway) -> Result<Made, String> {
    let (namespace, name) = names(&gateway.metadata);
    let replicas =
        replicas(gateway).map_err(|error| format!("Gateway {namespace}/{name}: {error}"))?;
    let read = |error: serde_json::Error| format!("Gateway {namespace}/{name}: {error}");
    let pods = (0..replicas).map(|number| {
        serde_json::from_value(pod(gateway, &namespace, &name, number)).map_err(read)
    });
    Ok(Made {
        pods: pods.collect::<Result<_, _>>()?,
        service: serde_json::from_value(service(&namespace, &name)).map_err(read)?,
    })
}

fn replicas(gateway: &Gateway) -> Result<u32, String> {
    let annotations = gateway.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|all| all.get(labels::WAYPOINT_REPLICAS)) else {
        return Ok(1);
    };
    let number = text.parse().ok().filter(|number| *number <= MOST_REPLICAS);
    number.ok_or_else(|| {
        format!(
            "annotation {} is {text:?}, expected 0 to {MOST_REPLICAS}",
            labels::WAYPOINT_REPLICAS
        )
    })
}

/// Labels of everything that is made for a Gateway.
fn made_for(name: &str) -> Value {
    json!({
        labels::GATEWAY_NAME: name,
        labels::GATEWAY_CLASS_NAME: WAYPOINT_CLASS,
        labels::GATEWAY_MANAGED: labels::GATEWAY_MANAGED_WAYPOINT,
    })
}

fn pod(gateway: &Gateway, namespace: &str, name: &str, number: u32) -> Value {
    let mut labels = made_for(name);
    labels[labels::DATAPLANE_MODE] = json!(labels::DATAPLANE_MODE_NONE);
    labels[labels::CANONICAL_NAME] = json!(name);
    labels[labels::CANONICAL_REVISION] = json!("latest");
    let more = gateway.spec.infrastructure.as_ref();
    for (key, value) in more.iter().flat_map(|more| &more.labels) {
        labels[key] = json!(value);
    }
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "metadata": {
            "name": format!("{name}-{number}"),
            "namespace": namespace,
            "labels": labels,
        },
        "spec": {
            "serviceAccountName": name,
            "securityContext": {"runAsUser": USER, "runAsGroup": USER},
            "terminationGracePeriodSeconds": 10,
            "containers": [{
                "name": "waypoint",
                "command": [
                    "karst-waypoint",
                    "--gateway-name", name,
                    "--controller", format!("https://{}:{DISCOVERY_PORT}", CONTROLLER.0),
                    "--join-token-file", format!("{RUN_DIR}/{JOIN_TOKEN}"),
                    "--run-dir", RUN_DIR,
                    "--drain-seconds", "8",
                ],
                "env": [
                    field("POD_NAME", "metadata.name"),
                    field("POD_NAMESPACE", "metadata.namespace"),
                    field("POD_IP", "status.podIP"),
                    field("NODE_NAME", "spec.nodeName"),
                ],
                "ports": [
                    {"name": "mesh", "containerPort": 15008},
                    {"name": "status-port", "containerPort": 15021},
                ],
                "readinessProbe": {
                    "httpGet": {"path": "/healthz/ready", "port": 15021},
                    "periodSeconds": 1,
                },
                "volumeMounts": [{"name": RUN_VOLUME, "mountPath": RUN_DIR}],
            }],
            "volumes": [{"name": RUN_VOLUME, "emptyDir": {}}],
        },
    })
}

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "labels": made_for(name)},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {labels::GATEWAY_NAME: name},
            "ports": [
                {"name": "mesh", "port": 15008, "appProtocol": "hbone"},
                {"name": "status-port", "port": 15021},
            ],
        },
    })
}

/// The status that says that a waypoint has been in place: from then on it is the only way to what is bound to it.
pub(crate) fn in_place(namespace: &str, name: &str) -> Value {
    json!({
        "addresses": [{
            "type": "Hostname",
            "value": format!("{name}.{namespace}.svc.cluster.local"),
        }],
    })
}
