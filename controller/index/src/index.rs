//! The index itself: facts by object, who depends on whom, and what is to be compiled again.
//!
//! This file holds the state and takes events; [`apply`] turns objects into facts and marks, [`flush`] compiles what
//! is marked.

mod ancestors;
mod apply;
mod attach;
mod authenticating;
mod backing;
mod credentials;
mod flush;
mod governing;
mod limiting;
mod machines;
mod routing;
mod telemetry;
mod traffic;
mod trust;
mod virtual_services;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{Kind, ObjectKey, labels};
use karst_model::{
    addr::Network,
    enrollment::{Generation, PodCapture},
    locality::Locality,
    name::{GatewayKey, PodUid, PolicyKey, ServiceKey, WorkloadUid},
    policy::Authorization,
    rate_limit::RateLimit,
    route::{Route, RouteKey},
    service::Service,
    telemetry::Telemetry,
    token::RequestAuthentication,
    traffic::ServiceTraffic,
    waypoint_policy::WaypointPolicy,
};

pub(crate) use self::traffic::LabelKeys;

use smallvec::SmallVec;

use crate::{
    capture::Capture,
    conditions::Condition,
    config::IndexConfig,
    delta::{Delta, Digests, Table},
    event::Event,
    facts::{Created, EntryFacts, Name, pod::PodFacts, service::ServiceFacts, slice::SliceFacts},
    gateways::GatewayStatus,
    peer_authentication::{Defaults, PeerFacts},
    policies::PolicyFacts,
    seals::Sealers,
    selector::{Labels, Postings, Selectors},
    shared::Shared,
    trust_domains::Names,
    vips::Vips,
    waypoints::Waypoints,
};

/// Turns events into changes of the model.
#[derive(Debug)]
pub struct Index {
    config: IndexConfig,
    shared: Shared,
    /// Network of this cluster's pods.
    network: Network,
    /// The namespace of the installation lets every pod go.
    releases_all: bool,
    spaces: HashMap<Arc<str>, Space>,
    nodes: HashMap<Arc<str>, Locality>,
    pods: HashMap<Name, PodFacts>,
    services: HashMap<Name, ServiceFacts>,
    slices: HashMap<Name, SliceFacts>,
    entries: HashMap<Name, EntryFacts>,
    machines: HashMap<Name, machines::MachineFacts>,
    policies: HashMap<Name, PolicyFacts>,
    peers: HashMap<Name, PeerFacts>,
    peer_defaults: Defaults,
    waypoints: Waypoints,
    routes: routing::Routes,
    governing: governing::Governing,
    limiting: limiting::Limiting,
    backing: backing::Backing,
    authenticating: authenticating::Authenticating,
    traffic: traffic::Traffic,
    virtuals: virtual_services::Virtuals,
    recording: telemetry::Recording,
    trust: Names,
    /// Request policies, by what they are attached to.
    sealers: Sealers,
    pods_by_uid: HashMap<PodUid, Name>,
    pods_by_node: HashMap<Arc<str>, HashSet<Name>>,
    slices_by_node: HashMap<Arc<str>, HashSet<Name>>,
    /// Names of slices, in the pod's namespace.
    slices_by_pod: HashMap<Name, SmallVec<[Arc<str>; 1]>>,
    slices_by_service: HashMap<Name, HashSet<Name>>,
    /// Objects that stand for each hostname, best first.
    hosts: HashMap<Arc<str>, BTreeSet<Claim>>,
    vips: Vips,
    capture: Capture,
    /// Nodes that another controller serves, with the pods that it has published as reached by HBONE.
    elsewhere: HashMap<Arc<str>, HashMap<PodUid, PodCapture>>,
    dirty: Dirty,
    out: Output,
}

/// What belongs to one namespace, whether or not its object is there.
#[derive(Debug, Default)]
struct Space {
    labels: Option<Labels>,
    traffic_distribution: Option<String>,
    pods: Postings,
    /// WorkloadEntries.
    machines: Postings,
    services: Selectors,
    service_names: HashSet<Arc<str>>,
    entries: Selectors,
    policies: Selectors,
    peers: Selectors,
    /// ALLOW policies that hold for all of its pods.
    allows_for_all: usize,
}

/// An object that stands for a hostname. Order is precedence: Services first, then the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    is_entry: bool,
    created: Created,
    name: Name,
}

/// What must be compiled again.
#[derive(Debug, Default)]
struct Dirty {
    hosts: HashSet<Arc<str>>,
    services: HashSet<Name>,
    pods: HashSet<Name>,
    slices: HashSet<Name>,
    entries: HashSet<Name>,
    machines: HashSet<Name>,
    policies: HashSet<Name>,
    peers: HashSet<Name>,
    namespaces: HashSet<Arc<str>>,
    gateways: HashSet<Name>,
    routes: HashSet<RouteKey>,
    virtuals: HashSet<Name>,
    limits: HashSet<Name>,
    /// HealthChecks and BackendTLSPolicies.
    backing: HashSet<(Kind, Name)>,
    /// RequestAuthentications.
    authentications: HashSet<Name>,
    /// Services whose ServiceTraffic may differ.
    traffic: HashSet<ServiceKey>,
    /// DestinationRules.
    rules: HashSet<Name>,
    /// Services, and entries (`true`).
    seals: HashSet<(Name, bool)>,
    /// The names of the mesh's trust domain.
    trust: bool,
}

