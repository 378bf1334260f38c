//! Objects become facts, and whatever depends on a change is marked. Nothing is compiled here.
//!
//! Each kind has one function that takes its facts from before and after (none: not there), so that creation, change
//! and deletion cannot differ in what they mark.

use std::sync::Arc;

use hashbrown::HashSet;
use karst_k8s_api::{
    Kind, Object, ObjectKey,
    istio::peer_authentication::Mode,
    k8s_openapi::api::core::v1::{Namespace, Node},
    labels,
    object::wrote_addresses,
};
use karst_model::{locality::Locality, name::PolicyKey, route::RouteKind};

use super::machines::MachineFacts;
use super::{Claim, Index};
use crate::{
    backend_policies::{BackendTlsFacts, CheckFacts},
    destination_rules::RuleFacts,
    facts::{Created, EntryFacts, Name, pod::PodFacts, service::ServiceFacts, slice::SliceFacts},
    peer_authentication::PeerFacts,
    policies::PolicyFacts,
    rate_limits::LimitFacts,
    request_authentications::AuthenticationFacts,
    routes::{RouteFacts, RouteSpec},
    seals::SealWish,
    selector::{Labels, matches, remove_from},
    service_entries, services,
    vips::Claimant,
    virtual_services::VirtualFacts,
};

impl Index {
    pub(super) fn apply(&mut self, object: Object) {
        let name = self.shared.name(&object.key());
        match object {
            Object::Namespace(namespace) => self.namespace(&name.name, Some(*namespace)),
            Object::Node(node) => self.node(&name.name, Some(&node)),
            Object::Pod(pod) => {
                let facts = PodFacts::new(*pod, &mut self.shared);
                self.pod(&name, Some(facts));
            }
            Object::Service(service) => self.service(&name, Some(ServiceFacts::new(*service))),
            Object::EndpointSlice(slice) => {
                let facts = SliceFacts::new(*slice, &mut self.shared);
                self.slice(&name, Some(facts));
            }
            Object::ServiceEntry(entry) => {
                let all = entry.metadata.annotations.as_ref();
                let seal = SealWish::of(all.and_then(|all| all.get(labels::SEAL)));
                let required = all.and_then(|all| all.get(labels::WAYPOINT_REQUIRED));
                let when_ready = labels::WAYPOINT_REQUIRED_WHEN_READY;
                let waypoint_optional = required.is_some_and(|value| value == when_ready);
                let ours = wrote_addresses(&entry.metadata);
                let facts = EntryFacts {
                    seal,
                    waypoint_optional,
                    created: Created::of(&entry.metadata),
                    labels: entry.metadata.labels.unwrap_or_default(),
                    assigned: entry
                        .status
                        .filter(|_| !ours)
                        .map(|status| status.addresses)
                        .unwrap_or_default(),
                    spec: entry.spec,
                };
                self.entry(&name, Some(facts));
            }
            Object::AuthorizationPolicy(policy) => {
                let key = PolicyKey {
                    namespace: name.namespace.clone(),
                    name: name.name.clone(),
                };
                let facts = PolicyFacts::new(key, &policy, &self.config.root_namespace);
                self.policy(&name, Some(facts));
            }
            Object::PeerAuthentication(policy) => self.peer(&name, Some(PeerFacts::new(*policy))),
            // Nothing of these enters the model: identities come from pods, and lab and controller run the rest.
            Object::ServiceAccount(_) | Object::Deployment(_) => {}
            Object::ConfigMap(map) => {
                self.roots(&name, Some(&map));
                self.config_map(&name, Some(*map));
            }
            Object::Telemetry(telemetry) => self.telemetry(&name, Some(&telemetry)),
            Object::RequestAuthentication(one) => {
                let root = &self.config.root_namespace;
                let facts = AuthenticationFacts::new(&name.namespace, &one.spec, root);
                self.request_authentication(&name, Some(facts));
            }
            Object::VirtualService(service) => {
                let service = *service;
                let domain = &self.config.cluster_domain;
                let facts = VirtualFacts::new(&service.metadata, service.spec, domain);
                self.virtual_service(&name, Some(facts));
            }
            Object::DestinationRule(rule) => {
                let domain = &self.config.cluster_domain;
                let facts = RuleFacts::new(&rule.metadata, &rule.spec, domain);
                self.destination_rule(&name, Some(facts));
            }
            Object::WorkloadEntry(entry) => {
                let facts = MachineFacts::new(entry.metadata, entry.spec, &mut self.shared);
                self.machine(&name, Some(facts));
            }
            Object::GatewayClass(class) => self.gateway_class(&name.name, Some(&class)),
            Object::Gateway(gateway) => self.gateway(&name, Some(&gateway)),
            Object::HttpRoute(route) => {
                let facts = RouteFacts::new(&route.metadata, RouteSpec::Http(route.spec));
                self.route(RouteKind::HttpRoute, &name, Some(facts));
            }
            Object::GrpcRoute(route) => {
                let facts = RouteFacts::new(&route.metadata, RouteSpec::Grpc(route.spec));
                self.route(RouteKind::GrpcRoute, &name, Some(facts));
            }
            Object::TlsRoute(route) => {
                let facts = RouteFacts::new(&route.metadata, RouteSpec::Tls(route.spec));
                self.route(RouteKind::TlsRoute, &name, Some(facts));
            }
            Object::TcpRoute(route) => {
                let facts = RouteFacts::new(&route.metadata, RouteSpec::Tcp(route.spec));
                self.route(RouteKind::TcpRoute, &name, Some(facts));
            }
            Object::ReferenceGrant(grant) => self.grant(&name, Some(grant.spec)),
            Object::RateLimit(limit) => {
                let facts = LimitFacts::new(&name.namespace, &limit.spec);
                self.rate_limit(&name, Some(facts));
            }
            Object::HealthCheck(check) => {
                let facts = CheckFacts::new(&name.namespace, &check.spec);
                self.health_check(&name, Some(facts));
            }
            Object::BackendTlsPolicy(policy) => {
                let created = policy.metadata.creation_timestamp.as_ref();
                let created = created.map_or(0, |time| time.0.as_second());
                let of = (created, policy.metadata.generation);
                let facts = BackendTlsFacts::new(&name.namespace, &policy.spec, of);
                self.backend_tls(&name, Some(facts));
            }
        }
    }

