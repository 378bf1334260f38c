//! From the user's objects to what the lab runs: Deployments become pods with stable names, pods get a node. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use karst_k8s_api::{
    Object,
    gateway::Gateway,
    k8s_openapi::{
        api::{
            apps::v1::Deployment,
            core::v1::{ConfigMap, Namespace, Node, Pod, PodSpec, Service},
            discovery::v1::EndpointSlice,
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    },
    labels,
};
use xxhash_rust::xxh64::xxh64;

use crate::waypoint;

/// Annotation that pins a pod's IPv4 address (and with it the IPv6 one): for tests of address reuse.
pub(crate) const WANTED_IP: &str = "lab.karst.dev/ip";
/// What takes the place of a ReplicaSet's hash in the names of a Deployment's pods.
const TEMPLATE_HASH: &str = "lab";
/// Most nodes and pods of one lab.
const MOST_NODES: usize = 200;
const MOST_PODS: usize = 2_000;

/// Everything that should be there.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<DesiredPod>,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
    /// Gateways that are waypoints: their pods and services are among the others.
    pub(crate) gateways: Vec<Gateway>,
    /// Objects that pass to the controller as they are.
    pub(crate) others: Vec<Object>,
    /// What the YAML asks for and the lab does not do.
    pub(crate) warnings: Vec<String>,
}

/// One pod to run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DesiredPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) pod: Pod,
    pub(crate) config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Changes when the pod must be started anew; labels and annotations leave it as it is.
    pub(crate) fingerprint: u64,
    pub(crate) wanted_ip: Option<Ipv4Addr>,
    /// The waypoint that it is a replica of, as `<namespace>/<name>`.
    pub(crate) waypoint: Option<String>,
}

impl DesiredPod {
    pub(crate) fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }
}

/// Lowers the objects.
///
/// # Errors
/// One line for each thing that cannot be run, with the object's name.
pub(crate) fn desired(objects: &[&Object]) -> Result<Desired, Vec<String>> {
    let mut desired = Desired::default();
    let mut problems = Vec::new();
    let (mut pods, mut config_maps) = (Vec::new(), BTreeMap::new());
    for &object in objects {
        match object {
            Object::Node(node) => desired.nodes.push((**node).clone()),
            Object::Pod(pod) => pods.push((**pod).clone()),
            Object::Deployment(deployment) => pods.extend(expand(deployment)),
            Object::Service(service) => desired.services.push((**service).clone()),
            Object::EndpointSlice(slice) => desired.slices.push((**slice).clone()),
            Object::ConfigMap(map) => {
                let (namespace, name) = names(&map.metadata);
                config_maps.insert((namespace, name), contents(map));
                // The mesh configuration is one too, and the controller's to read.
                desired.others.push(object.clone());
            }
            Object::Gateway(gateway) if waypoint::is_ours(gateway) => {
                match waypoint::expand(gateway) {
                    Ok(made) => {
                        pods.extend(made.pods);
                        desired.services.push(made.service);
                    }
                    Err(problem) => problems.push(problem),
                }
                desired.gateways.push((**gateway).clone());
            }
            other => desired.others.push(other.clone()),
        }
    }
    if desired.nodes.is_empty() {
        desired.nodes.push(Node {
            metadata: named("node1"),
            ..Node::default()
        });
    }
    desired
        .nodes
        .sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    add_missing_namespaces(&mut desired.others, &pods, &desired.services);
    if let Err(more) = place(&mut desired, pods, &config_maps) {
        problems.extend(more);
    }
    match problems.is_empty() {
        true => Ok(desired),
        false => Err(problems),
    }
}

