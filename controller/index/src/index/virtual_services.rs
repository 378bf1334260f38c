//! VirtualServices: who must be lowered again when an object changes, which of several governs, and what leaves for which
//! waypoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::Kind;
use karst_model::{
    name::{GatewayKey, ServiceKey},
    route::{Attachment, Clients, RouteKey, RouteKind},
    service::Visibility,
};

use super::{Index, key};
use crate::{
    delta::Delta,
    facts::Name,
    selector::remove_from,
    virtual_services::{self, Displaced, Known, Lowered, Rank, VirtualFacts, World},
};

/// The parts of a VirtualService that may be routes.
const PARTS: [RouteKind; 3] = [
    RouteKind::VirtualService,
    RouteKind::VirtualServiceTls,
    RouteKind::VirtualServiceTcp,
];

/// Everything that is known of VirtualServices, and of the routes of the Gateway API as far as they come before them.
#[derive(Debug, Default)]
pub(super) struct Virtuals {
    facts: HashMap<Name, VirtualFacts>,
    /// Those for the mesh, by their hosts as whole names, wildcards among them.
    by_host: BTreeMap<Arc<str>, BTreeSet<Name>>,
    /// By the hosts that they send to.
    by_destination: HashMap<Arc<str>, HashSet<Name>>,
    /// By the delegates that they name.
    by_delegate: HashMap<Name, HashSet<Name>>,
    /// The waypoints that were told of each part.
    told: HashMap<RouteKey, HashSet<GatewayKey>>,
    /// Routes of the Gateway API by the services that they are attached to.
    attached: HashMap<ServiceKey, BTreeMap<RouteKey, Vec<Attachment>>>,
    attachments: HashMap<RouteKey, HashSet<ServiceKey>>,
    /// Hosts that somebody has left in this step.
    left: HashSet<Arc<str>>,
}

impl Virtuals {
    /// VirtualServices of which a host stands for this one.
    fn covering(&self, hostname: &str) -> BTreeSet<Name> {
        let wild = self.by_host.range(Arc::from("*")..);
        let wild = wild.take_while(|(host, _)| host.starts_with('*'));
        let wild = wild.filter(|(host, _)| crate::destination_rules::covers(host, hostname));
        let exact = self.by_host.get(hostname);
        wild.map(|(_, names)| names)
            .chain(exact)
            .flatten()
            .cloned()
            .collect()
    }

    /// VirtualServices that may stand for the same services as one with these hosts.
    fn rivals(&self, hosts: &[Arc<str>]) -> HashSet<Name> {
        let mut rivals = HashSet::new();
        for host in hosts {
            rivals.extend(self.covering(host));
            if host.starts_with('*') {
                let known = self.by_host.iter();
                let known =
                    known.filter(|(other, _)| crate::destination_rules::covers(host, other));
                rivals.extend(known.flat_map(|(_, names)| names.iter().cloned()));
            }
        }
        rivals
    }

    fn enter(&mut self, name: &Name, facts: &VirtualFacts, domain: &str) {
        if facts.is_of_mesh() {
            for host in &facts.hosts {
                let names = self.by_host.entry(host.clone()).or_default();
                names.insert(name.clone());
            }
        }
        for host in facts.destinations(name, domain) {
            let names = self.by_destination.entry(host).or_default();
            names.insert(name.clone());
        }
        for delegate in facts.delegates(name) {
            let names = self.by_delegate.entry(delegate).or_default();
            names.insert(name.clone());
        }
    }

    fn leave(&mut self, name: &Name, facts: &VirtualFacts, domain: &str) {
        for host in &facts.hosts {
            if let Some(names) = self.by_host.get_mut(host) {
                names.remove(name);
                if names.is_empty() {
                    self.by_host.remove(host);
                }
            }
        }
        for host in facts.destinations(name, domain) {
            remove_from(&mut self.by_destination, host, name);
        }
        for delegate in facts.delegates(name) {
            remove_from(&mut self.by_delegate, delegate, name);
        }
    }

    /// Where a route of the Gateway API is attached now. Returns the services where that changes.
    pub(super) fn attach(&mut self, route: &RouteKey, after: &[Attachment]) -> HashSet<ServiceKey> {
        let mut by_service: HashMap<ServiceKey, Vec<Attachment>> = HashMap::new();
        for attachment in after {
            let list = by_service.entry(attachment.service.clone()).or_default();
            list.push(attachment.clone());
        }
        let mut changed = HashSet::new();
        for service in self.attachments.remove(route).into_iter().flatten() {
            if by_service.contains_key(&service) {
                continue;
            }
            if let Some(routes) = self.attached.get_mut(&service) {
                routes.remove(route);
                if routes.is_empty() {
                    self.attached.remove(&service);
                }
            }
            changed.insert(service);
        }
        let services: HashSet<ServiceKey> = by_service.keys().cloned().collect();
        for (service, list) in by_service {
            let routes = self.attached.entry(service.clone()).or_default();
            if routes.get(route) != Some(&list) {
                routes.insert(route.clone(), list);
                changed.insert(service);
            }
        }
        if !services.is_empty() {
            self.attachments.insert(route.clone(), services);
        }
        changed
    }

