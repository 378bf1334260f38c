//! Routes that nearly took a request. Each match is tried alone, by the same table that the waypoint compiles, as it is
//! written and with each of its conditions left out: what takes the request without one condition lacked that one.

use std::sync::Arc;

use karst_model::{
    name::ServiceKey,
    route::{Attachment, Clients, HttpMatch, HttpRule, Route, RouteRules},
};
use karst_routing::{
    request::Request,
    table::{HttpRoute, Routes, Table},
};

use super::answer::{Detail, Object};

/// Matches that are tried: beyond, only those of the first routes are told about.
const MATCHES_MAX: usize = 500;

/// The service's port, its client, and the request.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) service: &'a ServiceKey,
    pub(super) port: u16,
    pub(super) client_namespace: Option<&'a str>,
    pub(super) request: &'a Request,
}

/// What is said of every rule that did not take the request, the nearest first.
pub(super) fn misses(
    place: Place<'_>,
    routes: &[Arc<Route>],
    taken: Option<&HttpRoute>,
) -> Vec<Detail> {
    let mut said: Vec<(usize, Detail)> = Vec::new();
    let mut tried = 0;
    for route in routes.iter().filter(|route| place.attaches(route)) {
        let RouteRules::Http(rules) = &route.rules else {
            continue;
        };
        for (index, rule) in rules.iter().enumerate() {
            let is_taken =
                taken.is_some_and(|taken| taken.route.key == route.key && taken.index == index);
            tried += rule.matches.len();
            if is_taken || tried > MATCHES_MAX {
                continue;
            }
            let (lacking, text) = place.miss(route, index, rule);
            said.push((lacking, Detail::about(of_route(route), text)));
        }
    }
    said.sort_by_key(|(lacking, _)| *lacking);
    said.into_iter().map(|(_, detail)| detail).collect()
}

/// A route as an object.
pub(super) fn of_route(route: &Route) -> Object {
    let kind = route.key.kind.as_str();
    let kind = kind.split('.').next().unwrap_or(kind);
    Object::new(kind, &route.key.namespace, &route.key.name)
}

/// A rule as messages name it.
pub(super) fn named(route: &Route, index: usize, rule: &HttpRule) -> String {
    match &rule.name {
        Some(name) => format!("{}/{name}", route.key),
        None => format!("{}/{index}", route.key),
    }
}

impl Place<'_> {
    /// Whether the route is attached to this port, for this client or for everybody.
    fn attaches(&self, route: &Route) -> bool {
        route.attachments.iter().any(|attachment| {
            attachment.service == *self.service
                && attachment.port.is_none_or(|port| port == self.port)
        })
    }

    /// How many conditions were lacking at the least, and what to say.
    fn miss(&self, route: &Arc<Route>, index: usize, rule: &HttpRule) -> (usize, String) {
        let name = named(route, index, rule);
        let foreign = route.attachments.iter().all(|attachment| {
            attachment.service != *self.service
                || matches!(&attachment.clients, Clients::Namespace(namespace) if self.client_namespace != Some(&**namespace))
        });
        if foreign {
            let text = format!(
                "{name}: is only for clients of namespace {}",
                route.key.namespace
            );
            return (usize::MAX, text);
        }
        let mut best: Option<(usize, String)> = None;
        for one in &rule.matches {
            if self.takes(route, rule, one) {
                return (
                    0,
                    format!("{name}: would take it too, and comes later in precedence"),
                );
            }
            let lacking = self.lacking(route, rule, one);
            let text = match &lacking[..] {
                [] => format!(
                    "{name}: lacks more than one of {}",
                    conditions(one).join(", ")
                ),
                lacking => format!("{name}: lacks {}", lacking.join(" and ")),
            };
            let rank = match lacking.len() {
                0 => usize::MAX - 1,
                some => some,
            };
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, text));
            }
        }
        best.unwrap_or_else(|| {
            (
                usize::MAX,
                format!("{name}: has no match that could take anything"),
            )
        })
    }

    /// The smallest set of conditions without which the match takes the request: one, or two; empty if more.
    fn lacking(&self, route: &Arc<Route>, rule: &HttpRule, one: &HttpMatch) -> Vec<String> {
        let relaxed = relaxations(one);
        for (name, without) in &relaxed {
            if self.takes(route, rule, without) {
                return vec![name.clone()];
            }
        }
        for (first, without) in &relaxed {
            for (second, both) in relaxations(without) {
                if self.takes(route, rule, &both) {
                    return vec![first.clone(), second];
                }
            }
        }
        Vec::new()
    }

    /// Whether a match alone takes the request: asked of the waypoint's own table.
    fn takes(&self, route: &Arc<Route>, rule: &HttpRule, one: &HttpMatch) -> bool {
        let alone = Route {
            attachments: vec![Attachment {
                service: self.service.clone(),
                port: None,
                clients: Clients::All,
            }],
            rules: RouteRules::Http(vec![HttpRule {
                matches: vec![one.clone()],
                filters: Vec::new(),
                backends: Vec::new(),
                ..rule.clone()
            }]),
            ..(**route).clone()
        };
        let table = Table::compile(self.service, self.port, [Arc::new(alone)]);
        match table.routes(self.client_namespace) {
            Routes::Http(table) => table.pick(self.request).is_some(),
            _ => false,
        }
    }
}

