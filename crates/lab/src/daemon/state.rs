//! What the daemon knows and the steps that make the lab as it should be: nodes, pods, translation, names, objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, PoisonError, mpsc::Sender},
};

use karst_files::Severity;
use karst_k8s_api::{
    Object,
    k8s_openapi::api::core::v1::{Node, Service},
};
use serde_json::{Value, json};

use crate::{
    LabError,
    addressing::{HostNumbers, NodeAddresses, ServiceAddresses, cluster_dns},
    cgroup,
    daemon::{Families, Options, notifier},
    desired::{Desired, DesiredPod, desired, names},
    dns::{self, SharedZone},
    mesh::{self, Kept},
    names::LabName,
    network::{self, PodNetwork},
    pod::{PodPlan, PodState, RunningPod},
    resolved::{ResolvedObjects, to_json},
    services::{self, Backend},
    status::{NodeStatus, Phase, PodStatus, ServiceStatus, Status},
    waypoint,
};

struct NodeEntry {
    addresses: NodeAddresses,
    hosts: HostNumbers,
    agent: Option<Kept>,
    /// What was last loaded.
    ruleset: String,
}

struct PodEntry {
    desired: DesiredPod,
    uid: String,
    host: u8,
    network: PodNetwork,
    running: RunningPod,
    user: u32,
    started: String,
    /// Set when it began to leave.
    deleted: Option<String>,
}

/// All state of the daemon.
pub(crate) struct Core {
    lab: LabName,
    options: Options,
    changed: Sender<()>,
    directory: karst_files::Directory,
    problems: Vec<String>,
    desired: Desired,
    nodes: BTreeMap<String, NodeEntry>,
    pods: BTreeMap<(String, String), PodEntry>,
    leaving: Vec<PodEntry>,
    addresses: ServiceAddresses,
    controller: Option<Kept>,
    /// Waypoints that have been in place, by namespace and name.
    in_place: BTreeSet<(String, String)>,
    resolved: ResolvedObjects,
    zone: SharedZone,
}

impl Core {
    pub(crate) fn new(
        lab: LabName,
        options: Options,
        changed: Sender<()>,
    ) -> Result<Self, LabError> {
        let logs = lab.logs_dir();
        std::fs::create_dir_all(&logs)
            .map_err(LabError::io(format!("making {}", logs.display())))?;
        network::create_fabric(&lab, options.mtu)?;
        let resolved = ResolvedObjects::new(lab.objects_dir())?;
        Ok(Self {
            lab,
            options,
            changed,
            directory: karst_files::Directory::new(),
            problems: Vec::new(),
            desired: Desired::default(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            leaving: Vec::new(),
            addresses: ServiceAddresses::default(),
            controller: None,
            in_place: BTreeSet::new(),
            resolved,
            zone: SharedZone::default(),
        })
    }

    /// Reads the directory and starts to make it so. Broken objects stay as they were last good.
    pub(crate) fn apply(
        &mut self,
        dir: &Path,
        progress: &mut dyn FnMut(String),
    ) -> Result<(), LabError> {
        let files = karst_files::read_dir(dir)
            .map_err(|error| LabError::Objects(vec![format!("{error}: {}", error.source)]))?;
        let (_events, problems) = self.directory.update(files);
        self.problems = problems.iter().map(ToString::to_string).collect();
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count();
        let desired = desired(&self.directory.objects()).map_err(LabError::Objects)?;
        self.problems.extend(
            desired
                .warnings
                .iter()
                .map(|warning| format!("warning: {warning}")),
        );
        for problem in &self.problems {
            progress(problem.clone());
        }
        if errors > 0 && self.nodes.is_empty() {
            return Err(LabError::Objects(vec![format!(
                "{errors} objects cannot be used, see above: correct them and try again"
            )]));
        }
        self.desired = desired;
        if !self.options.mesh {
            self.desired.pods.retain(|pod| pod.waypoint.is_none());
        }
        for service in &mut self.desired.services {
            assign_addresses(service, &mut self.addresses, self.options.families);
        }
        self.add_nodes(progress)?;
        for (key, entry) in &mut self.pods {
            match self.desired.pods.iter().find(|pod| pod.key() == *key) {
                Some(pod) if pod.fingerprint == entry.desired.fingerprint => {
                    entry.desired = pod.clone()
                }
                _ => entry.leave(),
            }
        }
        let leaving: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.deleted.is_some())
            .map(|(key, _)| key.clone())
            .collect();
        self.leaving
            .extend(leaving.iter().filter_map(|key| self.pods.remove(key)));
        self.refresh()
    }

