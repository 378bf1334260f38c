//! What a cluster would add to the YAML that somebody wrote: pods of Deployments, addresses, readiness, the pods and the
//! Service of a waypoint. What the YAML says itself stays. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use karst_k8s_api::{
    Kind, Object,
    gateway::{Gateway, gateway_class::WAYPOINT_CLASS},
    k8s_openapi::{
        api::{
            apps::v1::Deployment,
            core::v1::{Pod, Service},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    labels,
};
use serde_json::{Value, json};

/// Pods that are supposed of one Deployment at most: further ones are like them.
const REPLICAS_MAX: i32 = 5;
/// Where pods run that say nothing of it.
const NODE: &str = "node";

/// Adds what is missing. Objects that cannot be supposed stay as they are.
pub(super) fn complete(objects: Vec<Object>) -> Vec<Object> {
    let mut given = Vec::new();
    for object in objects {
        match object {
            Object::Deployment(deployment) => {
                given.extend(pods_of(&deployment));
                given.push(Object::Deployment(deployment));
            }
            Object::Gateway(gateway) if is_waypoint(&gateway) => given.extend(waypoint(*gateway)),
            other => given.push(other),
        }
    }
    given = without_doubles(given);
    given.extend(missing_namespaces(&given));
    if !given.iter().any(|object| matches!(object, Object::Node(_))) {
        given.extend(read(Kind::Node, json!({"metadata": {"name": NODE}})));
    }
    let mut free = Free::of(&given);
    for object in &mut given {
        match object {
            Object::Pod(pod) => place(pod, &mut free),
            Object::Service(service) => address(service, &mut free),
            _ => {}
        }
    }
    given
}

fn read(kind: Kind, value: Value) -> Option<Object> {
    karst_k8s_api::decode::decode(kind, value).object.ok()
}

/// Of objects with one key the first: what was written comes before what is supposed of a later one.
fn without_doubles(objects: Vec<Object>) -> Vec<Object> {
    let mut seen = BTreeSet::new();
    objects
        .into_iter()
        .filter(|object| seen.insert(object.key().to_string()))
        .collect()
}

fn names(metadata: &ObjectMeta) -> (String, String) {
    let namespace = metadata.namespace.clone().filter(|name| !name.is_empty());
    (
        namespace.unwrap_or_else(|| "default".to_owned()),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn pods_of(deployment: &Deployment) -> Vec<Object> {
    let (namespace, name) = names(&deployment.metadata);
    let Some(spec) = &deployment.spec else {
        return Vec::new();
    };
    let replicas = spec.replicas.unwrap_or(1).clamp(0, REPLICAS_MAX);
    let template = serde_json::to_value(&spec.template).unwrap_or_default();
    let pod = |number: i32| {
        let mut pod = template.clone();
        pod["metadata"]["name"] = json!(format!("{name}-{number}"));
        pod["metadata"]["namespace"] = json!(namespace);
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-0"),
            "controller": true, "uid": "",
        }]);
        pod["metadata"]["labels"][labels::POD_TEMPLATE_HASH] = json!("0");
        read(Kind::Pod, pod)
    };
    (0..replicas).filter_map(pod).collect()
}

fn is_waypoint(gateway: &Gateway) -> bool {
    gateway.spec.gateway_class_name == WAYPOINT_CLASS && gateway.spec.addresses.is_empty()
}

/// A waypoint that is in place: its Gateway says so, a replica is ready, and it has its Service.
fn waypoint(mut gateway: Gateway) -> Vec<Object> {
    let (namespace, name) = names(&gateway.metadata);
    let made_for = json!({
        labels::GATEWAY_NAME: name,
        labels::GATEWAY_CLASS_NAME: WAYPOINT_CLASS,
        labels::GATEWAY_MANAGED: labels::GATEWAY_MANAGED_WAYPOINT,
        labels::DATAPLANE_MODE: labels::DATAPLANE_MODE_NONE,
    });
    let pod = json!({
        "metadata": {"name": format!("{name}-0"), "namespace": namespace, "labels": made_for},
        "spec": {"serviceAccountName": name, "containers": []},
    });
    let service = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": made_for},
        "spec": {
            "selector": {labels::GATEWAY_NAME: name},
            "ports": [{"name": "mesh", "port": 15008, "protocol": "TCP", "appProtocol": "hbone"}],
        },
    });
    let mut made: Vec<Object> = read(Kind::Pod, pod).into_iter().collect();
    made.extend(read(Kind::Service, service));
    if let Ok(mut value) = serde_json::to_value(&gateway)
        && value["status"]["addresses"]
            .as_array()
            .is_none_or(Vec::is_empty)
    {
        value["status"] = json!({"addresses": [{"type": "Hostname", "value": format!("{name}.{namespace}.svc")}]});
        if let Ok(in_place) = serde_json::from_value(without_nulls(value)) {
            gateway = in_place;
        }
    }
    made.push(Object::Gateway(Box::new(gateway)));
    made
}

