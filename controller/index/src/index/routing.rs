//! Routes and grants: who must be lowered again when an object changes, and what leaves for which waypoint.

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::gateway::{
    ReferenceGrantSpec,
    route::{BackendRef, Filter, ParentReference},
};
use karst_model::{
    name::{GatewayKey, ServiceKey},
    protocol::AppProtocol,
    route::{RouteKey, RouteKind},
};

use super::Index;
use crate::{
    conditions::Condition,
    delta::Delta,
    facts::Name,
    references::{
        Grants, ISTIO_NETWORKING, NoTarget, Reference, Target, TargetPort, TargetService,
    },
    routes::{self, Lowered, RouteFacts, RouteSpec, RouteStatus, World},
    selector::remove_from,
    services,
};

/// Everything that is known of routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    facts: HashMap<RouteKey, RouteFacts>,
    /// Routes that name an object of this name, whatever its kind.
    by_reference: HashMap<Name, HashSet<RouteKey>>,
    grants: Grants,
    /// The waypoints that were told of each route.
    told: HashMap<RouteKey, HashSet<GatewayKey>>,
    /// What was said last about each.
    said: HashMap<RouteKey, RouteStatus>,
}

impl Routes {
    /// The waypoints that follow a route; `None`: there is no such route.
    pub(super) fn waypoints_of(&self, key: &RouteKey) -> Option<HashSet<GatewayKey>> {
        self.facts.get(key)?;
        Some(self.told.get(key).cloned().unwrap_or_default())
    }

    /// What was said last, of every route.
    pub(super) fn statuses(&self) -> impl Iterator<Item = &RouteStatus> {
        self.said.values()
    }
}

impl Index {
    pub(super) fn route(&mut self, kind: RouteKind, name: &Name, after: Option<RouteFacts>) {
        let key = RouteKey {
            kind,
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        };
        let routes = &mut self.routes;
        if let Some(before) = routes.facts.remove(&key) {
            for name in references(&key, &before) {
                remove_from(&mut routes.by_reference, name, &key);
            }
        }
        if let Some(after) = after {
            for name in references(&key, &after) {
                routes
                    .by_reference
                    .entry(name)
                    .or_default()
                    .insert(key.clone());
            }
            routes.facts.insert(key.clone(), after);
        }
        self.dirty.routes.insert(key);
    }

    /// A grant matters to routes that refer into its namespace.
    pub(super) fn grant(&mut self, name: &Name, after: Option<ReferenceGrantSpec>) {
        if !self.routes.grants.set(name, after) {
            return;
        }
        let into = self.routes.by_reference.iter();
        let into = into.filter(|(to, _)| to.namespace == name.namespace);
        let routes: Vec<RouteKey> = into.flat_map(|(_, routes)| routes).cloned().collect();
        self.dirty.routes.extend(routes);
    }

    /// Lowers what is marked, and what refers to objects that are. Returns the services where other routes are attached
    /// now.
    pub(super) fn flush_routes(
        &mut self,
        mut routes: HashSet<RouteKey>,
        changed: &[&HashSet<Name>],
        delta: &mut Delta,
    ) -> HashSet<ServiceKey> {
        let changed = changed.iter().flat_map(|names| names.iter());
        for name in changed {
            let of = self.routes.by_reference.get(name);
            routes.extend(of.into_iter().flatten().cloned());
        }
        let mut attached = HashSet::new();
        for key in &routes {
            attached.extend(self.flush_route(key, delta));
        }
        attached
    }

    /// What a route's parents are told, again.
    pub(super) fn flush_route_status(&mut self, key: &RouteKey, delta: &mut Delta) {
        let _nothing_changes = self.flush_route(key, delta);
    }

    /// Returns the services that it is attached to since now, or no more.
    fn flush_route(&mut self, key: &RouteKey, delta: &mut Delta) -> HashSet<ServiceKey> {
        let facts = self.routes.facts.get(key);
        let generation = facts.and_then(|facts| facts.generation);
        let lowered = match facts {
            Some(facts) => self.lower(key, facts),
            None => Lowered {
                route: None,
                waypoints: HashSet::new(),
                parents: Vec::new(),
            },
        };
        let attachments = lowered.route.as_ref().map(|route| &*route.attachments);
        let attached = self.virtuals.attach(key, attachments.unwrap_or_default());
        self.tell(key, &lowered, delta);
        let status = RouteStatus {
            route: routes::object_key(key),
            observed_generation: generation,
            parents: lowered.parents,
        };
        let refusals = refusals(&status);
        self.set_conditions(status.route.clone(), refusals, delta);
        let before = self.routes.said.get(key);
        let nothing = before.is_none() && status.parents.is_empty();
        if before == Some(&status) || nothing {
            return attached;
        }
        match status.parents.is_empty() {
            true => drop(self.routes.said.remove(key)),
            false => drop(self.routes.said.insert(key.clone(), status.clone())),
        }
        delta.route_statuses.push(status);
        attached
    }

    fn lower(&self, key: &RouteKey, facts: &RouteFacts) -> Lowered {
        let world = World {
            target: &|to| self.target(to),
            permits: &|from, to| self.routes.grants.permit(from, to),
            is_waypoint: &|name| {
                let gateway = self.waypoints.gateway(name);
                gateway.is_some_and(|gateway| self.waypoints.is_waypoint(gateway))
            },
            replaced: &|attachment| self.replaced_by_routes(attachment),
        };
        routes::lower(key, facts, &world)
    }

