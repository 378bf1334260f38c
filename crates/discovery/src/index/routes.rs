//! Routes by key and by the services whose traffic they take, and the request policies beside them.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::{HashMap, HashSet};
use karst_model::{
    name::{PolicyKey, ServiceKey},
    route::{Route, RouteKey},
    waypoint_policy::WaypointPolicy,
};

use crate::state::Change;

#[derive(Default)]
pub(crate) struct Routes {
    by_key: HashMap<RouteKey, Arc<Route>>,
    by_service: HashMap<ServiceKey, BTreeMap<RouteKey, Arc<Route>>>,
}

impl Routes {
    /// Inserts or replaces, and says which services have other routes now.
    pub(super) fn insert(&mut self, route: Arc<Route>, changes: &mut HashSet<Change>) {
        if self.by_key.get(&route.key) == Some(&route) {
            return;
        }
        self.remove(&route.key, changes);
        for attachment in &route.attachments {
            changes.insert(Change::Routes(attachment.service.clone()));
            self.by_service
                .entry(attachment.service.clone())
                .or_default()
                .insert(route.key.clone(), route.clone());
        }
        self.by_key.insert(route.key.clone(), route);
    }

    /// Removes by what the route *was* attached to.
    pub(super) fn remove(&mut self, key: &RouteKey, changes: &mut HashSet<Change>) {
        let Some(old) = self.by_key.remove(key) else {
            return;
        };
        for attachment in &old.attachments {
            changes.insert(Change::Routes(attachment.service.clone()));
            if let Some(routes) = self.by_service.get_mut(&attachment.service) {
                routes.remove(key);
                if routes.is_empty() {
                    self.by_service.remove(&attachment.service);
                }
            }
        }
    }

    /// The routes that are attached to a service, in the order of their keys.
    pub(crate) fn of_service(&self, service: &ServiceKey) -> Vec<Arc<Route>> {
        let routes = self.by_service.get(service);
        routes
            .into_iter()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_key.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// Ordered by key, so that of two policies that decide the same one is always named first.
#[derive(Default)]
pub(crate) struct WaypointPolicies(BTreeMap<PolicyKey, Arc<WaypointPolicy>>);

impl WaypointPolicies {
    pub(super) fn insert(&mut self, policy: Arc<WaypointPolicy>, changes: &mut HashSet<Change>) {
        let key = policy.key.clone();
        if self.0.insert(key.clone(), policy.clone()).as_ref() != Some(&policy) {
            changes.insert(Change::WaypointPolicy(key));
        }
    }

    pub(super) fn remove(&mut self, key: &PolicyKey, changes: &mut HashSet<Change>) {
        if self.0.remove(key).is_some() {
            changes.insert(Change::WaypointPolicy(key.clone()));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<WaypointPolicy>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use karst_model::route::{Attachment, Clients, RouteRules};

    use super::*;

    fn route(name: &str, services: &[&str]) -> Arc<Route> {
        let attachment = |service: &&str| Attachment {
            service: service.parse().unwrap(),
            port: None,
            clients: Clients::All,
        };
        Arc::new(Route {
            key: format!("HTTPRoute/shop/{name}").parse().unwrap(),
            created: 0,
            attachments: services.iter().map(attachment).collect(),
            rules: RouteRules::Http(Vec::new()),
        })
    }

    fn names(routes: &Routes, service: &str) -> Vec<String> {
        let found = routes.of_service(&service.parse().unwrap());
        found.iter().map(|r| r.key.name.to_string()).collect()
    }

    #[test]
    fn a_route_that_moves_is_gone_where_it_was_and_both_services_are_told() {
        let mut routes = Routes::default();
        let mut changes = HashSet::new();
        routes.insert(route("b", &["shop/a", "shop/b"]), &mut changes);
        routes.insert(route("a", &["shop/a"]), &mut changes);
        assert_eq!(names(&routes, "shop/a"), ["a", "b"]);

        changes.clear();
        routes.insert(route("b", &["shop/c"]), &mut changes);
        let told = |service: &str| changes.contains(&Change::Routes(service.parse().unwrap()));
        assert!(told("shop/a") && told("shop/b") && told("shop/c"));
        assert_eq!(names(&routes, "shop/a"), ["a"]);
        assert_eq!(names(&routes, "shop/b"), Vec::<String>::new());
        assert_eq!(names(&routes, "shop/c"), ["b"]);

        changes.clear();
        routes.insert(route("b", &["shop/c"]), &mut changes);
        assert!(changes.is_empty(), "nothing is different");
    }
}