    pub(super) fn delete(&mut self, key: ObjectKey) {
        let kind = key.kind;
        let name = Name::from(key);
        match kind {
            Kind::Namespace => self.namespace(&name.name, None),
            Kind::Node => self.node(&name.name, None),
            Kind::Pod => self.pod(&name, None),
            Kind::Service => self.service(&name, None),
            Kind::EndpointSlice => self.slice(&name, None),
            Kind::ServiceEntry => self.entry(&name, None),
            Kind::AuthorizationPolicy => self.policy(&name, None),
            Kind::PeerAuthentication => self.peer(&name, None),
            Kind::ServiceAccount | Kind::Deployment => {}
            Kind::ConfigMap => {
                self.roots(&name, None);
                self.config_map(&name, None);
            }
            Kind::Telemetry => self.telemetry(&name, None),
            Kind::RequestAuthentication => self.request_authentication(&name, None),
            Kind::VirtualService => self.virtual_service(&name, None),
            Kind::DestinationRule => self.destination_rule(&name, None),
            Kind::WorkloadEntry => self.machine(&name, None),
            Kind::GatewayClass => self.gateway_class(&name.name, None),
            Kind::Gateway => self.gateway(&name, None),
            Kind::HttpRoute => self.route(RouteKind::HttpRoute, &name, None),
            Kind::GrpcRoute => self.route(RouteKind::GrpcRoute, &name, None),
            Kind::TlsRoute => self.route(RouteKind::TlsRoute, &name, None),
            Kind::TcpRoute => self.route(RouteKind::TcpRoute, &name, None),
            Kind::ReferenceGrant => self.grant(&name, None),
            Kind::RateLimit => self.rate_limit(&name, None),
            Kind::HealthCheck => self.health_check(&name, None),
            Kind::BackendTlsPolicy => self.backend_tls(&name, None),
        }
    }