    fn add_nodes(&mut self, progress: &mut dyn FnMut(String)) -> Result<(), LabError> {
        let wanted: Vec<String> = self
            .desired
            .nodes
            .iter()
            .map(|node| names(&node.metadata).1)
            .collect();
        if let Some(gone) = self.nodes.keys().find(|name| !wanted.contains(name)) {
            return Err(LabError::Objects(vec![format!(
                "Node {gone} is gone from the YAML: nodes stay until `karst lab down`"
            )]));
        }
        let new: Vec<String> = wanted
            .into_iter()
            .filter(|name| !self.nodes.contains_key(name))
            .collect();
        for name in &new {
            progress(format!("making node {name}"));
            let index = u8::try_from(self.nodes.len()).unwrap_or(u8::MAX);
            let addresses = NodeAddresses::new(index);
            network::create_node(&self.lab, name, &addresses, self.options.mtu)?;
            dns::serve(&self.lab.node(name), &self.zone)?;
            let entry = NodeEntry {
                addresses,
                hosts: HostNumbers::default(),
                agent: None,
                ruleset: String::new(),
            };
            self.nodes.insert(name.clone(), entry);
        }
        if !new.is_empty() {
            self.connect_nodes()?;
        }
        self.start_mesh(progress)
    }

    fn connect_nodes(&self) -> Result<(), LabError> {
        for (name, node) in &self.nodes {
            network::route_to_node(&self.lab, None, &node.addresses)?;
            for other in self
                .nodes
                .iter()
                .filter(|(other, _)| *other != name)
                .map(|(_, other)| other)
            {
                network::route_to_node(&self.lab, Some(name), &other.addresses)?;
            }
        }
        Ok(())
    }

    fn start_mesh(&mut self, progress: &mut dyn FnMut(String)) -> Result<(), LabError> {
        if !self.options.mesh {
            return Ok(());
        }
        if self.controller.is_none() {
            progress("starting the controller".to_owned());
            // It must find the objects of the first apply, else agents would first be told of an empty cluster.
            self.write_objects()?;
            self.controller = Some(mesh::controller(&self.lab)?);
        }
        for (name, node) in &mut self.nodes {
            if node.agent.is_none() {
                progress(format!("starting the agent of {name}"));
                node.agent = Some(mesh::agent(&self.lab, name, self.options.families)?);
            }
        }
        Ok(())
    }

    /// Starts pods whose place is free, and brings everything that depends on pods up to date.
    pub(crate) fn refresh(&mut self) -> Result<(), LabError> {
        let (gone, leaving): (Vec<_>, Vec<_>) = self
            .leaving
            .drain(..)
            .partition(|entry| entry.running.is_gone());
        self.leaving = leaving;
        for entry in gone {
            if let Some(node) = self.nodes.get_mut(&entry.desired.node) {
                node.hosts.release(entry.host);
            }
        }
        for pod in self.missing_pods() {
            self.start_pod(pod)?;
        }
        self.update_services()?;
        self.write_objects()
    }

    /// Pods that should be there and are not, and whose predecessor of the same name is gone.
    fn missing_pods(&self) -> Vec<DesiredPod> {
        let free = |pod: &&DesiredPod| {
            let key = pod.key();
            !self.pods.contains_key(&key)
                && !self.leaving.iter().any(|entry| entry.desired.key() == key)
        };
        self.desired.pods.iter().filter(free).cloned().collect()
    }

    pub(crate) fn pods_are_missing(&self) -> bool {
        self.desired
            .pods
            .iter()
            .any(|pod| !self.pods.contains_key(&pod.key()))
    }

    pub(crate) fn pods_are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    fn start_pod(&mut self, pod: DesiredPod) -> Result<(), LabError> {
        let full = || format!("Pod {}/{}", pod.namespace, pod.name);
        let node = self
            .nodes
            .get_mut(&pod.node)
            .ok_or_else(|| LabError::NotFound(format!("{}: no node {}", full(), pod.node)))?;
        let wanted = match pod.wanted_ip {
            None => None,
            Some(ip) => Some(node.addresses.host_of(ip).ok_or_else(|| {
                let (v4, _) = node.addresses.pod_cidrs();
                LabError::Objects(vec![format!(
                    "{}: address {ip} is not one of {v4}, the pods of {}",
                    full(),
                    pod.node
                )])
            })?),
        };
        // An address that another pod still holds becomes free when that pod is gone: the next refresh tries again.
        let Some(host) = node.hosts.take(wanted) else {
            return Ok(());
        };
        let (v4, v6) = node.addresses.pod(host);
        let uid = new_uid();
        let network = PodNetwork {
            netns: self.lab.pod(&pod.node, &pod.namespace, &pod.name),
            node_netns: self.lab.node(&pod.node),
            host_veth: format!("veth{}", uid.get(..8).unwrap_or_default()),
            v4: (self.options.families == Families::Dual).then_some(v4),
            v6,
        };
        let join_token = match &pod.waypoint {
            Some(waypoint) => Some(mesh::waypoint_token(&self.lab, waypoint, &pod.node)?),
            None => None,
        };
        let plan = PodPlan {
            join_token,
            lab: self.lab.clone(),
            uid: uid.clone(),
            pod: pod.clone(),
            network: network.clone(),
            mtu: self.options.mtu,
            mesh: self.options.mesh,
            host_ip: node.addresses.node().0.into(),
            cluster_dns: cluster_dns(self.options.families),
        };
        let user = plan.user(None).0;
        let running = RunningPod::start(plan, notifier(&self.changed));
        let entry = PodEntry {
            uid,
            host,
            network,
            running,
            user,
            started: now(),
            deleted: None,
            desired: pod,
        };
        self.pods.insert(entry.desired.key(), entry);
        Ok(())
    }

