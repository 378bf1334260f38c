//! From VirtualServices to the model's routes, with what their authors are told.
//!
//! ```text
//!   VirtualFacts ──delegates (one level)──► http routes ──http, matches, filters──► rules ──┐
//!        ├───────connections──► tls, tcp rules ────────────────────────────────────────────┤
//!        └───────hosts ──► services of them that it governs, per port and client ──────────┴─► Route each part, conditions
//! ```
//!
//! Of several VirtualServices for one service one governs: see [`Rank`]. A route of the Gateway API for the same port
//! comes before it. A rule that cannot be followed keeps its requests and answers them with 500, so that none of them
//! takes a way that its author did not mean. Source: Istio reference, "Virtual Service".

mod connections;
mod delegates;
mod destinations;
mod filters;
mod http;
mod matches;
mod reach;
mod retries;
mod values;

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashSet;
use karst_k8s_api::{
    Object,
    istio::virtual_service::{HttpMatch as SourceMatch, VirtualServiceSpec},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use karst_model::{
    name::{GatewayKey, ServiceKey},
    protocol::AppProtocol,
    route::{Clients, Route, RouteKey, RouteKind, RouteRules},
};

use self::reach::Reach;
use crate::{
    conditions::{Condition, ConditionType},
    destination_rules::{covers, whole_host},
    facts::{Created, Name},
};

/// What stands for all clients that are no gateways.
const MESH: &str = "mesh";

/// What the index keeps of a VirtualService.
#[derive(Debug, PartialEq)]
pub(crate) struct VirtualFacts {
    pub(crate) created: Created,
    /// As whole names, or with a `*` at their start.
    pub(crate) hosts: Vec<Arc<str>>,
    export: Export,
    spec: VirtualServiceSpec,
}

/// Whose clients follow it.
#[derive(Debug, PartialEq)]
enum Export {
    All,
    /// Names of namespaces.
    Some(BTreeSet<Arc<str>>),
}

impl VirtualFacts {
    pub(crate) fn new(meta: &ObjectMeta, spec: VirtualServiceSpec, cluster_domain: &str) -> Self {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let hosts = spec.hosts.iter();
        Self {
            created: Created::of(meta),
            hosts: hosts
                .map(|host| whole_host(host, namespace, cluster_domain))
                .collect(),
            export: Export::new(&spec.export_to, namespace),
            spec,
        }
    }

    /// Whether it is for more than gateways. One without hosts is only a delegate.
    pub(crate) fn is_of_mesh(&self) -> bool {
        let gateways = &self.spec.gateways;
        !self.hosts.is_empty() && (gateways.is_empty() || gateways.iter().any(|one| one == MESH))
    }

    /// How well one of its hosts fits a service: the length of the host, whole names before wildcards.
    pub(crate) fn fit(&self, hostname: &str) -> Option<(bool, usize)> {
        let fitting = self.hosts.iter().filter(|host| covers(host, hostname));
        fitting
            .map(|host| (!host.starts_with('*'), host.len()))
            .max()
    }

    fn is_seen_by(&self, namespace: &str) -> bool {
        match &self.export {
            Export::All => true,
            Export::Some(names) => names.contains(namespace),
        }
    }

    /// The VirtualServices that go on for it.
    pub(crate) fn delegates(&self, own: &Name) -> HashSet<Name> {
        let all = self
            .spec
            .http
            .iter()
            .filter_map(|route| route.delegate.as_ref());
        all.map(|delegate| delegates::name_of(delegate, own))
            .collect()
    }

    /// Every host that a rule sends to, as a whole name.
    pub(crate) fn destinations(&self, own: &Name, domain: &str) -> HashSet<Arc<str>> {
        let http = self.spec.http.iter().flat_map(|route| {
            let routes = route.route.iter().map(|one| &one.destination);
            let mirrors = route.mirrors.iter().map(|one| &one.destination);
            routes.chain(mirrors).chain(route.mirror.as_ref())
        });
        let tls = self.spec.tls.iter().flat_map(|route| &route.route);
        let tcp = self.spec.tcp.iter().flat_map(|route| &route.route);
        let l4 = tls.chain(tcp).map(|one| &one.destination);
        http.chain(l4)
            .map(|one| whole_host(&one.host, &own.namespace, domain))
            .collect()
    }

    /// Keys of labels of clients that it refers to.
    pub(crate) fn label_keys(&self) -> Vec<Arc<str>> {
        let http = self.spec.http.iter().flat_map(|route| &route.r#match);
        let http = http.flat_map(|one| one.source_labels.keys());
        let tls = self.spec.tls.iter().flat_map(|route| &route.r#match);
        let tls = tls.flat_map(|one| one.source_labels.keys());
        let tcp = self.spec.tcp.iter().flat_map(|route| &route.r#match);
        let tcp = tcp.flat_map(|one| one.source_labels.keys());
        let keys: BTreeSet<Arc<str>> = http
            .chain(tls)
            .chain(tcp)
            .map(|key| key.as_str().into())
            .collect();
        keys.into_iter().collect()
    }

    /// Whose requests to a service it may take.
    pub(crate) fn clients(&self, own: &Name, service: &ServiceKey, root: &str) -> Vec<Clients> {
        let of_mesh = own.namespace == service.namespace || *own.namespace == *root;
        match &self.export {
            _ if !of_mesh && !self.is_seen_by(&own.namespace) => Vec::new(),
            _ if !of_mesh => vec![Clients::Namespace(own.namespace.clone())],
            Export::All => vec![Clients::All],
            Export::Some(names) => names.iter().cloned().map(Clients::Namespace).collect(),
        }
    }
}

impl Export {
    /// Istio's words: `.` its own namespace, `*` all, `~` nobody, and names.
    fn new(export_to: &[String], own: &str) -> Self {
        if export_to.is_empty() || export_to.iter().any(|one| one == "*") {
            return Self::All;
        }
        let names = export_to.iter().filter(|one| *one != "~");
        Self::Some(
            names
                .map(|one| {
                    if one == "." {
                        own.into()
                    } else {
                        one.as_str().into()
                    }
                })
                .collect(),
        )
    }
}

/// Which of several VirtualServices governs the requests of the same clients to a service: the least. First comes one of
/// the clients' own namespace, then of the service's, then of the root namespace; among those a whole host before
/// wildcards and the longer before the shorter; then the oldest. Nothing is merged: so Istio does it for the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    distance: u8,
    fit: std::cmp::Reverse<(bool, usize)>,
    created: Created,
    name: Name,
}

impl Rank {
    pub(crate) fn new(
        name: &Name,
        facts: &VirtualFacts,
        service: &ServiceKey,
        root: &str,
    ) -> Option<Self> {
        let distance = match () {
            () if name.namespace == service.namespace => 1,
            () if *name.namespace == *root => 2,
            () => 0,
        };
        Some(Self {
            distance,
            fit: std::cmp::Reverse(facts.fit(&service.hostname)?),
            created: facts.created,
            name: name.clone(),
        })
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }
}

/// A service that hosts of a VirtualService stand for, or that a rule sends to.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) key: ServiceKey,
    pub(crate) ports: Vec<(u16, AppProtocol)>,
    /// Whether it has an address of its own.
    pub(crate) has_address: bool,
    pub(crate) waypoint: Option<GatewayKey>,
}

/// Why a VirtualService does not govern a service for some clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Displaced {
    /// Another VirtualService does.
    By(Name),
    /// A route of the Gateway API is attached to this port.
    ByRoute(RouteKey, u16),
}

/// What the lowering asks about other objects.
pub(crate) struct World<'a> {
    pub(crate) domain: &'a str,
    pub(crate) root: &'a str,
    /// The services that a host stands for.
    pub(crate) governed: &'a dyn Fn(&str) -> Vec<Known>,
    /// The service that a whole host leads to from a namespace.
    pub(crate) destination: &'a dyn Fn(&str, &str) -> Option<Known>,
    pub(crate) has_subset: &'a dyn Fn(&ServiceKey, &str) -> bool,
    pub(crate) delegate: &'a dyn Fn(&Name) -> Option<&'a VirtualFacts>,
    /// Who takes the requests of these clients to a port instead.
    pub(crate) displaced: &'a dyn Fn(&ServiceKey, u16, &Clients) -> Option<Displaced>,
    /// The VirtualServices that one without hosts is a delegate of.
    pub(crate) delegated_by: &'a dyn Fn(&Name) -> Vec<Name>,
}

