//! The naive matcher: walks all matches of all routes and compares each pair by the sentences of the Gateway API,
//! sharing nothing with the product but the model. What the specification leaves open is as `src/table.rs` states it.

use std::{cell::RefCell, cmp::Ordering, collections::HashMap};

use karst_model::route::{
    Clients, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch, Route, RouteKind,
    RouteRules, ValueMatch,
};

use super::cases::{Case, PORT, service};

/// The rule that must take a request: route's name and rule's index, and the prefix that the match took.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// No route at all.
    NoRoutes,
    /// There are routes, and none takes it.
    NotFound,
    Rule {
        route: String,
        rule: usize,
        prefix: Option<String>,
    },
}

/// One match that takes the request.
struct Hit<'a> {
    route: &'a Route,
    rule: usize,
    index: usize,
    m: &'a HttpMatch,
    /// The host of the match that took the request.
    host: Option<&'a HostMatch>,
}

pub(crate) fn pick(routes: &[Route], case: &Case) -> Expected {
    let group = group(routes, case.client.as_deref());
    if group.is_empty() {
        return Expected::NoRoutes;
    }
    if group
        .iter()
        .any(|route| route.key.kind == RouteKind::VirtualService)
    {
        return first_written(&group, case);
    }
    let mut best: Option<Hit<'_>> = None;
    for route in group {
        let RouteRules::Http(rules) = &route.rules else {
            continue;
        };
        for (rule, written) in rules.iter().enumerate() {
            for (index, m) in written.matches.iter().enumerate() {
                let Some(host) = host(m, case) else {
                    continue;
                };
                if !takes(m, case) {
                    continue;
                }
                let hit = Hit {
                    route,
                    rule,
                    index,
                    m,
                    host,
                };
                if best.as_ref().is_none_or(|best| before(&hit, best)) {
                    best = Some(hit);
                }
            }
        }
    }
    match best {
        None => Expected::NotFound,
        Some(hit) => Expected::Rule {
            route: hit.route.key.to_string(),
            rule: hit.rule,
            prefix: match &hit.m.path {
                None => Some(String::new()),
                Some(PathMatch::Prefix(prefix)) => {
                    Some(spelled(prefix).trim_end_matches('/').to_owned())
                }
                Some(_) => None,
            },
        },
    }
}

/// Of VirtualServices for one host the oldest counts; of its matches the first that takes the request.
fn first_written(group: &[&Route], case: &Case) -> Expected {
    let name = |route: &Route| format!("{}/{}", route.key.namespace, route.key.name);
    let mut group = group.to_vec();
    group.sort_by_key(|route| (route.created, name(route)));
    let route = group[0];
    let RouteRules::Http(rules) = &route.rules else {
        panic!("there are only HTTP rules");
    };
    for (rule, written) in rules.iter().enumerate() {
        for m in &written.matches {
            let whole = takes(m, case) && host(m, case).is_some();
            if whole && m.port.is_none_or(|port| port == PORT) && sender(m, case) && claims(m) {
                return Expected::Rule {
                    route: route.key.to_string(),
                    rule,
                    prefix: replaced(m, &case.path),
                };
            }
        }
    }
    Expected::NotFound
}

/// What of the path a rewrite would replace; `None`: the whole of it.
fn replaced(m: &HttpMatch, path: &str) -> Option<String> {
    match &m.path {
        None => Some("/".to_owned()),
        Some(PathMatch::Start(start)) => Some(path[..spelled(start).len()].to_owned()),
        Some(PathMatch::Prefix(prefix)) => Some(spelled(prefix).trim_end_matches('/').to_owned()),
        Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
    }
}

fn sender(m: &HttpMatch, case: &Case) -> bool {
    let namespace = m.source.namespace.as_deref();
    namespace.is_none_or(|wanted| case.client.as_deref() == Some(wanted))
        && m.source
            .labels
            .iter()
            .all(|label| case.labels.contains(label))
        && m.source
            .principal
            .as_ref()
            .is_none_or(|wanted| value(wanted, case.principal.as_deref()))
}

/// No case has a token.
fn claims(m: &HttpMatch) -> bool {
    m.claims.iter().all(|claim| value(&claim.value, None))
}

/// Routes of the client's own namespace if it has any, else the producer's; of one kind.
fn group<'a>(routes: &'a [Route], client: Option<&str>) -> Vec<&'a Route> {
    let attached = |route: &&Route, wanted: &dyn Fn(&Clients) -> bool| {
        route.attachments.iter().any(|attachment| {
            attachment.service == service()
                && (attachment.port.is_none() || attachment.port == Some(PORT))
                && wanted(&attachment.clients)
        })
    };
    let own = |clients: &Clients| match clients {
        Clients::Namespace(namespace) => Some(&**namespace) == client,
        Clients::All => false,
    };
    let all = |clients: &Clients| *clients == Clients::All;
    let mut group: Vec<&Route> = routes
        .iter()
        .filter(|route| attached(route, &own))
        .collect();
    if group.is_empty() {
        group = routes
            .iter()
            .filter(|route| attached(route, &all))
            .collect();
    }
    let there = |kind| group.iter().any(|route| route.key.kind == kind);
    let kinds = [
        RouteKind::GrpcRoute,
        RouteKind::HttpRoute,
        RouteKind::VirtualService,
    ];
    if let Some(first) = kinds.into_iter().find(|kind| there(*kind)) {
        group.retain(|route| route.key.kind == first);
    }
    group
}

