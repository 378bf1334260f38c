//! Routes that go on in another VirtualService: what of both a request must be like, and whose word counts.
//!
//! One level, as in Istio: a delegate has no hosts and no delegates of its own. A match of the root and one of the
//! delegate that ask for different things take nothing together and are left out; what the delegate's route says beats
//! what the root's says. Source: Istio reference, `Delegate`; its behaviour as its documentation of delegates describes.

use std::collections::BTreeMap;

use karst_k8s_api::istio::virtual_service::{Delegate, HttpMatch, HttpRoute, StringMatch};

use super::{Findings, VirtualFacts, World};
use crate::facts::Name;

/// A route, and the object that its short hosts are of.
pub(super) struct Placed {
    pub(super) route: HttpRoute,
    pub(super) owner: Name,
    /// For its author.
    pub(super) place: String,
}

/// The object that a delegate names.
pub(super) fn name_of(delegate: &Delegate, own: &Name) -> Name {
    let namespace = delegate.namespace.as_deref().filter(|one| !one.is_empty());
    Name {
        namespace: namespace.map_or_else(|| own.namespace.clone(), Into::into),
        name: delegate.name.as_deref().unwrap_or_default().into(),
    }
}

/// All routes with those of delegates in their places. `Err`: this route cannot be followed.
pub(super) fn expanded(
    name: &Name,
    facts: &VirtualFacts,
    world: &World<'_>,
    findings: &mut Findings,
) -> Vec<Placed> {
    let mut all = Vec::new();
    for (index, route) in facts.spec.http.iter().enumerate() {
        let place = format!("http[{index}]");
        let Some(delegate) = &route.delegate else {
            all.push(Placed {
                route: route.clone(),
                owner: name.clone(),
                place,
            });
            continue;
        };
        let to = name_of(delegate, name);
        match find(name, facts, route, &to, world) {
            Ok(found) => all.extend(merged(route, found, &to, &place, findings)),
            Err(message) if message.is_empty() => {}
            Err(message) => {
                findings.faults.push(format!("{place}.delegate: {message}"));
                // Its requests are kept: the route has nothing that it could do.
                all.push(Placed {
                    route: HttpRoute {
                        r#match: route.r#match.clone(),
                        name: route.name.clone(),
                        ..HttpRoute::default()
                    },
                    owner: name.clone(),
                    place: String::new(),
                });
            }
        }
    }
    all
}

/// The delegate, if the route may go on there.
fn find<'a>(
    name: &Name,
    facts: &VirtualFacts,
    route: &HttpRoute,
    to: &Name,
    world: &World<'a>,
) -> Result<&'a VirtualFacts, String> {
    if facts.hosts.is_empty() {
        return Err(
            "a VirtualService without hosts is a delegate itself, and a delegate has none"
                .to_owned(),
        );
    }
    if to.name.is_empty() {
        return Err("it names nobody".to_owned());
    }
    if to == name {
        return Err("it leads to itself".to_owned());
    }
    if !route.route.is_empty() || route.redirect.is_some() || route.direct_response.is_some() {
        return Err("it excludes route, redirect and directResponse beside it".to_owned());
    }
    let Some(found) = (world.delegate)(to) else {
        return Err(format!("there is no VirtualService {to}"));
    };
    if !found.hosts.is_empty() {
        return Err(format!(
            "VirtualService {to} has hosts, so that it is no delegate"
        ));
    }
    if !found.is_seen_by(&name.namespace) {
        return Err(format!(
            "exportTo of VirtualService {to} leaves out namespace {}",
            name.namespace
        ));
    }
    if found.spec.http.iter().any(|route| route.delegate.is_some()) {
        let circle = found.delegates(to).contains(name);
        return Err(match circle {
            true => format!("VirtualService {to} delegates back: it leads in a circle"),
            false => format!("VirtualService {to} delegates further, and a delegate may not"),
        });
    }
    Ok(found)
}

fn merged(
    root: &HttpRoute,
    found: &VirtualFacts,
    to: &Name,
    place: &str,
    findings: &mut Findings,
) -> Vec<Placed> {
    let mut all = Vec::new();
    for (index, leaf) in found.spec.http.iter().enumerate() {
        let Some(matches) = matches(&root.r#match, &leaf.r#match) else {
            findings.idle(format!(
                "{place}.delegate: http[{index}] of VirtualService {to} asks for other requests than the route does, and takes none"
            ));
            continue;
        };
        all.push(Placed {
            route: one(root, leaf, matches),
            owner: to.clone(),
            place: format!("{place}.delegate {to} http[{index}]"),
        });
    }
    all
}