    fn namespace(&mut self, name: &Arc<str>, after: Option<Namespace>) {
        let meta = after.map(|namespace| namespace.metadata);
        let annotations = meta.as_ref().and_then(|meta| meta.annotations.as_ref());
        let distribution = annotations
            .and_then(|all| all.get(labels::TRAFFIC_DISTRIBUTION))
            .cloned();
        let labels_after = meta.map(|meta| meta.labels.unwrap_or_default());
        let space = self.space_mut(name);
        let same_mode = space.label(labels::DATAPLANE_MODE)
            == labels_after
                .as_ref()
                .and_then(|all| all.get(labels::DATAPLANE_MODE))
                .map(String::as_str);
        let same_distribution = space.traffic_distribution == distribution;
        let attaches = |labels: &Labels| {
            let keys = [
                labels::USE_WAYPOINT,
                labels::USE_WAYPOINT_NAMESPACE,
                labels::INGRESS_USE_WAYPOINT,
            ];
            keys.map(|key| labels.get(key).cloned())
        };
        let same_labels = space.labels == labels_after;
        let same_waypoint =
            space.labels.as_ref().map(attaches) == labels_after.as_ref().map(attaches);
        (space.labels, space.traffic_distribution) = (labels_after, distribution);
        let named = |member: &Arc<str>| Name::new(name, member);
        let pods: Vec<Name> = if same_mode {
            Vec::new()
        } else {
            space.pods.all().map(named).collect()
        };
        let touched = if same_distribution {
            Vec::new()
        } else {
            space.service_names.iter().map(named).collect()
        };
        self.dirty.pods.extend(pods);
        self.dirty.services.extend(touched);
        self.dirty.namespaces.insert(name.clone());
        if !same_waypoint || (!same_labels && self.waypoints.select_namespaces()) {
            self.mark_space(name);
        }
        if *name == self.config.root_namespace {
            self.renumber_network();
        }
        if *name == self.config.install_namespace {
            self.follow_release();
        }
        self.tidy_space(name);
    }

    /// Whether any pod may be in the mesh is a label of the namespace of the installation.
    fn follow_release(&mut self) {
        let wish = self
            .space(&self.config.install_namespace)
            .and_then(|space| space.label(labels::RELEASE));
        let releases_all = wish == Some(labels::RELEASE_ALL);
        if std::mem::replace(&mut self.releases_all, releases_all) != releases_all {
            self.dirty.pods.extend(self.pods.keys().cloned());
        }
    }

    /// The network of every pod and address is a label of the root namespace.
    fn renumber_network(&mut self) {
        let root = self
            .space(&self.config.root_namespace)
            .and_then(|space| space.labels.as_ref());
        let network = Self::network_of_root(root);
        if network != self.network {
            self.network = network;
            self.dirty.pods.extend(self.pods.keys().cloned());
            self.dirty.services.extend(self.services.keys().cloned());
            self.dirty.entries.extend(self.entries.keys().cloned());
            self.dirty.slices.extend(self.slices.keys().cloned());
            self.dirty.machines.extend(self.machines.keys().cloned());
            self.dirty.hosts.extend(self.hosts.keys().cloned());
        }
    }

    fn node(&mut self, name: &Arc<str>, after: Option<&Node>) {
        let locality = after.map(|node| {
            let label = |label: &str| node.metadata.labels.as_ref().and_then(|all| all.get(label));
            let part = |name: &str| Arc::from(label(name).map(String::as_str).unwrap_or_default());
            Locality {
                region: part(labels::REGION),
                zone: part(labels::ZONE),
                subzone: part(labels::SUBZONE),
            }
        });
        let before = match locality.clone() {
            Some(locality) => self.nodes.insert(name.clone(), locality),
            None => self.nodes.remove(name),
        };
        if before != locality {
            self.dirty
                .pods
                .extend(self.pods_by_node.get(name).into_iter().flatten().cloned());
            self.dirty
                .slices
                .extend(self.slices_by_node.get(name).into_iter().flatten().cloned());
        }
    }

    fn pod(&mut self, name: &Name, after: Option<PodFacts>) {
        if let Some(before) = self.pods.remove(name) {
            self.mark_waypoint_of(name, &before);
            self.mark_seals_of_pod(&name.namespace, &before);
            self.space_mut(&name.namespace)
                .pods
                .remove(&name.name, &before.labels);
            remove_from(&mut self.pods_by_node, before.node.clone(), name);
            let replaced = after.as_ref().is_none_or(|after| after.uid != before.uid);
            if replaced && self.pods_by_uid.get(&before.uid) == Some(name) {
                self.pods_by_uid.remove(&before.uid);
                self.capture.forget(&before.uid);
            }
        }
        if let Some(after) = after {
            self.mark_waypoint_of(name, &after);
            self.mark_seals_of_pod(&name.namespace, &after);
            self.space_mut(&name.namespace)
                .pods
                .insert(&name.name, &after.labels);
            self.pods_by_node
                .entry(after.node.clone())
                .or_default()
                .insert(name.clone());
            self.pods_by_uid.insert(after.uid.clone(), name.clone());
            self.pods.insert(name.clone(), after);
        } else {
            self.tidy_space(&name.namespace);
        }
        self.dirty.pods.insert(name.clone());
    }