/// The match with one condition left out, for each of its conditions, by the condition's name.
fn relaxations(one: &HttpMatch) -> Vec<(String, HttpMatch)> {
    let mut relaxed = Vec::new();
    let mut without = |name: String, change: &dyn Fn(&mut HttpMatch)| {
        let mut copy = one.clone();
        change(&mut copy);
        relaxed.push((name, copy));
    };
    if !one.hosts.is_empty() {
        without(format!("host {}", hosts(one)), &|copy| copy.hosts.clear());
    }
    if let Some(path) = &one.path {
        without(format!("path {}", shown(&format!("{path:?}"))), &|copy| {
            copy.path = None;
        });
    }
    if let Some(method) = &one.method {
        without(format!("method {method}"), &|copy| copy.method = None);
    }
    for (index, header) in one.headers.iter().enumerate() {
        let name = format!(
            "header {} {}",
            header.name,
            shown(&format!("{:?}", header.value))
        );
        without(name, &|copy| drop(copy.headers.remove(index)));
    }
    for (index, query) in one.query.iter().enumerate() {
        let name = format!(
            "query {} {}",
            query.name,
            shown(&format!("{:?}", query.value))
        );
        without(name, &|copy| drop(copy.query.remove(index)));
    }
    let plain = HttpMatch {
        hosts: one.hosts.clone(),
        path: one.path.clone(),
        method: one.method.clone(),
        headers: one.headers.clone(),
        query: one.query.clone(),
        ignore_path_case: one.ignore_path_case,
        ..HttpMatch::default()
    };
    if plain != *one {
        relaxed.push(("who calls (source, port or claims)".to_owned(), plain));
    }
    relaxed
}

fn conditions(one: &HttpMatch) -> Vec<String> {
    relaxations(one).into_iter().map(|(name, _)| name).collect()
}

fn hosts(one: &HttpMatch) -> String {
    let hosts: Vec<String> = one
        .hosts
        .iter()
        .map(|host| shown(&format!("{host:?}")))
        .collect();
    hosts.join(" or ")
}

/// `Exact("x")` as `= x`, `Prefix("x")` as `x*`; others as they are.
fn shown(debug: &str) -> String {
    let inner = |kind: &str| {
        debug
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix("(\"")?.strip_suffix("\")"))
    };
    if let Some(text) = inner("Exact") {
        return text.to_owned();
    }
    if let Some(text) = inner("Prefix").or_else(|| inner("Start")) {
        return format!("{text}*");
    }
    if let Some(text) = inner("Suffix") {
        return format!("*{text}");
    }
    if let Some(text) = inner("Regex") {
        return format!("~ {text}");
    }
    debug.to_owned()
}