/// What was handed out last.
#[derive(Debug, Default)]
struct Output {
    workloads: Digests<WorkloadUid>,
    services: Table<ServiceKey, Service>,
    policies: Table<PolicyKey, Authorization>,
    routes: Table<(GatewayKey, RouteKey), Route>,
    waypoint_policies: Table<(GatewayKey, PolicyKey), WaypointPolicy>,
    request_authentications: Table<(GatewayKey, PolicyKey), RequestAuthentication>,
    rate_limits: Table<(GatewayKey, PolicyKey), RateLimit>,
    traffic: Table<(GatewayKey, ServiceKey), ServiceTraffic>,
    telemetries: Table<Arc<str>, Telemetry>,
    /// By pod, since a pod can move to another node or get another UID under one name.
    nodes: HashMap<Name, NodeRow>,
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
    entry_addresses: BTreeMap<ObjectKey, Vec<(Arc<str>, IpAddr)>>,
    /// Workloads of slices and entries, of which one object makes several.
    workloads_of: HashMap<ObjectKey, Vec<WorkloadUid>>,
    services_of: HashMap<Arc<str>, Vec<ServiceKey>>,
    gateways: BTreeMap<ObjectKey, GatewayStatus>,
}

/// What a node was told last of a pod.
#[derive(Debug)]
struct NodeRow {
    node: Arc<str>,
    pod_uid: PodUid,
    /// Of the whole, as [`Digests::of`] makes it.
    digest: u64,
}

/// How much the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    pub node_workloads: usize,
}

impl Index {
    pub fn new(config: IndexConfig) -> Self {
        let capture = Capture::starting_at(config.first_generation);
        let trust = Names::new(&config.trust_domain);
        Self {
            config,
            shared: Shared::default(),
            network: Network::default(),
            releases_all: false,
            spaces: HashMap::new(),
            nodes: HashMap::new(),
            pods: HashMap::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            entries: HashMap::new(),
            machines: HashMap::new(),
            policies: HashMap::new(),
            peers: HashMap::new(),
            peer_defaults: Defaults::default(),
            waypoints: Waypoints::default(),
            routes: routing::Routes::default(),
            governing: governing::Governing::default(),
            limiting: limiting::Limiting::default(),
            backing: backing::Backing::default(),
            authenticating: authenticating::Authenticating::default(),
            traffic: traffic::Traffic::default(),
            virtuals: virtual_services::Virtuals::default(),
            recording: telemetry::Recording::default(),
            trust,
            sealers: Sealers::default(),
            pods_by_uid: HashMap::new(),
            pods_by_node: HashMap::new(),
            slices_by_node: HashMap::new(),
            slices_by_pod: HashMap::new(),
            slices_by_service: HashMap::new(),
            hosts: HashMap::new(),
            vips: Vips::default(),
            capture,
            elsewhere: HashMap::new(),
            dirty: Dirty::default(),
            out: Output::default(),
        }
    }

    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// Takes one event; returns what it changes.
    pub fn handle(&mut self, event: Event) -> Delta {
        self.handle_all([event])
    }