    fn update_services(&mut self) -> Result<(), LabError> {
        let backends: Vec<Backend> = self.pods.values().map(PodEntry::backend).collect();
        let Desired {
            services, slices, ..
        } = &self.desired;
        let zone = services::zone(services, slices, &backends);
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
        for (name, node) in &mut self.nodes {
            let ruleset = services::ruleset(name, services, slices, &backends);
            if node.ruleset != ruleset {
                services::apply(&self.lab.node(name), &ruleset)?;
                node.ruleset = ruleset;
            }
        }
        Ok(())
    }

    fn write_objects(&mut self) -> Result<(), LabError> {
        self.note_waypoints();
        let Desired {
            nodes,
            services,
            slices,
            gateways,
            others,
            ..
        } = &self.desired;
        let gateways = gateways.iter().map(|gateway| {
            let mut value = to_json(&Object::Gateway(Box::new(gateway.clone())));
            let (namespace, name) = names(&gateway.metadata);
            let key = (namespace, name);
            if self.in_place.contains(&key) && value["status"].is_null() {
                value["status"] = waypoint::in_place(&key.0, &key.1);
            }
            value
        });
        let entries = self.pods.values().chain(&self.leaving);
        let nodes = nodes.iter().map(|node| self.resolved_node(node));
        let pods = entries.map(|entry| entry.resolved(self.node_ips(&entry.desired.node)));
        let services = services
            .iter()
            .map(|service| to_json(&Object::Service(Box::new(service.clone()))));
        let slices = slices
            .iter()
            .map(|slice| to_json(&Object::EndpointSlice(Box::new(slice.clone()))));
        let all: Vec<Value> = nodes
            .chain(pods)
            .chain(services)
            .chain(slices)
            .chain(gateways)
            .chain(others.iter().map(to_json))
            .collect();
        self.resolved.write(all)
    }

