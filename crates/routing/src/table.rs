//! All routes of one port of a service, compiled so that the time of a match does not grow with their number.
//!
//! ```text
//!   routes of the service+port ──by client──► producer's, or those of a consumer namespace ──kind──► HTTP | TLS | TCP
//!   request ──► host (hash; suffixes, longest first; any) ──► path (exact hash; regex sets; prefixes, longest first)
//!           ──► bucket of matches that share both (hash by header, query, method) ──► the first in precedence
//! ```
//!
//! Precedence and merging are those of the Gateway API v1.6 (`HTTPRouteSpec`, `HTTPRouteRule`, `GRPCRouteRule`, GEP-1294);
//! `tests/precedence.rs` has a test for each of their sentences. What they leave open is decided here: for HTTPRoutes a
//! regular expression comes after exact paths and before prefixes, the longer expression first; for GRPCRoutes, where
//! the length of the service decides, it comes after prefixes; a request whose best host has no rule that takes it is
//! offered to the rules of its next best.
//!
//! A VirtualService is another matter: its matches are tried in the order in which they are written, as Envoy does, and
//! among several for one service only the first counts (`ordered`). Routes of the Gateway API come before it.

mod bucket;
mod conditions;
mod hosts;
mod http;
mod l4;
mod ordered;
mod paths;
mod regexes;

use std::sync::Arc;

use hashbrown::HashMap;
use karst_model::{
    name::ServiceKey,
    route::{Clients, Route, RouteKey, RouteKind, RouteRules},
};

pub use self::{
    http::{HttpRoute, HttpTable, Picked, RouteBackend},
    l4::{Dialled, L4Rule, OrderedTable, TlsTable},
};

use crate::compare::{Site, holds, told};

/// The routes of one port of a service, for all its clients.
#[derive(Debug, Default)]
pub struct Table {
    producer: Group,
    /// By the namespace of the client.
    consumers: HashMap<Arc<str>, Group>,
    problems: Vec<Problem>,
}

/// Routes of one kind that are merged with one another.
#[derive(Debug, Default)]
enum Group {
    #[default]
    None,
    Http(Box<HttpTable>),
    Tls(TlsTable),
    Tcp(Arc<L4Rule>),
    OrderedTcp(OrderedTable),
}

/// What applies to the traffic of a client.
#[derive(Clone, Copy, Debug)]
pub enum Routes<'a> {
    /// No route: straight to the service.
    None,
    Http(&'a HttpTable),
    Tls(&'a TlsTable),
    Tcp(&'a Arc<L4Rule>),
    OrderedTcp(&'a OrderedTable),
}

/// Part of a route that cannot be applied as it is written. The controller refuses such routes; one that comes all the
/// same harms only itself: a match is left out, a filter answers 500.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub route: RouteKey,
    /// Index of the rule.
    pub rule: usize,
    pub what: String,
}

impl Table {
    /// Compiles the routes that are attached to this port of the service; others may be among them.
    pub fn compile(
        service: &ServiceKey,
        port: u16,
        routes: impl IntoIterator<Item = Arc<Route>>,
    ) -> Self {
        let (mut producer, mut consumers) = (Vec::new(), HashMap::<Arc<str>, Vec<_>>::new());
        for route in routes {
            let attached = route.attachments.iter().filter(|attachment| {
                holds(Site::Service, attachment.service == *service)
                    && holds(Site::Port, attachment.port.is_none_or(|only| only == port))
            });
            for attachment in attached {
                let group = match &attachment.clients {
                    Clients::All => &mut producer,
                    Clients::Namespace(namespace) => {
                        consumers.entry(namespace.clone()).or_default()
                    }
                };
                // One route may be attached both by the port and without one.
                if !group.last().is_some_and(|last| Arc::ptr_eq(last, &route)) {
                    group.push(route.clone());
                }
            }
        }
        let mut problems = Vec::new();
        let producer = Group::new(producer, &mut problems);
        let consumers = consumers
            .into_iter()
            .map(|(namespace, routes)| (namespace, Group::new(routes, &mut problems)))
            .collect();
        Self {
            producer,
            consumers,
            problems,
        }
    }

    /// The routes for clients of a namespace; `None` is a client without an identity. A namespace's own routes replace
    /// the producer's.
    pub fn routes(&self, client_namespace: Option<&str>) -> Routes<'_> {
        let own = client_namespace.and_then(|namespace| self.consumers.get(namespace));
        let own = own.filter(|_| holds(Site::Consumer, true));
        match own.unwrap_or(&self.producer) {
            Group::None => Routes::None,
            Group::Http(table) => Routes::Http(table),
            Group::Tls(table) => Routes::Tls(table),
            Group::Tcp(rule) => Routes::Tcp(rule),
            Group::OrderedTcp(table) => Routes::OrderedTcp(table),
        }
    }

    /// What could not be compiled as written.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl Group {
    /// Only routes of the kind that is first in precedence are applied.
    fn new(mut routes: Vec<Arc<Route>>, problems: &mut Vec<Problem>) -> Self {
        let Some(kind) = routes.iter().map(|route| route.key.kind).min() else {
            return Self::None;
        };
        routes.retain(|route| holds(Site::Kind, route.key.kind == kind));
        routes.sort_by_cached_key(|route| {
            let (age, name) = (route.created, alphabetical(&route.key));
            (told(Site::OrderAge, age), told(Site::OrderName, name))
        });
        match kind {
            RouteKind::GrpcRoute | RouteKind::HttpRoute => {
                Self::Http(Box::new(HttpTable::new(kind, &routes, problems)))
            }
            RouteKind::VirtualService => {
                routes.truncate(1);
                Self::Http(Box::new(HttpTable::new(kind, &routes, problems)))
            }
            RouteKind::TlsRoute | RouteKind::VirtualServiceTls => {
                Self::Tls(TlsTable::new(kind, &routes, problems))
            }
            RouteKind::TcpRoute => l4::tcp_rule(&routes).map_or(Self::None, Self::Tcp),
            RouteKind::VirtualServiceTcp => Self::OrderedTcp(OrderedTable::new(&routes, problems)),
        }
    }
}

/// The text by which routes of the same age are ordered.
fn alphabetical(key: &RouteKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// The HTTP rules of a route; none for other kinds.
fn http_rules(route: &Route) -> &[karst_model::route::HttpRule] {
    match &route.rules {
        RouteRules::Http(rules) => rules,
        RouteRules::Tls(_) | RouteRules::Tcp(_) => &[],
    }
}