    /// Takes many events at once, as at start; returns what they change together. The states between are not seen.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>) -> Delta {
        self.capture.step();
        for event in events {
            match event {
                Event::Apply(object) => self.apply(object),
                Event::Delete(key) => self.delete(key),
                Event::Captured { pod_uid, capture } => self.captured(pod_uid, capture),
                Event::Resumed { pod_uid, capture } => {
                    self.mark_pod(&pod_uid);
                    self.capture.resume(pod_uid, capture);
                }
                Event::NodeElsewhere { node, published } => self.elsewhere(node, published),
                Event::NodeHere { node } => self.here(&node),
                Event::Keys { source, fetched } => self.keys(source, fetched),
                Event::Secret { secret, read } => self.secret(secret, read),
                Event::FailingCollectors(failing) => self.failing_collectors(failing),
                Event::Acknowledged(transition) => {
                    self.capture.acknowledged(&transition);
                    self.mark_pod(&transition.pod_uid);
                }
                Event::Overdue(transition) => {
                    self.capture.overdue(&transition);
                    self.mark_pod(&transition.pod_uid);
                }
            }
        }
        self.flush()
    }

    /// The node that a pod runs on, to check who reports about it.
    pub fn node_of(&self, pod_uid: &PodUid) -> Option<&str> {
        let pod = self
            .pods_by_uid
            .get(pod_uid)
            .and_then(|name| self.pods.get(name))?;
        (!pod.node.is_empty()).then_some(&*pod.node)
    }

    /// Whether a report about this pod counts: it is about the enrolment that the pod is in.
    pub fn is_current(&self, pod_uid: &PodUid, generation: Generation) -> bool {
        self.capture.is_current(pod_uid, generation)
    }

    /// The pods of a node that are reached by HBONE, for [`Event::NodeElsewhere`] of other controllers.
    pub fn published(&self, node: &str) -> BTreeMap<PodUid, PodCapture> {
        let names = self.pods_by_node.get(node).into_iter().flatten();
        let pods = names.filter_map(|name| self.pods.get(name));
        pods.filter_map(|pod| Some((pod.uid.clone(), self.capture.published(&pod.uid)?)))
            .collect()
    }

    /// Everything that holds now, as a delta from nothing.
    pub fn snapshot(&self) -> Delta {
        fn all<K: Eq + std::hash::Hash + Clone, V: PartialEq>(
            table: &Table<K, V>,
        ) -> crate::Changes<K, V> {
            let updated = table
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            crate::Changes {
                updated,
                removed: Vec::new(),
            }
        }
        let conditions =
            self.out
                .conditions
                .iter()
                .map(|(object, conditions)| crate::ObjectConditions {
                    object: object.clone(),
                    conditions: conditions.clone(),
                });
        let addresses = self.out.entry_addresses.iter();
        let addresses = addresses.map(|(object, addresses)| crate::EntryAddresses {
            object: object.clone(),
            addresses: addresses.clone(),
        });
        Delta {
            workloads: crate::Changes {
                updated: self.all_workloads(),
                removed: Vec::new(),
            },
            services: all(&self.out.services),
            policies: all(&self.out.policies),
            routes: all(&self.out.routes),
            waypoint_policies: all(&self.out.waypoint_policies),
            request_authentications: all(&self.out.request_authentications),
            key_sources: Some(self.key_sources()),
            secrets: Some(self.secrets()),
            rate_limits: all(&self.out.rate_limits),
            traffic: all(&self.out.traffic),
            telemetries: all(&self.out.telemetries),
            trust_domains: Some(self.trust.now().clone()),
            node_workloads: self.all_node_rows(),
            conditions: conditions.collect(),
            entry_addresses: addresses.collect(),
            route_statuses: {
                let routes = self.routes.statuses();
                routes.chain(self.backing.statuses()).cloned().collect()
            },
            gateways: self
                .out
                .gateways
                .iter()
                .map(|(object, status)| (object.clone(), Some(status.clone())))
                .collect(),
            transitions: Vec::new(),
        }
    }

    pub fn stats(&self) -> Stats {
        Stats {
            workloads: self.out.workloads.len(),
            services: self.out.services.len(),
            policies: self.out.policies.len(),
            node_workloads: self.out.nodes.len(),
        }
    }

    fn captured(&mut self, pod_uid: PodUid, capture: Option<PodCapture>) {
        self.mark_pod(&pod_uid);
        let known = self.pods_by_uid.contains_key(&pod_uid);
        self.capture.report(pod_uid, capture, known);
    }

    fn elsewhere(&mut self, node: Arc<str>, published: Vec<(PodUid, PodCapture)>) {
        self.mark_node(&node);
        self.elsewhere.insert(node, published.into_iter().collect());
    }

    fn here(&mut self, node: &str) {
        self.mark_node(node);
        for (uid, capture) in self.elsewhere.remove(node).into_iter().flatten() {
            self.capture.resume(uid, capture);
        }
    }

    fn mark_node(&mut self, node: &str) {
        let pods = self.pods_by_node.get(node).into_iter().flatten();
        self.dirty.pods.extend(pods.cloned());
    }

    fn mark_pod(&mut self, pod_uid: &PodUid) {
        self.dirty
            .pods
            .extend(self.pods_by_uid.get(pod_uid).cloned());
    }

    fn space(&self, namespace: &str) -> Option<&Space> {
        self.spaces.get(namespace)
    }

    fn space_mut(&mut self, namespace: &Arc<str>) -> &mut Space {
        self.spaces.entry(namespace.clone()).or_default()
    }

    /// Drops a namespace's drawer once nothing is in it.
    fn tidy_space(&mut self, namespace: &Arc<str>) {
        if self.spaces.get(namespace).is_some_and(Space::is_empty) {
            self.spaces.remove(namespace);
        }
    }

    /// Whether pods of this namespace follow policies of the root namespace too.
    fn policy_namespaces<'a>(
        &'a self,
        namespace: &'a Arc<str>,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let root = &self.config.root_namespace;
        std::iter::once(namespace).chain((root != namespace).then_some(root))
    }

    fn network_of_root(labels: Option<&Labels>) -> Network {
        let label = labels.and_then(|labels| labels.get(labels::NETWORK));
        Network(label.map(String::as_str).unwrap_or_default().into())
    }
}

impl Space {
    fn is_empty(&self) -> bool {
        self.labels.is_none()
            && self.pods.is_empty()
            && self.machines.is_empty()
            && self.service_names.is_empty()
            && self.entries.is_empty()
            && self.policies.is_empty()
            && self.peers.is_empty()
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .as_ref()
            .and_then(|labels| labels.get(name))
            .map(String::as_str)
    }
}

/// The key of an object known by its name.
fn key(kind: Kind, name: &Name) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}