    /// Puts the route into the tables of its waypoints, and out of those that it has left.
    fn tell(&mut self, key: &RouteKey, lowered: &Lowered, delta: &mut Delta) {
        let before = self.routes.told.remove(key).unwrap_or_default();
        for left in before.difference(&lowered.waypoints) {
            let row = (left.clone(), key.clone());
            self.out.routes.set(row, None, &mut delta.routes);
        }
        let Some(route) = &lowered.route else {
            return;
        };
        for waypoint in &lowered.waypoints {
            let row = (waypoint.clone(), key.clone());
            self.out
                .routes
                .set(row, Some(route.clone()), &mut delta.routes);
        }
        if !lowered.waypoints.is_empty() {
            self.routes
                .told
                .insert(key.clone(), lowered.waypoints.clone());
        }
    }

    /// What a reference of a route leads to.
    fn target(&self, to: &Reference<'_>) -> Result<Target, NoTarget> {
        let name = Name {
            namespace: to.namespace.into(),
            name: to.name.into(),
        };
        match (to.group, to.kind) {
            ("", "Service") => {
                let facts = self.services.get(&name).ok_or(NoTarget::Missing)?;
                if facts.is_external_name {
                    return Err(NoTarget::ExternalName);
                }
                let keys = services::visibility(&facts.export_to).map(|_| self.service_key(&name));
                let named = facts.ports.iter().map(|port| (port.number, &*port.name));
                let waypoint = self.service_binding(&name).gateway().map(gateway_key);
                self.target_of(keys.into_iter().collect(), named.collect(), waypoint)
            }
            (ISTIO_NETWORKING, "ServiceEntry") => {
                let facts = self.entries.get(&name).ok_or(NoTarget::Missing)?;
                let keys = self.keys_of_entry(&name, facts);
                let ports = facts.spec.ports.iter();
                let named = ports.map(|port| (port.number, port.name.as_str()));
                let waypoint = self.entry_binding(&name).gateway().map(gateway_key);
                self.target_of(keys, named.collect(), waypoint)
            }
            _ => Err(NoTarget::Kind),
        }
    }

    fn target_of(
        &self,
        keys: Vec<ServiceKey>,
        named: Vec<(u16, &str)>,
        waypoint: Option<GatewayKey>,
    ) -> Result<Target, NoTarget> {
        let found = keys
            .into_iter()
            .filter_map(|key| self.out.services.get(&key).cloned());
        let found: Vec<_> = found.collect();
        let first = found.first().ok_or(NoTarget::Missing)?;
        let ports = first.ports.iter().map(|(number, port)| {
            let name = named.iter().find(|(other, _)| other == number);
            TargetPort {
                number: *number,
                name: name.map_or("", |(_, name)| name).into(),
                is_tls: port.app_protocol == AppProtocol::Tls,
            }
        });
        Ok(Target {
            ports: ports.collect(),
            services: found
                .iter()
                .map(|service| TargetService {
                    key: service.key.clone(),
                    has_address: !service.addresses.is_empty(),
                    waypoint: waypoint.clone(),
                })
                .collect(),
        })
    }
}

/// What does not hold of a route, each once, for who looks at objects rather than at parents.
fn refusals(status: &RouteStatus) -> Vec<Condition> {
    let mut refusals: Vec<Condition> = Vec::new();
    let all = status.parents.iter().flat_map(|parent| &parent.conditions);
    for condition in all.filter(|condition| !condition.status) {
        if !refusals.contains(condition) {
            refusals.push(condition.clone());
        }
    }
    refusals
}

fn gateway_key(name: &Name) -> GatewayKey {
    GatewayKey {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

/// The names of all objects that a route refers to.
fn references(key: &RouteKey, facts: &RouteFacts) -> HashSet<Name> {
    let name = |namespace: Option<&String>, name: &str| Name {
        namespace: namespace
            .filter(|one| !one.is_empty())
            .map_or_else(|| key.namespace.clone(), |one| one.as_str().into()),
        name: name.into(),
    };
    let parent = |parent: &ParentReference| name(parent.namespace.as_ref(), &parent.name);
    let backend = |backend: &BackendRef| name(backend.namespace.as_ref(), &backend.name);
    let mut names: HashSet<Name> = facts.parents().iter().map(parent).collect();
    names.extend(backends(&facts.spec).into_iter().map(backend));
    names
}

/// Every reference to a backend, those of mirrors included.
fn backends(spec: &RouteSpec) -> Vec<&BackendRef> {
    fn of<'a>(filters: &'a [Filter], backends: &'a [BackendRef]) -> Vec<&'a BackendRef> {
        let mirrors = |filters: &'a [Filter]| {
            let mirrors = filters.iter().filter_map(|one| one.request_mirror.as_ref());
            mirrors.map(|mirror| &mirror.backend_ref)
        };
        let inner = backends.iter().flat_map(|one| mirrors(&one.filters));
        backends
            .iter()
            .chain(mirrors(filters))
            .chain(inner)
            .collect()
    }
    match spec {
        RouteSpec::Http(spec) => {
            let rules = spec.rules.iter().flatten();
            rules
                .flat_map(|rule| of(&rule.filters, &rule.backend_refs))
                .collect()
        }
        RouteSpec::Grpc(spec) => {
            let rules = spec.rules.iter();
            rules
                .flat_map(|rule| of(&rule.filters, &rule.backend_refs))
                .collect()
        }
        RouteSpec::Tls(spec) => {
            let rules = spec.rules.iter();
            rules.flat_map(|rule| of(&[], &rule.backend_refs)).collect()
        }
        RouteSpec::Tcp(spec) => {
            let rules = spec.rules.iter();
            rules.flat_map(|rule| of(&[], &rule.backend_refs)).collect()
        }
    }
}