/// The host of the match that the request's host falls under, the most specific; `Some(None)` where any will do.
fn host<'a>(m: &'a HttpMatch, case: &Case) -> Option<Option<&'a HostMatch>> {
    if m.hosts.is_empty() {
        return Some(None);
    }
    let host = case.host.to_lowercase();
    let taking = m.hosts.iter().filter(|candidate| match candidate {
        HostMatch::Exact(name) => name.to_lowercase() == host,
        HostMatch::Suffix(suffix) => {
            host.ends_with(&suffix.to_lowercase()) && host.len() > suffix.len()
        }
    });
    taking.max_by_key(|host| characters(Some(host))).map(Some)
}

/// Characters in a matching non-wildcard hostname, then in a matching hostname.
fn characters(host: Option<&HostMatch>) -> (usize, usize) {
    match host {
        None => (0, 0),
        Some(HostMatch::Exact(name)) => (name.len(), name.len()),
        Some(HostMatch::Suffix(name)) => (0, name.len()),
    }
}

fn takes(m: &HttpMatch, case: &Case) -> bool {
    path(m, &case.path)
        && m.method
            .as_ref()
            .is_none_or(|method| **method == case.method)
        && headers(m)
            .iter()
            .all(|header| value(&header.value, joined(case, &header.name).as_deref()))
        && query(m).iter().all(|param| {
            let first = case.query.iter().find(|(name, _)| *name == *param.name);
            value(&param.value, first.map(|(_, value)| value.as_str()))
        })
}

/// Only the first entry of a name is considered.
fn headers(m: &HttpMatch) -> Vec<&HeaderMatch> {
    let first = |at: usize| {
        !m.headers[..at]
            .iter()
            .any(|earlier| earlier.name == m.headers[at].name)
    };
    (0..m.headers.len())
        .filter(|at| first(*at))
        .map(|at| &m.headers[at])
        .collect()
}

fn query(m: &HttpMatch) -> Vec<&QueryMatch> {
    let first = |at: usize| {
        !m.query[..at]
            .iter()
            .any(|earlier| earlier.name == m.query[at].name)
    };
    (0..m.query.len())
        .filter(|at| first(*at))
        .map(|at| &m.query[at])
        .collect()
}

fn joined(case: &Case, name: &str) -> Option<String> {
    let values: Vec<&str> = case
        .headers
        .iter()
        .filter(|(sent, _)| sent.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn path(m: &HttpMatch, path: &str) -> bool {
    let cased = |text: &str| match m.ignore_path_case {
        true => text.to_lowercase(),
        false => text.to_owned(),
    };
    match &m.path {
        None => true,
        Some(PathMatch::Exact(exact)) => cased(path) == cased(&spelled(exact)),
        Some(PathMatch::Start(start)) => cased(path).starts_with(&cased(&spelled(start))),
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = spelled(prefix);
            let prefix = prefix.trim_end_matches('/');
            prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/"))
        }
        Some(PathMatch::Regex(text)) => expression(text, path),
    }
}

/// In the spelling of normalised paths: only what the cases hold.
fn spelled(path: &str) -> String {
    path.replace("%61", "a")
}

/// Whether the expression takes the whole value.
fn expression(text: &str, value: &str) -> bool {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, regex::Regex>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let whole = || regex::Regex::new(&format!("^({text})$")).unwrap();
        known
            .entry(text.to_owned())
            .or_insert_with(whole)
            .is_match(value)
    })
}

fn value(wanted: &ValueMatch, seen: Option<&str>) -> bool {
    match (wanted, seen) {
        (ValueMatch::Absent, value) => value.is_none(),
        (ValueMatch::Not(inner), seen) => !value(inner, seen),
        (ValueMatch::Present, value) => value.is_some(),
        (ValueMatch::Exact(exact), value) => value == Some(&**exact),
        (ValueMatch::Prefix(prefix), value) => {
            value.is_some_and(|value| value.starts_with(&**prefix))
        }
        (ValueMatch::Regex(text), value) => value.is_some_and(|value| expression(text, value)),
    }
}

/// Whether one match is given precedence over another, sentence by sentence.
fn before(a: &Hit<'_>, b: &Hit<'_>) -> bool {
    let grpc = a.route.key.kind == RouteKind::GrpcRoute;
    let name = |hit: &Hit<'_>| format!("{}/{}", hit.route.key.namespace, hit.route.key.name);
    // Largest number of characters in a matching non-wildcard hostname, then in a matching hostname.
    characters(b.host)
        .cmp(&characters(a.host))
        // "Exact" path match, "Prefix" path match with largest number of characters.
        .then_with(|| path_rank(b.m.path.as_ref(), grpc).cmp(&path_rank(a.m.path.as_ref(), grpc)))
        // Method match.
        .then_with(|| b.m.method.is_some().cmp(&a.m.method.is_some()))
        // Largest number of header matches.
        .then_with(|| headers(b.m).len().cmp(&headers(a.m).len()))
        // Largest number of query param matches.
        .then_with(|| query(b.m).len().cmp(&query(a.m).len()))
        // The oldest route, then the first by "{namespace}/{name}".
        .then_with(|| a.route.created.cmp(&b.route.created))
        .then_with(|| name(a).cmp(&name(b)))
        // The first rule in list order.
        .then_with(|| (a.rule, a.index).cmp(&(b.rule, b.index)))
        == Ordering::Less
}

/// The higher comes first. Regular expressions: for HTTPRoutes between exact paths and prefixes, for GRPCRoutes between
/// prefixes and what takes everything; the longer first.
fn path_rank(path: Option<&PathMatch>, grpc: bool) -> (u8, usize) {
    match path {
        Some(PathMatch::Exact(_)) => (4, 0),
        Some(PathMatch::Regex(text)) => (if grpc { 1 } else { 3 }, text.chars().count()),
        Some(PathMatch::Prefix(prefix)) => match spelled(prefix).trim_end_matches('/').len() {
            0 => (0, 0),
            len => (2, len),
        },
        None | Some(PathMatch::Start(_)) => (0, 0),
    }
}