    fn service(&mut self, name: &Name, after: Option<ServiceFacts>) {
        let before = self.services.remove(name);
        let same_attachment = match (&before, &after) {
            (Some(before), Some(after)) => before.attaches_as(after),
            _ => false,
        };
        let same_endpoints = match (&before, &after) {
            (Some(before), Some(after)) => before.same_endpoints(after),
            (before, after) => before.is_none() && after.is_none(),
        };
        if !same_endpoints {
            for facts in [&before, &after]
                .into_iter()
                .flatten()
                .filter(|facts| !facts.selector.is_empty())
            {
                self.mark_selected(&name.namespace, &facts.selector);
            }
            self.mark_slices_of(name);
        }
        if let Some(facts) = &before {
            self.unclaim(
                &services::hostname(&self.config, name),
                &claim(name, facts.created, false),
            );
        }
        let space = self.space_mut(&name.namespace);
        match &after {
            Some(after) => {
                space.services.insert(&name.name, &after.selector);
                space.service_names.insert(name.name.clone());
            }
            None => {
                space.services.remove(&name.name);
                space.service_names.remove(&name.name);
            }
        }
        match after {
            Some(after) => {
                if !after.is_external_name && services::visibility(&after.export_to).is_some() {
                    self.claim(
                        services::hostname(&self.config, name),
                        claim(name, after.created, false),
                    );
                }
                self.services.insert(name.clone(), after);
            }
            None => self.tidy_space(&name.namespace),
        }
        if !same_attachment || !same_endpoints {
            self.mark_service(name);
        }
        self.dirty.gateways.insert(name.clone());
        self.dirty.services.insert(name.clone());
    }

    /// Pods and bare endpoints that slices give to a service.
    pub(super) fn mark_slices_of(&mut self, service: &Name) {
        for slice in self.slices_by_service.get(service).into_iter().flatten() {
            self.dirty.slices.insert(slice.clone());
            let pods = self
                .slices
                .get(slice)
                .into_iter()
                .flat_map(|facts| pods_of(slice, facts));
            self.dirty.pods.extend(pods);
        }
    }

    fn slice(&mut self, name: &Name, after: Option<SliceFacts>) {
        if let Some(before) = self.slices.remove(name) {
            for pod in pods_of(name, &before) {
                if let Some(slices) = self.slices_by_pod.get_mut(&pod) {
                    slices.retain(|slice| *slice != name.name);
                    if slices.is_empty() {
                        self.slices_by_pod.remove(&pod);
                    }
                }
                self.dirty.pods.insert(pod);
            }
            for endpoint in &before.endpoints {
                remove_from(&mut self.slices_by_node, endpoint.node.clone(), name);
            }
            let service = Name::new(&name.namespace, &before.service);
            remove_from(&mut self.slices_by_service, service.clone(), name);
            self.dirty.seals.insert((service, false));
        }
        if let Some(after) = after {
            for pod in pods_of(name, &after) {
                let slices = self.slices_by_pod.entry(pod.clone()).or_default();
                if !slices.contains(&name.name) {
                    slices.push(name.name.clone());
                }
                self.dirty.pods.insert(pod);
            }
            for endpoint in after
                .endpoints
                .iter()
                .filter(|endpoint| !endpoint.node.is_empty())
            {
                self.slices_by_node
                    .entry(endpoint.node.clone())
                    .or_default()
                    .insert(name.clone());
            }
            let service = Name::new(&name.namespace, &after.service);
            self.dirty.seals.insert((service.clone(), false));
            self.slices_by_service
                .entry(service)
                .or_default()
                .insert(name.clone());
            self.slices.insert(name.clone(), after);
        }
        self.dirty.slices.insert(name.clone());
    }