/// A field without a value is no field: strict readers refuse `field: null`.
fn without_nulls(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            for field in fields.values_mut() {
                *field = without_nulls(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_nulls(item.take());
            }
        }
        _ => {}
    }
    value
}

fn missing_namespaces(objects: &[Object]) -> Vec<Object> {
    let there: BTreeSet<String> = objects
        .iter()
        .filter(|object| matches!(object, Object::Namespace(_)))
        .filter_map(|object| object.metadata().name.clone())
        .collect();
    let used: BTreeSet<String> = objects
        .iter()
        .filter(|object| matches!(object, Object::Pod(_) | Object::Service(_)))
        .map(|object| names(object.metadata()).0)
        .collect();
    used.difference(&there)
        .filter_map(|name| read(Kind::Namespace, json!({"metadata": {"name": name}})))
        .collect()
}

/// Addresses that nobody has.
struct Free {
    taken: BTreeSet<IpAddr>,
    pods: u32,
    services: u32,
}

impl Free {
    fn of(objects: &[Object]) -> Self {
        let mut taken = BTreeSet::new();
        for object in objects {
            match object {
                Object::Pod(pod) => taken.extend(pod_addresses(pod)),
                Object::Service(service) => taken.extend(
                    service
                        .spec
                        .iter()
                        .filter_map(|spec| spec.cluster_ip.as_deref()?.parse::<IpAddr>().ok()),
                ),
                _ => {}
            }
        }
        Self {
            taken,
            pods: u32::from(Ipv4Addr::new(10, 244, 0, 1)),
            services: u32::from(Ipv4Addr::new(10, 96, 1, 0)),
        }
    }

    fn pod(&mut self) -> String {
        Self::next(&mut self.pods, &self.taken)
    }

    fn service(&mut self) -> String {
        Self::next(&mut self.services, &self.taken)
    }

    fn next(last: &mut u32, taken: &BTreeSet<IpAddr>) -> String {
        loop {
            *last += 1;
            let ip = Ipv4Addr::from(*last);
            if !taken.contains(&IpAddr::V4(ip)) {
                return ip.to_string();
            }
        }
    }
}

fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let all = status.pod_ip.as_deref().into_iter().chain(many);
    all.filter_map(|ip| ip.parse().ok()).collect()
}

/// A pod without a status is taken to run and to be ready.
fn place(pod: &mut Pod, free: &mut Free) {
    if let Some(spec) = &mut pod.spec {
        spec.node_name.get_or_insert_with(|| NODE.to_owned());
    }
    let addresses = pod_addresses(pod);
    let says_ready = pod
        .status
        .as_ref()
        .is_some_and(|status| status.conditions.is_some() || status.phase.is_some());
    let mut status = pod.status.take().unwrap_or_default();
    if addresses.is_empty() {
        status.pod_ip = Some(free.pod());
    }
    if !says_ready {
        status.phase = Some("Running".to_owned());
        let ready = json!([{"type": "Ready", "status": "True"}]);
        status.conditions = serde_json::from_value(ready).ok();
    }
    pod.status = Some(status);
}

fn address(service: &mut Service, free: &mut Free) {
    let Some(spec) = &mut service.spec else {
        return;
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    if !external && spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
        let ip = free.service();
        spec.cluster_ips = Some(vec![ip.clone()]);
        spec.cluster_ip = Some(ip);
    }
}