    /// A waypoint has been in place once one of its replicas was ready.
    fn note_waypoints(&mut self) {
        let wanted: BTreeSet<_> = self
            .desired
            .gateways
            .iter()
            .map(|gateway| names(&gateway.metadata))
            .collect();
        self.in_place.retain(|key| wanted.contains(key));
        let ready = self
            .pods
            .values()
            .filter(|entry| entry.running.state().ready);
        let ready = ready.filter_map(|entry| entry.desired.waypoint.as_deref()?.split_once('/'));
        self.in_place
            .extend(ready.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())));
    }

    fn node_ips(&self, name: &str) -> Vec<IpAddr> {
        let ips = self.nodes.get(name).map(|node| node.addresses.node());
        ips.map(|(v4, v6)| vec![v4.into(), v6.into()])
            .unwrap_or_default()
    }

    fn resolved_node(&self, node: &Node) -> Value {
        let mut node = node.clone();
        let name = names(&node.metadata).1;
        node.metadata
            .labels
            .get_or_insert_default()
            .insert("kubernetes.io/hostname".to_owned(), name.clone());
        let mut value = to_json(&Object::Node(Box::new(node)));
        let addresses: Vec<Value> = self
            .node_ips(&name)
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        value["status"] =
            json!({"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]});
        value
    }

    /// The agent of a node; errors say what is there instead.
    pub(crate) fn agent(&self, node: &str) -> Result<&Kept, String> {
        let all = || self.nodes.keys().cloned().collect::<Vec<_>>().join(", ");
        let entry = self
            .nodes
            .get(node)
            .ok_or_else(|| format!("no node {node}: there are {}", all()))?;
        entry
            .agent
            .as_ref()
            .ok_or_else(|| "this lab runs without the mesh (--no-mesh)".to_owned())
    }

    pub(crate) fn controller(&self) -> Result<&Kept, String> {
        self.controller
            .as_ref()
            .ok_or_else(|| "this lab runs without the mesh (--no-mesh)".to_owned())
    }

    pub(crate) fn status(&self) -> Status {
        let node = |(name, entry): (&String, &NodeEntry)| NodeStatus {
            name: name.clone(),
            netns: self.lab.node(name),
            addresses: self.node_ips(name),
            agent: entry.agent.as_ref().map(Kept::status),
        };
        let service = |service: &Service| {
            let (namespace, name) = names(&service.metadata);
            let addresses = service
                .spec
                .as_ref()
                .and_then(|spec| spec.cluster_ips.clone())
                .unwrap_or_default();
            ServiceStatus {
                namespace,
                name,
                addresses,
            }
        };
        Status {
            name: self.lab.to_string(),
            mesh: self.options.mesh,
            controller: self.controller.as_ref().map(Kept::status),
            nodes: self.nodes.iter().map(node).collect(),
            pods: self
                .pods
                .values()
                .chain(&self.leaving)
                .map(|entry| entry.status(&self.lab))
                .collect(),
            services: self.desired.services.iter().map(service).collect(),
            problems: self.problems.clone(),
        }
    }
}

impl PodEntry {
    fn leave(&mut self) {
        self.deleted = Some(now());
        self.running.stop();
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.network.addresses()
    }

    fn backend(&self) -> Backend {
        let state = self.running.state();
        let PodState { ready, phase, .. } = state;
        let DesiredPod { node, pod, .. } = self.desired.clone();
        Backend {
            node,
            pod,
            addresses: self.addresses(),
            ready,
            terminating: phase == Phase::Terminating,
        }
    }

    fn status(&self, lab: &LabName) -> PodStatus {
        let PodState {
            phase,
            ready,
            restarts,
            pids,
            message,
        } = self.running.state();
        let DesiredPod {
            namespace,
            name,
            node,
            ..
        } = self.desired.clone();
        let group = cgroup::path(lab, &format!("{node}/pods/pod{}", self.uid));
        PodStatus {
            namespace,
            name,
            node,
            phase,
            ready,
            restarts,
            pids,
            message,
            uid: self.uid.clone(),
            netns: self.network.netns.clone(),
            addresses: self.addresses(),
            cgroup: group
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            user: self.user,
        }
    }

    /// The Pod as the API server would show it.
    fn resolved(&self, host: Vec<IpAddr>) -> Value {
        let PodState { phase, ready, .. } = self.running.state();
        let mut value = to_json(&Object::Pod(Box::new(self.desired.pod.clone())));
        let metadata = &mut value["metadata"];
        metadata["namespace"] = json!(self.desired.namespace);
        metadata["uid"] = json!(self.uid);
        metadata["creationTimestamp"] = json!(self.started);
        if let Some(deleted) = &self.deleted {
            metadata["deletionTimestamp"] = json!(deleted);
        }
        value["spec"]["nodeName"] = json!(self.desired.node);
        let wrap = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        value["status"] = json!({
            "phase": phase.kubernetes(),
            "podIP": self.network.primary(), "podIPs": wrap(&self.addresses()),
            "hostIP": host.first(), "hostIPs": wrap(&host),
            "startTime": self.started,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        });
        value
    }
}

/// Gives a service that asks for them its virtual addresses, in the families that it asks for.
fn assign_addresses(service: &mut Service, addresses: &mut ServiceAddresses, of_lab: Families) {
    let (namespace, name) = names(&service.metadata);
    let Some(spec) = &mut service.spec else {
        return;
    };
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return;
    }
    if spec.cluster_ip.is_none() && spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
        let (v4, v6) = addresses.of(&namespace, &name);
        let families = spec.ip_families.clone().unwrap_or_default();
        let dual = matches!(
            spec.ip_family_policy.as_deref(),
            Some("PreferDualStack" | "RequireDualStack")
        );
        let mut given = match (of_lab, families.first().map(String::as_str)) {
            (Families::Ipv6, _) => vec![v6],
            (Families::Dual, Some("IPv6")) => vec![v6, v4],
            (Families::Dual, _) => vec![v4, v6],
        };
        given.truncate(if dual || families.len() > 1 { 2 } else { 1 });
        spec.cluster_ips = Some(given.iter().map(ToString::to_string).collect());
    }
    if spec.cluster_ip.is_none() {
        spec.cluster_ip = spec
            .cluster_ips
            .as_ref()
            .and_then(|ips| ips.first().cloned());
    } else if spec.cluster_ips.is_none() {
        spec.cluster_ips = spec.cluster_ip.clone().map(|ip| vec![ip]);
    }
}

fn now() -> String {
    // Kubernetes' times have whole seconds.
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

/// A random uid in the form that Kubernetes uses (a version 4 UUID).
fn new_uid() -> String {
    let number: u128 = rand::random();
    let version = (number & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{version:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