    fn entry(&mut self, name: &Name, after: Option<EntryFacts>) {
        if let Some(before) = self.entries.remove(name) {
            if let Some(selector) = before.selector() {
                self.mark_selected(&name.namespace, selector);
            }
            for host in hosts_of(&before) {
                if service_entries::wants_address(&before, &host) {
                    let moved = self.vips.remove(&claimant(name, &before, &host));
                    self.mark_moved(moved);
                }
                self.unclaim(&host, &claim(name, before.created, true));
            }
            self.space_mut(&name.namespace).entries.remove(&name.name);
        }
        match after {
            Some(after) => self.insert_entry(name, after),
            None => self.tidy_space(&name.namespace),
        }
        self.mark_entry(name);
        self.entry_governed(name);
        self.entry_authenticated(name);
    }

    fn insert_entry(&mut self, name: &Name, facts: EntryFacts) {
        if let Some(selector) = facts.selector() {
            self.space_mut(&name.namespace)
                .entries
                .insert(&name.name, selector);
            self.mark_selected(&name.namespace, selector);
        }
        if services::visibility(&facts.spec.export_to).is_some() {
            for host in hosts_of(&facts) {
                if service_entries::wants_address(&facts, &host) {
                    let moved = self.vips.insert(claimant(name, &facts, &host));
                    self.mark_moved(moved);
                }
                self.claim(host, claim(name, facts.created, true));
            }
        }
        self.entries.insert(name.clone(), facts);
    }

    fn mark_moved(&mut self, moved: Vec<Claimant>) {
        for claimant in moved {
            self.dirty
                .entries
                .insert(Name::new(&claimant.namespace, &claimant.name));
            self.dirty.hosts.insert(claimant.host);
        }
    }

    fn claim(&mut self, host: Arc<str>, claim: Claim) {
        self.hosts.entry(host.clone()).or_default().insert(claim);
        self.mark_host(&host);
    }

    fn unclaim(&mut self, host: &Arc<str>, claim: &Claim) {
        self.mark_host(host);
        if let Some(claims) = self.hosts.get_mut(host) {
            claims.remove(claim);
            if claims.is_empty() {
                self.hosts.remove(host);
            }
        }
    }

    /// Who stands for a host may have changed, and with that the services of every endpoint of its entries.
    fn mark_host(&mut self, host: &Arc<str>) {
        self.dirty.hosts.insert(host.clone());
        let claims = self
            .hosts
            .get(host)
            .into_iter()
            .flatten()
            .filter(|claim| claim.is_entry);
        let entries: Vec<Name> = claims.map(|claim| claim.name.clone()).collect();
        for name in entries {
            let selector = self
                .entries
                .get(&name)
                .and_then(EntryFacts::selector)
                .cloned();
            if let Some(selector) = selector {
                self.mark_selected(&name.namespace, &selector);
            }
            self.dirty.entries.insert(name);
        }
    }

    fn policy(&mut self, name: &Name, after: Option<PolicyFacts>) {
        let replaced = match after {
            Some(after) => self.policies.insert(name.clone(), after),
            None => self.policies.remove(name),
        };
        let before = replaced.as_ref();
        let for_all = |facts: Option<&PolicyFacts>| facts.is_some_and(PolicyFacts::allows_for_all);
        let lists = |facts: &PolicyFacts| facts.allows();
        let (listed, lists) = (
            before.is_some_and(lists),
            self.policies.get(name).is_some_and(lists),
        );
        let (all_before, all_after) = (for_all(before), for_all(self.policies.get(name)));
        self.count_allow(&name.namespace, all_before, all_after);
        let selector = |facts: &PolicyFacts| {
            facts
                .authorization
                .is_some()
                .then(|| facts.selector.clone())
        };
        let before = before
            .and_then(selector)
            .filter(|selector| !selector.is_empty());
        let after = self
            .policies
            .get(name)
            .and_then(selector)
            .filter(|selector| !selector.is_empty());
        if before != after || listed != lists {
            self.space_mut(&name.namespace).policies.remove(&name.name);
            if let Some(selector) = &after {
                self.space_mut(&name.namespace)
                    .policies
                    .insert(&name.name, selector);
            }
            for selector in [before, after].into_iter().flatten() {
                self.mark_governed(&name.namespace, &selector);
            }
        }
        self.govern(name, replaced.as_ref());
        self.tidy_space(&name.namespace);
        self.dirty.policies.insert(name.clone());
    }