/// What comes of a VirtualService.
#[derive(Debug, Default)]
pub(crate) struct Lowered {
    /// Of each part that governs anything.
    pub(crate) routes: Vec<Route>,
    /// The waypoints of the services that it governs.
    pub(crate) waypoints: HashSet<GatewayKey>,
    pub(crate) conditions: Vec<Condition>,
}

/// What is found wrong while rules are lowered.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Parts that are not followed as they are written.
    pub(crate) faults: Vec<String>,
    /// Destinations that lead nowhere.
    pub(crate) unresolved: Vec<String>,
    /// What has no effect, though it harms nothing.
    pub(crate) idle: Vec<String>,
}

impl Findings {
    fn note(list: &mut Vec<String>, message: String) {
        if !list.contains(&message) {
            list.push(message);
        }
    }

    fn unresolved(&mut self, message: String) {
        Self::note(&mut self.unresolved, message);
    }

    fn idle(&mut self, message: String) {
        Self::note(&mut self.idle, message);
    }
}

/// The rules of each part.
struct Parts {
    http: RouteRules,
    tls: RouteRules,
    tcp: RouteRules,
}

/// What comes of a VirtualService in this world.
pub(crate) fn lower(name: &Name, facts: &VirtualFacts, world: &World<'_>) -> Lowered {
    let mut findings = Findings::default();
    let parts = parts(name, facts, world, &mut findings);
    let mut lowered = Lowered::default();
    if facts.hosts.is_empty() {
        lowered.conditions = of_delegate(name, findings, world);
        return lowered;
    }
    if !facts.is_of_mesh() {
        let message = format!(
            "it is for the gateways {} only, and there are none here: add the gateway {MESH} for requests within the mesh",
            facts.spec.gateways.join(", ")
        );
        lowered.conditions = said(findings);
        lowered
            .conditions
            .push(Condition::no(ConditionType::Programmed, "NoMesh", message));
        return lowered;
    }
    let mut reach = Reach::default();
    for host in &facts.hosts {
        let governed = (world.governed)(host);
        if governed.is_empty() && !host.starts_with('*') {
            reach.nobody.push(host.clone());
        }
        for service in governed {
            reach.attach(name, facts, &service, &parts, world);
        }
    }
    lowered.conditions = said(findings);
    lowered.conditions.extend(reach.conditions());
    let Reach {
        http,
        tls,
        tcp,
        waypoints,
        ..
    } = reach;
    let of = [
        (RouteKind::VirtualService, http, parts.http),
        (RouteKind::VirtualServiceTls, tls, parts.tls),
        (RouteKind::VirtualServiceTcp, tcp, parts.tcp),
    ];
    let routes = of
        .into_iter()
        .filter(|(_, attachments, _)| !attachments.is_empty());
    lowered.routes = routes
        .map(|(kind, attachments, rules)| Route {
            key: RouteKey {
                kind,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            },
            created: facts.created.0,
            attachments,
            rules,
        })
        .collect();
    lowered.waypoints = waypoints;
    lowered
}

