//! From the routes of the Gateway API to the model's, with what each of their parents is told.
//!
//! ```text
//!   RouteFacts ──rules (one file per kind)──► rules that hold, faults of the others ──┐
//!        └──────parents──► services that it attaches to, or why it does not ──────────┴─► Route, ParentStatus each
//! ```
//!
//! A rule with a fault is dropped and named (`PartiallyInvalid`); a route without any rule that holds is not accepted.
//! A backend that does not resolve keeps its share of the requests, which are answered with 500. Source: Gateway API
//! v1.6, GEP-1426 (parents that are Services), GEP-1364 (status).

mod backends;
mod filters;
mod grpc;
mod http;
mod parents;
mod sessions;
mod tcp;
mod tls;
mod values;

use std::sync::Arc;

use hashbrown::HashSet;
use karst_k8s_api::{
    Kind, Object, ObjectKey,
    gateway::{
        GrpcRouteSpec, HttpRouteSpec, TcpRouteSpec, TlsRouteSpec,
        route::{GATEWAY_GROUP, ParentReference},
    },
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use karst_model::{
    name::GatewayKey,
    route::{Attachment, Route, RouteKey, RouteKind, RouteRules},
};

use self::backends::RefFault;
use crate::{
    conditions::{Condition, ConditionType},
    facts::{Created, Name},
    references::{self, NoTarget, Reference, Referrer, Target},
};

/// What `controllerName` of the entries that we write is. Routes attach to services, so it is no Gateway's controller.
pub const ROUTE_CONTROLLER: &str = "karst.dev/mesh-controller";

/// What the index keeps of a route.
#[derive(Debug, PartialEq)]
pub(crate) struct RouteFacts {
    pub(crate) created: Created,
    pub(crate) generation: Option<i64>,
    pub(crate) spec: RouteSpec,
}

#[derive(Debug, PartialEq)]
pub(crate) enum RouteSpec {
    Http(HttpRouteSpec),
    Grpc(GrpcRouteSpec),
    Tls(TlsRouteSpec),
    Tcp(TcpRouteSpec),
}

/// What one parent of a route is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    pub parent: ParentReference,
    pub conditions: Vec<Condition>,
}

/// What all parents of one route are told, or all ancestors of a BackendTLSPolicy. None: it has none that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    pub route: ObjectKey,
    /// `metadata.generation` of the object that was read.
    pub observed_generation: Option<i64>,
    pub parents: Vec<ParentStatus>,
}

/// What the lowering asks about the other objects.
pub(crate) struct World<'a> {
    pub(crate) target: &'a dyn Fn(&Reference<'_>) -> Result<Target, NoTarget>,
    /// Whether somebody may refer to an object of another namespace.
    pub(crate) permits: &'a dyn Fn(&Referrer<'_>, &Reference<'_>) -> bool,
    /// Whether a Gateway is a waypoint.
    pub(crate) is_waypoint: &'a dyn Fn(&Name) -> bool,
    /// The VirtualServices that an attachment comes before.
    pub(crate) replaced: &'a dyn Fn(&Attachment) -> Vec<Name>,
}

/// What comes of a route.
pub(crate) struct Lowered {
    /// `None` where no parent accepts it.
    pub(crate) route: Option<Route>,
    /// The waypoints of the services that it attaches to.
    pub(crate) waypoints: HashSet<GatewayKey>,
    pub(crate) parents: Vec<ParentStatus>,
}

/// What is wrong with a rule: a reason of the API, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    reason: &'static str,
    message: String,
}

impl Fault {
    fn unsupported(message: impl Into<String>) -> Self {
        Self {
            reason: "UnsupportedValue",
            message: message.into(),
        }
    }

    fn incompatible(message: impl Into<String>) -> Self {
        Self {
            reason: "IncompatibleFilters",
            message: message.into(),
        }
    }
}

/// The rules of a route, as far as they hold.
struct Rules {
    rules: RouteRules,
    /// By the index of the rule; `None` for a fault of the route as a whole.
    faults: Vec<(Option<usize>, Fault)>,
    references: Vec<RefFault>,
    /// What has no effect, though it harms nothing.
    idle: Option<&'static str>,
}

impl RouteFacts {
    pub(crate) fn new(meta: &ObjectMeta, spec: RouteSpec) -> Self {
        Self {
            created: Created::of(meta),
            generation: meta.generation,
            spec,
        }
    }