    fn peer(&mut self, name: &Name, after: Option<PeerFacts>) {
        let mode_before = self.default_mode(&name.namespace);
        let mesh_mode_before = self.default_mode(&self.config.root_namespace);
        self.dirty
            .peers
            .extend(self.peer_defaults.all(&name.namespace).cloned());
        if let Some(before) = self.peers.remove(name) {
            self.peer_defaults.remove(name, before.created);
            self.space_mut(&name.namespace).peers.remove(&name.name);
            self.mark_selected_unless_empty(&name.namespace, &before.selector);
        }
        if let Some(after) = after {
            self.mark_selected_unless_empty(&name.namespace, &after.selector);
            if after.selector.is_empty() {
                self.peer_defaults.insert(name, after.created);
            } else if name.namespace != self.config.root_namespace {
                self.space_mut(&name.namespace)
                    .peers
                    .insert(&name.name, &after.selector);
            }
            self.peers.insert(name.clone(), after);
        }
        self.dirty
            .peers
            .extend(self.peer_defaults.all(&name.namespace).cloned());
        self.dirty.peers.insert(name.clone());
        if self.default_mode(&self.config.root_namespace) != mesh_mode_before {
            self.dirty.pods.extend(self.pods.keys().cloned());
            self.dirty.peers.extend(self.peers.keys().cloned());
        } else if self.default_mode(&name.namespace) != mode_before {
            self.mark_selected(&name.namespace, &Labels::new());
            let of_namespace = self
                .peers
                .keys()
                .filter(|peer| peer.namespace == name.namespace);
            self.dirty.peers.extend(of_namespace.cloned());
        }
        self.tidy_space(&name.namespace);
    }

    /// What holds in a namespace for pods that no selector picks.
    pub(super) fn default_mode(&self, namespace: &str) -> Mode {
        let scopes = [namespace, &*self.config.root_namespace];
        let modes = scopes
            .into_iter()
            .filter_map(|scope| self.peer_defaults.chosen(scope));
        let modes = modes
            .filter_map(|name| self.peers.get(name))
            .map(|facts| facts.mode);
        modes
            .into_iter()
            .find(|mode| *mode != Mode::Unset)
            .unwrap_or(Mode::Permissive)
    }

    fn mark_selected_unless_empty(&mut self, namespace: &Arc<str>, selector: &Labels) {
        if !selector.is_empty() {
            self.mark_selected(namespace, selector);
        }
    }

    /// Pods and WorkloadEntries of one namespace that a selector picks; the empty one picks all.
    pub(super) fn mark_selected(&mut self, namespace: &Arc<str>, selector: &Labels) {
        self.mark_selected_machines(namespace, selector);
        let Some(space) = self.spaces.get(namespace) else {
            return;
        };
        let names = space
            .pods
            .candidates(selector)
            .map(|pod| Name::new(namespace, pod));
        let picked = names.filter(|name| {
            self.pods
                .get(name)
                .is_some_and(|pod| matches(selector, &pod.labels))
        });
        self.dirty.pods.extend(picked);
    }

    /// Pods that a policy of this namespace picks: those of all namespaces for the root namespace.
    pub(super) fn mark_governed(&mut self, namespace: &Arc<str>, selector: &Labels) {
        if *namespace != self.config.root_namespace {
            return self.mark_selected(namespace, selector);
        }
        let all: Vec<Arc<str>> = self.spaces.keys().cloned().collect();
        all.iter()
            .for_each(|namespace| self.mark_selected(namespace, selector));
    }
}

fn claim(name: &Name, created: Created, is_entry: bool) -> Claim {
    Claim {
        is_entry,
        created,
        name: name.clone(),
    }
}

pub(super) fn claimant(name: &Name, facts: &EntryFacts, host: &Arc<str>) -> Claimant {
    let (namespace, name) = (name.namespace.clone(), name.name.clone());
    Claimant {
        created: facts.created,
        namespace,
        name,
        host: host.clone(),
    }
}

/// Hosts of an entry, each once.
pub(super) fn hosts_of(facts: &EntryFacts) -> Vec<Arc<str>> {
    let mut seen = HashSet::new();
    facts
        .spec
        .hosts
        .iter()
        .filter(|host| seen.insert(host.as_str()))
        .map(|host| host.as_str().into())
        .collect()
}

fn pods_of(slice: &Name, facts: &SliceFacts) -> Vec<Name> {
    let pods = facts
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.pod.as_ref());
    pods.map(|pod| Name::new(&slice.namespace, pod)).collect()
}