fn parts(name: &Name, facts: &VirtualFacts, world: &World<'_>, findings: &mut Findings) -> Parts {
    let spec = &facts.spec;
    Parts {
        http: RouteRules::Http(http::rules(name, facts, world, findings)),
        tls: RouteRules::Tls(connections::tls(name, &spec.tls, world, findings)),
        tcp: RouteRules::Tcp(connections::tcp(name, &spec.tcp, world, findings)),
    }
}

/// What is wrong with a VirtualService by itself, whatever else there is, for its author at admission.
pub fn check_virtual_service(object: &Object) -> Vec<String> {
    let Object::VirtualService(object) = object else {
        return Vec::new();
    };
    let name = Name {
        namespace: object
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default()
            .into(),
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
    };
    let facts = VirtualFacts::new(&object.metadata, object.spec.clone(), "cluster.local");
    // Nothing else is known here: what depends on it is not said.
    let world = World {
        domain: "cluster.local",
        root: "",
        governed: &|_| Vec::new(),
        destination: &|_, _| None,
        has_subset: &|_, _| true,
        delegate: &|_| None,
        displaced: &|_, _, _| None,
        delegated_by: &|_| Vec::new(),
    };
    let mut findings = Findings::default();
    parts(&name, &facts, &world, &mut findings);
    findings.faults.into_iter().chain(findings.idle).collect()
}

/// Whether a match can take anything here: those for gateways only cannot.
fn is_of_mesh(source: &SourceMatch) -> bool {
    source.gateways.is_empty() || source.gateways.iter().any(|one| one == MESH)
}

/// What is said of the rules.
fn said(findings: Findings) -> Vec<Condition> {
    let Findings {
        faults,
        unresolved,
        idle,
    } = findings;
    let accepted = match faults.is_empty() {
        true => Condition::yes(ConditionType::Accepted, "Accepted", idle.join("; ")),
        false => Condition::no(
            ConditionType::Accepted,
            "Invalid",
            faults
                .into_iter()
                .chain(idle)
                .collect::<Vec<_>>()
                .join("; "),
        ),
    };
    let resolved = match unresolved.is_empty() {
        true => Condition::yes(ConditionType::ResolvedRefs, "ResolvedRefs", ""),
        false => Condition::no(
            ConditionType::ResolvedRefs,
            "BackendNotFound",
            unresolved.join("; "),
        ),
    };
    vec![accepted, resolved]
}

/// What one without hosts is told.
fn of_delegate(name: &Name, findings: Findings, world: &World<'_>) -> Vec<Condition> {
    let mut conditions = said(findings);
    let by: Vec<String> = (world.delegated_by)(name)
        .iter()
        .map(ToString::to_string)
        .collect();
    conditions.push(match by.is_empty() {
        true => Condition::no(
            ConditionType::Programmed,
            "NoHosts",
            "it has no hosts, and no other VirtualService names it as its delegate",
        ),
        false => Condition::yes(
            ConditionType::Programmed,
            "Delegate",
            format!("as delegate of {}", by.join(", ")),
        ),
    });
    conditions
}