fn place(
    desired: &mut Desired,
    pods: Vec<Pod>,
    config_maps: &BTreeMap<(String, String), BTreeMap<String, String>>,
) -> Result<(), Vec<String>> {
    let nodes: Vec<String> = desired
        .nodes
        .iter()
        .map(|node| names(&node.metadata).1)
        .collect();
    let mut problems = Vec::new();
    if nodes.len() > MOST_NODES || pods.len() > MOST_PODS {
        problems.push(format!(
            "{} nodes and {} pods: a lab holds at most {MOST_NODES} and {MOST_PODS}",
            nodes.len(),
            pods.len()
        ));
    }
    for (position, pod) in pods.into_iter().enumerate() {
        let at = position_on(&pod, position);
        match place_one(pod, &nodes, at, config_maps) {
            Ok((pod, warnings)) => {
                desired.pods.push(pod);
                desired.warnings.extend(warnings);
            }
            Err(problem) => problems.push(problem),
        }
    }
    desired.pods.sort_by_key(DesiredPod::key);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Replicas spread over nodes, and a pod keeps its node when others come or go: by its owner's name and number.
fn position_on(pod: &Pod, position: usize) -> usize {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let (owner, number) = name.rsplit_once('-').unwrap_or((name, ""));
    number.parse::<usize>().map_or(position, |number| {
        (xxh64(owner.as_bytes(), 0) % 1024) as usize + number
    })
}

fn place_one(
    pod: Pod,
    nodes: &[String],
    position: usize,
    config_maps: &BTreeMap<(String, String), BTreeMap<String, String>>,
) -> Result<(DesiredPod, Vec<String>), String> {
    let (namespace, name) = names(&pod.metadata);
    let what = format!("Pod {namespace}/{name}");
    let spec = pod
        .spec
        .clone()
        .ok_or_else(|| format!("{what}: spec is missing"))?;
    let wanted = spec.node_name.clone().or_else(|| {
        spec.node_selector
            .as_ref()?
            .get("kubernetes.io/hostname")
            .cloned()
    });
    let node = match wanted {
        Some(node) if nodes.contains(&node) => node,
        Some(node) => {
            return Err(format!(
                "{what}: no Node {node:?}: there are {}",
                nodes.join(", ")
            ));
        }
        None => nodes[position % nodes.len()].clone(),
    };
    for container in &spec.containers {
        if container.command.as_ref().is_none_or(Vec::is_empty) {
            return Err(format!(
                "{what}: container {:?} has no command: lab pods run host commands, not images",
                container.name
            ));
        }
    }
    let mut maps = BTreeMap::new();
    for source in spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.config_map.as_ref())
    {
        let key = (namespace.clone(), source.name.clone());
        let data = config_maps
            .get(&key)
            .ok_or_else(|| format!("{what}: no ConfigMap {namespace}/{}", key.1))?;
        maps.insert(source.name.clone(), data.clone());
    }
    let wanted_ip = match pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(WANTED_IP))
    {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|error| format!("{what}: annotation {WANTED_IP}: {text:?}: {error}"))?,
        ),
    };
    let warnings = unsupported(&spec)
        .into_iter()
        .map(|field| format!("{what}: {field} is not done in the lab"))
        .collect();
    let waypoint = waypoint::of_pod(&pod);
    let fingerprint = fingerprint(&spec, &maps, &node, wanted_ip);
    Ok((
        DesiredPod {
            namespace,
            name,
            node,
            pod,
            config_maps: maps,
            fingerprint,
            wanted_ip,
            waypoint,
        },
        warnings,
    ))
}

fn fingerprint(
    spec: &PodSpec,
    maps: &BTreeMap<String, BTreeMap<String, String>>,
    node: &str,
    ip: Option<Ipv4Addr>,
) -> u64 {
    let text = serde_json::to_vec(&(spec, maps, node, ip)).unwrap_or_default();
    xxh64(&text, 0)
}

fn unsupported(spec: &PodSpec) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut note = |present: bool, field| {
        if present {
            found.insert(field);
        }
    };
    note(spec.host_network == Some(true), "spec.hostNetwork");
    note(
        spec.init_containers
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        "spec.initContainers",
    );
    for container in &spec.containers {
        note(container.lifecycle.is_some(), "lifecycle");
        note(container.liveness_probe.is_some(), "livenessProbe");
        note(container.startup_probe.is_some(), "startupProbe");
        note(
            container
                .env_from
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "envFrom",
        );
    }
    for volume in spec.volumes.iter().flatten() {
        note(
            volume.config_map.is_none() && volume.empty_dir.is_none(),
            "a volume that is neither emptyDir nor configMap",
        );
    }
    found
}

fn contents(map: &ConfigMap) -> BTreeMap<String, String> {
    map.data.clone().unwrap_or_default()
}