    /// The route of the Gateway API that takes requests of these clients to a port.
    fn route_for(&self, service: &ServiceKey, port: u16, clients: &[&Clients]) -> Option<RouteKey> {
        let mut routes = self.attached.get(service)?.iter();
        let takes = |one: &Attachment| {
            one.port.is_none_or(|only| only == port) && clients.contains(&&one.clients)
        };
        let taking = routes.find(|(_, attachments)| attachments.iter().any(takes));
        taking.map(|(route, _)| route.clone())
    }
}

impl Index {
    pub(super) fn virtual_service(&mut self, name: &Name, after: Option<VirtualFacts>) {
        let keys = |facts: Option<&VirtualFacts>| facts.map(VirtualFacts::label_keys);
        let domain = self.config.cluster_domain.clone();
        let keys_after = keys(after.as_ref()).unwrap_or_default();
        let virtuals = &mut self.virtuals;
        let before = virtuals.facts.remove(name);
        let mut touched: HashSet<Name> = std::iter::once(name.clone()).collect();
        if let Some(before) = &before {
            virtuals.leave(name, before, &domain);
            virtuals.left.extend(before.hosts.iter().cloned());
            touched.extend(virtuals.rivals(&before.hosts));
            touched.extend(before.delegates(name));
        }
        if let Some(after) = after {
            virtuals.enter(name, &after, &domain);
            touched.extend(virtuals.rivals(&after.hosts));
            touched.extend(after.delegates(name));
            virtuals.facts.insert(name.clone(), after);
        }
        touched.extend(
            virtuals
                .by_delegate
                .get(name)
                .into_iter()
                .flatten()
                .cloned(),
        );
        self.refer_labels(&keys(before.as_ref()).unwrap_or_default(), &keys_after);
        self.dirty.virtuals.extend(touched);
    }

    /// Those who send to a service, for instance because its subsets changed.
    pub(super) fn mark_senders(&mut self, hostname: &str) {
        let known = self.virtuals.by_destination.iter();
        let senders = known.filter(|(host, _)| crate::destination_rules::covers(hostname, host));
        let names: Vec<Name> = senders
            .flat_map(|(_, names)| names.iter().cloned())
            .collect();
        self.dirty.virtuals.extend(names);
    }

    /// Lowers what is marked, what is for hosts that changed or sends to them, and what shares services with routes that
    /// changed. What routes of the Gateway API are told is said again where they come before a VirtualService.
    pub(super) fn flush_virtuals(
        &mut self,
        mut marked: HashSet<Name>,
        hosts: &HashSet<Arc<str>>,
        shared: HashSet<ServiceKey>,
        delta: &mut Delta,
    ) {
        for host in hosts.iter().chain(shared.iter().map(|key| &key.hostname)) {
            marked.extend(self.virtuals.covering(host));
            let senders = self.virtuals.by_destination.get(host);
            marked.extend(senders.into_iter().flatten().cloned());
        }
        // Who has a delegate that sends there has its rules.
        let roots = marked
            .iter()
            .filter_map(|name| self.virtuals.by_delegate.get(name));
        let roots: Vec<Name> = roots.flatten().cloned().collect();
        marked.extend(roots);
        let mut beside = HashSet::new();
        for host in std::mem::take(&mut self.virtuals.left) {
            beside.extend(self.routes_under(&host));
        }
        for name in &marked {
            let lowered = self.lower_virtual(name);
            let hosts = self
                .virtuals
                .facts
                .get(name)
                .map(|facts| facts.hosts.clone());
            for host in hosts.into_iter().flatten() {
                beside.extend(self.routes_under(&host));
            }
            self.tell_virtual(name, lowered, delta);
        }
        for route in beside {
            self.flush_route_status(&route, delta);
        }
    }

    /// The VirtualServices that would govern a service if it were not for routes of the Gateway API.
    pub(super) fn replaced_by_routes(&self, attachment: &Attachment) -> Vec<Name> {
        let root = &self.config.root_namespace;
        let service = &attachment.service;
        let covering = self.virtuals.covering(&service.hostname).into_iter();
        let governs = |name: &Name| {
            let facts = self.virtuals.facts.get(name);
            facts.is_some_and(|facts| {
                let clients = facts.clients(name, service, root);
                clients.iter().any(|clients| {
                    attachment.clients == *clients || attachment.clients == Clients::All
                })
            })
        };
        covering.filter(governs).collect()
    }

    fn lower_virtual(&self, name: &Name) -> Lowered {
        let Some(facts) = self.virtuals.facts.get(name) else {
            return Lowered::default();
        };
        let world = World {
            domain: &self.config.cluster_domain,
            root: &self.config.root_namespace,
            governed: &|host| {
                let keys = self.services_under(host).into_iter();
                keys.filter_map(|key| self.known(&key)).collect()
            },
            destination: &|host, namespace| self.destination(host, namespace),
            has_subset: &|service, subset| {
                // Whether a waypoint sees it depends on whose it is; what somebody sees is there.
                self.has_subset(service, &service.namespace, subset)
                    || self.has_subset(service, &name.namespace, subset)
            },
            delegate: &|other| self.virtuals.facts.get(other),
            displaced: &|service, port, clients| self.displaced(name, service, port, clients),
            delegated_by: &|other| {
                let names = self.virtuals.by_delegate.get(other);
                let mut names: Vec<Name> = names.into_iter().flatten().cloned().collect();
                names.sort();
                names
            },
        };
        virtual_services::lower(name, facts, &world)
    }