/// The delegate's word counts, then the root's.
fn one(root: &HttpRoute, leaf: &HttpRoute, matches: Vec<HttpMatch>) -> HttpRoute {
    let name = match (&root.name, &leaf.name) {
        (Some(root), Some(leaf)) => Some(format!("{root}-{leaf}")),
        (root, leaf) => root.clone().or_else(|| leaf.clone()),
    };
    let no_mirror = leaf.mirror.is_none() && leaf.mirrors.is_empty();
    let mirrors = if no_mirror { root } else { leaf };
    HttpRoute {
        name,
        r#match: matches,
        rewrite: leaf.rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: leaf.timeout.clone().or_else(|| root.timeout.clone()),
        retries: leaf.retries.clone().or_else(|| root.retries.clone()),
        fault: leaf.fault.clone().or_else(|| root.fault.clone()),
        mirror: mirrors.mirror.clone(),
        mirrors: mirrors.mirrors.clone(),
        mirror_percent: mirrors.mirror_percent,
        mirror_percent_snake: mirrors.mirror_percent_snake,
        mirror_percentage: mirrors.mirror_percentage.clone(),
        cors_policy: leaf
            .cors_policy
            .clone()
            .or_else(|| root.cors_policy.clone()),
        headers: leaf.headers.clone().or_else(|| root.headers.clone()),
        ..leaf.clone()
    }
}

/// What both take. `None`: nothing.
fn matches(roots: &[HttpMatch], leaves: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    match (roots.is_empty(), leaves.is_empty()) {
        (true, _) => return Some(leaves.to_vec()),
        (_, true) => return Some(roots.to_vec()),
        _ => {}
    }
    let pairs = roots
        .iter()
        .flat_map(|root| leaves.iter().map(move |leaf| (root, leaf)));
    let all: Vec<HttpMatch> = pairs.filter_map(|(root, leaf)| both(root, leaf)).collect();
    (!all.is_empty()).then_some(all)
}

fn both(root: &HttpMatch, leaf: &HttpMatch) -> Option<HttpMatch> {
    let number = |root: Option<u32>, leaf: Option<u32>| match (
        root.filter(|one| *one > 0),
        leaf.filter(|one| *one > 0),
    ) {
        (Some(root), Some(leaf)) if root != leaf => None,
        (root, leaf) => Some(leaf.or(root)),
    };
    let text = |root: &Option<String>, leaf: &Option<String>| match (root, leaf) {
        (Some(root), Some(leaf)) if root != leaf => None,
        (root, leaf) => Some(leaf.clone().or_else(|| root.clone())),
    };
    if root.ignore_uri_case.unwrap_or(false) != leaf.ignore_uri_case.unwrap_or(false) {
        return None;
    }
    let mut labels = root.source_labels.clone();
    for (key, value) in &leaf.source_labels {
        match labels.get(key) {
            Some(other) if other != value => return None,
            _ => labels.insert(key.clone(), value.clone()),
        };
    }
    Some(HttpMatch {
        name: leaf.name.clone().or_else(|| root.name.clone()),
        uri: narrower(root.uri.as_ref(), leaf.uri.as_ref())?,
        scheme: narrower(root.scheme.as_ref(), leaf.scheme.as_ref())?,
        method: narrower(root.method.as_ref(), leaf.method.as_ref())?,
        authority: narrower(root.authority.as_ref(), leaf.authority.as_ref())?,
        headers: each(&root.headers, &leaf.headers)?,
        without_headers: each(&root.without_headers, &leaf.without_headers)?,
        query_params: each(&root.query_params, &leaf.query_params)?,
        port: number(root.port, leaf.port)?,
        source_labels: labels,
        source_namespace: text(&root.source_namespace, &leaf.source_namespace)?,
        // A delegate is bound to no gateways: the root decides.
        gateways: root.gateways.clone(),
        ignore_uri_case: leaf.ignore_uri_case,
        stat_prefix: leaf.stat_prefix.clone(),
    })
}

fn each(
    root: &BTreeMap<String, StringMatch>,
    leaf: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut all = root.clone();
    for (key, value) in leaf {
        let value = narrower(root.get(key), Some(value))??;
        all.insert(key.clone(), value);
    }
    Some(all)
}

/// The delegate's condition, if it takes no more than the root's does. `None`: they exclude each other.
fn narrower(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    let (Some(root), Some(leaf)) = (root, leaf) else {
        return Some(leaf.or(root).cloned());
    };
    let fits = match (&root.exact, &root.prefix, &root.regex) {
        // Of expressions nobody can say which takes less.
        (_, _, Some(_)) => leaf == &StringMatch::default(),
        (Some(exact), _, _) => leaf.exact.as_ref() == Some(exact),
        (_, Some(prefix), _) => {
            let text = leaf.exact.as_ref().or(leaf.prefix.as_ref());
            leaf.regex.is_none() && text.is_some_and(|text| text.starts_with(prefix.as_str()))
        }
        (None, None, None) => true,
    };
    fits.then(|| Some(leaf.clone()))
}