/// A Deployment's pods: `<name>-0`, `<name>-1`, ... owned by the ReplicaSet that a cluster would make.
fn expand(deployment: &Deployment) -> Vec<Pod> {
    let (namespace, name) = names(&deployment.metadata);
    let Some(spec) = &deployment.spec else {
        return Vec::new();
    };
    let template = &spec.template;
    let replicas = spec.replicas.unwrap_or(1).clamp(0, 1_000);
    (0..replicas)
        .map(|number| {
            let mut metadata = template.metadata.clone().unwrap_or_default();
            metadata.name = Some(format!("{name}-{number}"));
            metadata.namespace = Some(namespace.clone());
            metadata.generate_name = Some(format!("{name}-{TEMPLATE_HASH}-"));
            metadata.labels.get_or_insert_default().insert(
                labels::POD_TEMPLATE_HASH.to_owned(),
                TEMPLATE_HASH.to_owned(),
            );
            metadata.owner_references = Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                name: format!("{name}-{TEMPLATE_HASH}"),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
            Pod {
                metadata,
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

fn add_missing_namespaces(others: &mut Vec<Object>, pods: &[Pod], services: &[Service]) {
    let there: BTreeSet<String> = others
        .iter()
        .filter(|object| matches!(object, Object::Namespace(_)))
        .filter_map(|object| object.metadata().name.clone())
        .collect();
    let used = pods
        .iter()
        .map(|pod| &pod.metadata)
        .chain(services.iter().map(|service| &service.metadata));
    let mut used: BTreeSet<String> = used.map(|metadata| names(metadata).0).collect();
    used.insert("default".to_owned());
    for name in used.difference(&there) {
        others.push(Object::Namespace(Box::new(Namespace {
            metadata: named(name),
            ..Namespace::default()
        })));
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

/// Namespace (`default` where none is given) and name.
pub(crate) fn names(metadata: &ObjectMeta) -> (String, String) {
    let namespace = metadata
        .namespace
        .clone()
        .filter(|namespace| !namespace.is_empty());
    (
        namespace.unwrap_or_else(|| "default".to_owned()),
        metadata.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(yaml: &str) -> Vec<Object> {
        let (objects, problems) = karst_files::parse(std::path::Path::new("t.yaml"), yaml);
        assert!(problems.is_empty(), "{problems:?}");
        objects
    }

    fn lower(yaml: &str) -> Result<Desired, Vec<String>> {
        let objects = objects(yaml);
        desired(&objects.iter().collect::<Vec<_>>())
    }

    const TWO_NODES: &str = "{apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: n2}}\n---\n";

    fn deployment(replicas: u32, command: &str) -> String {
        format!(
            "{TWO_NODES}\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web, namespace: a}}, spec: {{replicas: {replicas}, \
             selector: {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: [{{name: c, command: [{command}]}}]}}}}}}}}"
        )
    }

    #[test]
    fn a_deployment_becomes_pods_that_spread_over_nodes() {
        let desired = lower(&deployment(2, "sleep")).unwrap();
        let names: Vec<_> = desired.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["web-0", "web-1"]);
        assert_ne!(desired.pods[0].node, desired.pods[1].node);
        assert!(
            desired
                .others
                .iter()
                .any(|object| object.key().to_string() == "Namespace a")
        );
    }

    #[test]
    fn scaling_leaves_the_other_pods_as_they_are() {
        let (two, three) = (
            lower(&deployment(2, "sleep")).unwrap(),
            lower(&deployment(3, "sleep")).unwrap(),
        );
        assert_eq!(two.pods[..], three.pods[..2]);
        let changed = lower(&deployment(2, "other")).unwrap();
        assert_ne!(two.pods[0].fingerprint, changed.pods[0].fingerprint);
    }

    #[test]
    fn a_waypoint_is_pods_and_a_service() {
        let gateway = |replicas: &str| {
            format!(
                "{TWO_NODES}\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: w, namespace: a, annotations: {{karst.dev/replicas: '{replicas}'}}}}, \
                 spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}}}"
            )
        };
        let desired = lower(&gateway("2")).unwrap();
        let waypoints: Vec<_> = desired
            .pods
            .iter()
            .map(|pod| pod.waypoint.as_deref())
            .collect();
        assert_eq!(waypoints, [Some("a/w"), Some("a/w")]);
        assert_eq!(
            desired.pods[0].spec().service_account_name.as_deref(),
            Some("w")
        );
        assert_eq!(desired.services[0].metadata.name.as_deref(), Some("w"));
        let error = lower(&gateway("many")).err().unwrap();
        assert!(error[0].contains("expected 0 to"), "{error:?}");
        let other = gateway("1").replace("istio-waypoint", "nginx");
        assert!(lower(&other).unwrap().pods.is_empty());
    }

    #[test]
    fn what_cannot_run_is_named() {
        let pod = |spec: &str| {
            format!(
                "{TWO_NODES}\n{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {spec}}}"
            )
        };
        let error = lower(&pod("{containers: [{name: c, image: nginx}]}")).unwrap_err();
        assert!(error[0].contains("lab pods run host commands"), "{error:?}");
        let error = lower(&pod(
            "{nodeName: n9, containers: [{name: c, command: [x]}]}",
        ))
        .unwrap_err();
        assert!(error[0].contains("there are n1, n2"), "{error:?}");
    }
}