    /// Routes of the Gateway API that are attached to services under a host.
    fn routes_under(&self, host: &str) -> Vec<RouteKey> {
        let services = self.services_under(host);
        let routes = services
            .iter()
            .filter_map(|key| self.virtuals.attached.get(key));
        routes.flat_map(|routes| routes.keys().cloned()).collect()
    }

    /// The services that a host stands for.
    fn services_under(&self, host: &str) -> Vec<ServiceKey> {
        let known = &self.out.services_of;
        match host.starts_with('*') {
            false => known.get(host).cloned().unwrap_or_default(),
            true => {
                let known = known.iter();
                let under = known.filter(|(name, _)| crate::destination_rules::covers(host, name));
                let mut keys: Vec<ServiceKey> =
                    under.flat_map(|(_, keys)| keys.iter().cloned()).collect();
                keys.sort();
                keys
            }
        }
    }

    fn known(&self, key: &ServiceKey) -> Option<Known> {
        let service = self.out.services.get(key)?;
        let claim = self
            .owners(&key.hostname)
            .find(|claim| claim.name.namespace == key.namespace)?;
        let binding = match claim.is_entry {
            true => self.entry_binding(&claim.name),
            false => self.service_binding(&claim.name),
        };
        let waypoint = binding.gateway().map(|name| GatewayKey {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        });
        let ports = service.ports.iter();
        let mut ports: Vec<_> = ports
            .map(|(number, port)| (*number, port.app_protocol))
            .collect();
        ports.sort_unstable_by_key(|(number, _)| *number);
        Some(Known {
            key: key.clone(),
            ports,
            has_address: !service.addresses.is_empty(),
            waypoint,
        })
    }

    /// The service that a host leads to from a namespace: its own of that name, else one that it sees.
    fn destination(&self, host: &str, namespace: &str) -> Option<Known> {
        let keys = self.out.services_of.get(host)?;
        let own = keys.iter().find(|key| *key.namespace == *namespace);
        let seen = |key: &&ServiceKey| {
            let service = self.out.services.get(*key);
            service.is_some_and(|service| service.visibility == Visibility::Public)
        };
        let key = own.or_else(|| keys.iter().find(seen))?;
        self.known(key)
    }

    /// Who takes the requests of these clients to a port instead of a VirtualService.
    fn displaced(
        &self,
        name: &Name,
        service: &ServiceKey,
        port: u16,
        clients: &Clients,
    ) -> Option<Displaced> {
        let root = &self.config.root_namespace;
        let rank = |name: &Name| {
            let facts = self.virtuals.facts.get(name)?;
            let takes = facts.clients(name, service, root).contains(clients);
            takes
                .then(|| Rank::new(name, facts, service, root))
                .flatten()
        };
        let covering = self.virtuals.covering(&service.hostname);
        let first = covering.iter().filter_map(rank).min();
        if let Some(first) = first.filter(|first| first.name() != name) {
            return Some(Displaced::By(first.name().clone()));
        }
        let of_clients = name.namespace != service.namespace && *name.namespace != **root;
        // A VirtualService of the clients' own namespace comes before routes of the service's; one of the service's
        // does not undo what a route of its namespace says.
        let routes: &[&Clients] = match of_clients {
            true => &[clients],
            false => &[clients, &Clients::All],
        };
        let route = self.virtuals.route_for(service, port, routes)?;
        Some(Displaced::ByRoute(route, port))
    }

    /// Puts the parts into the tables of their waypoints, and out of those that they have left.
    fn tell_virtual(&mut self, name: &Name, lowered: Lowered, delta: &mut Delta) {
        let object = key(Kind::VirtualService, name);
        self.set_conditions(object, lowered.conditions, delta);
        let mut routes = lowered.routes;
        for kind in PARTS {
            let part = RouteKey {
                kind,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            };
            let found = routes.iter().position(|route| route.key == part);
            let route = found.map(|at| routes.swap_remove(at));
            let waypoints = match route {
                Some(_) => lowered.waypoints.clone(),
                None => HashSet::new(),
            };
            let before = self.virtuals.told.remove(&part).unwrap_or_default();
            for left in before.difference(&waypoints) {
                let row = (left.clone(), part.clone());
                self.out.routes.set(row, None, &mut delta.routes);
            }
            for waypoint in &waypoints {
                let row = (waypoint.clone(), part.clone());
                self.out.routes.set(row, route.clone(), &mut delta.routes);
            }
            if !waypoints.is_empty() {
                self.virtuals.told.insert(part, waypoints);
            }
        }
    }
}