    pub(crate) fn parents(&self) -> &[ParentReference] {
        match &self.spec {
            RouteSpec::Http(spec) => &spec.parent_refs,
            RouteSpec::Grpc(spec) => &spec.parent_refs,
            RouteSpec::Tls(spec) => &spec.parent_refs,
            RouteSpec::Tcp(spec) => &spec.parent_refs,
        }
    }
}

/// The kind of object that a route of the model was written as.
pub(crate) fn object_kind(kind: RouteKind) -> Kind {
    match kind {
        RouteKind::GrpcRoute => Kind::GrpcRoute,
        RouteKind::HttpRoute => Kind::HttpRoute,
        RouteKind::TlsRoute => Kind::TlsRoute,
        RouteKind::TcpRoute => Kind::TcpRoute,
        RouteKind::VirtualService | RouteKind::VirtualServiceTls | RouteKind::VirtualServiceTcp => {
            Kind::VirtualService
        }
    }
}

/// The key of the object of a route.
pub(crate) fn object_key(key: &RouteKey) -> ObjectKey {
    ObjectKey {
        kind: object_kind(key.kind),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

/// What comes of a route in this world.
pub(crate) fn lower(key: &RouteKey, facts: &RouteFacts, world: &World<'_>) -> Lowered {
    let own = parents::services(key, facts.parents(), world);
    let mut resolver = backends::Resolver::new(key, world, &own);
    let rules = lower_rules(&facts.spec, &mut resolver);
    let holds = !rules.is_empty();
    let mut lowered = Lowered {
        route: None,
        waypoints: HashSet::new(),
        parents: Vec::new(),
    };
    let mut attachments = Vec::new();
    for parent in facts.parents() {
        match parents::judge(key, parent, world) {
            parents::Verdict::NotOurs => {}
            parents::Verdict::Refused { reason, message } => {
                let accepted = Condition::no(ConditionType::Accepted, reason, message);
                lowered.parents.push(ParentStatus {
                    parent: parent.clone(),
                    conditions: vec![accepted, rules.resolved()],
                });
            }
            parents::Verdict::Fits(fit) => {
                let mut conditions = rules.conditions();
                if holds {
                    conditions.push(fit.programmed(world));
                    lowered.waypoints.extend(fit.waypoints());
                    attachments.extend(fit.attachments);
                }
                lowered.parents.push(ParentStatus {
                    parent: parent.clone(),
                    conditions,
                });
            }
        }
    }
    let mut seen = HashSet::new();
    attachments.retain(|attachment| seen.insert(attachment.clone()));
    lowered.route = (!attachments.is_empty()).then(|| Route {
        key: key.clone(),
        created: facts.created.0,
        attachments,
        rules: rules.rules,
    });
    lowered
}

/// What is wrong with a route by itself, whatever else there is, for its author at admission. Nothing is said about a
/// route without a parent that could be ours.
pub fn check_route(object: &Object) -> Vec<String> {
    let (kind, facts) = match object.clone() {
        Object::HttpRoute(route) => (
            RouteKind::HttpRoute,
            RouteFacts::new(&route.metadata, RouteSpec::Http(route.spec)),
        ),
        Object::GrpcRoute(route) => (
            RouteKind::GrpcRoute,
            RouteFacts::new(&route.metadata, RouteSpec::Grpc(route.spec)),
        ),
        Object::TlsRoute(route) => (
            RouteKind::TlsRoute,
            RouteFacts::new(&route.metadata, RouteSpec::Tls(route.spec)),
        ),
        Object::TcpRoute(route) => (
            RouteKind::TcpRoute,
            RouteFacts::new(&route.metadata, RouteSpec::Tcp(route.spec)),
        ),
        _ => return Vec::new(),
    };
    let ObjectKey {
        namespace, name, ..
    } = object.key();
    let key = RouteKey {
        kind,
        namespace,
        name,
    };
    // Nothing else is known here: what depends on it is not said.
    let world = World {
        target: &|to| match references::is_service_like(to) {
            true => Err(NoTarget::Missing),
            false => Err(NoTarget::Kind),
        },
        permits: &|_, _| true,
        is_waypoint: &|_| false,
        replaced: &|_| Vec::new(),
    };
    let is_ours = |parent: &ParentReference| parents::is_service_like(parent);
    if !facts.parents().iter().any(is_ours) {
        return Vec::new();
    }
    let mut resolver = backends::Resolver::new(&key, &world, &[]);
    let rules = lower_rules(&facts.spec, &mut resolver);
    let references = rules.references.iter();
    let known = references.filter(|one| one.reason != "BackendNotFound");
    let references = known.map(|one| one.message.clone());
    let idle = rules.idle.map(str::to_owned);
    let faults = rules.faults.iter().map(shown);
    faults.chain(references).chain(idle).collect()
}

fn lower_rules(spec: &RouteSpec, resolver: &mut backends::Resolver<'_>) -> Rules {
    match spec {
        RouteSpec::Http(spec) => http::rules(spec, resolver),
        RouteSpec::Grpc(spec) => grpc::rules(spec, resolver),
        RouteSpec::Tls(spec) => tls::rules(spec, resolver),
        RouteSpec::Tcp(spec) => tcp::rules(spec, resolver),
    }
}

/// A fault with the place of its rule.
fn shown((index, fault): &(Option<usize>, Fault)) -> String {
    match index {
        Some(index) => format!("rules[{index}]: {}", fault.message),
        None => fault.message.clone(),
    }
}

impl Rules {
    fn is_empty(&self) -> bool {
        match &self.rules {
            RouteRules::Http(rules) => rules.is_empty(),
            RouteRules::Tls(rules) => rules.is_empty(),
            RouteRules::Tcp(rules) => rules.is_empty(),
        }
    }

    /// What a parent is told that takes the route.
    fn conditions(&self) -> Vec<Condition> {
        let idle = self.idle.unwrap_or_default();
        let accepted = Condition::yes(ConditionType::Accepted, "Accepted", idle);
        match (self.is_empty(), self.faults.first()) {
            (true, Some((_, first))) => {
                let message = format!("no rule holds: {}", self.list());
                let refused = Condition::no(ConditionType::Accepted, first.reason, message);
                vec![refused, self.resolved()]
            }
            (true, None) => {
                let refused = Condition::no(
                    ConditionType::Accepted,
                    "UnsupportedValue",
                    "the route has no rules",
                );
                vec![refused, self.resolved()]
            }
            (false, Some(_)) => {
                // The specification asks for these words at the start, and for this reason.
                let message = format!("Dropped Rule {}", self.list());
                let partial =
                    Condition::yes(ConditionType::PartiallyInvalid, "UnsupportedValue", message);
                vec![accepted, self.resolved(), partial]
            }
            (false, None) => vec![accepted, self.resolved()],
        }
    }

    fn resolved(&self) -> Condition {
        match self.references.first() {
            None => Condition::yes(ConditionType::ResolvedRefs, "ResolvedRefs", ""),
            Some(first) => {
                let all: Vec<&str> = self.references.iter().map(|one| &*one.message).collect();
                Condition::no(ConditionType::ResolvedRefs, first.reason, all.join("; "))
            }
        }
    }

    fn list(&self) -> String {
        let all: Vec<String> = self.faults.iter().map(shown).collect();
        all.join("; ")
    }
}

/// Hosts of requests, of routes whose parents are services. Source: GEP-1294, "Route hostnames".
const HOSTNAMES: &str = "spec.hostnames has no effect: a route of a service takes what is sent to its addresses, whatever the Host header says";

/// Lowers each rule; those with a fault are left out and listed.
fn each_rule<S, R>(
    sources: &[S],
    mut lower: impl FnMut(&S) -> Result<R, Fault>,
) -> (Vec<R>, Vec<(Option<usize>, Fault)>) {
    let (mut rules, mut faults) = (Vec::new(), Vec::new());
    for (index, source) in sources.iter().enumerate() {
        match lower(source) {
            Ok(rule) => rules.push(rule),
            Err(fault) => faults.push((Some(index), fault)),
        }
    }
    (rules, faults)
}

/// A name that two rules of a route have is nobody's.
fn check_names<'a>(names: impl Iterator<Item = Option<&'a String>>) -> Vec<Option<Fault>> {
    let mut seen = HashSet::new();
    names
        .map(|name| {
            let name = name?;
            (!seen.insert(name))
                .then(|| Fault::unsupported(format!("another rule has the name {name:?} already")))
        })
        .collect()
}

/// The group of a parent, with its default.
fn group(parent: &ParentReference) -> &str {
    parent.group.as_deref().unwrap_or(GATEWAY_GROUP)
}

fn text(value: Option<&String>) -> Option<Arc<str>> {
    value.map(|value| value.as_str().into())
}
