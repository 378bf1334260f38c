//! What happens at a waypoint: the phases of a request in their order, as `waypoint/src/http/phases.rs` has them.

mod backends;
mod head;
mod limits;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    name::GatewayKey, protocol::AppProtocol, route::Backend, service::Service,
    waypoint_policy::WAYPOINT_CLASS, workload::Workload,
};
use karst_policy::{
    Connection, DenyReason, Verdict as Decided,
    request::{
        Asked, AskedConnection, GatewayRef, RequestExplanation, RequestPolicies, RequestTrace,
        applies, is_target,
    },
    token::TokenRules,
};
use karst_routing::{
    request::{Request, Sender, remote_ip},
    table::{Dialled, L4Rule, Picked, Routes, Table},
};

use self::backends::backend_name;
use super::{
    Ask, AskedRequest, Detail, Fate, Object, Outcome, StepName, Verdict, arrival,
    near::{self, Place},
    question::shown,
};
use crate::outbound::{self, Way};

/// Header in which proxies append the address that they saw.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// A client at a waypoint.
struct AtWaypoint<'a> {
    source: &'a Workload,
    gateway: GatewayKey,
    /// The replica, from which the waypoint's own connections go out.
    replica: Arc<Workload>,
    dialled: SocketAddr,
    /// Proxies in front of it whose entries in `x-forwarded-for` it believes.
    trusted_proxies: usize,
}

impl AtWaypoint<'_> {
    /// The client's address, for `remoteIpBlocks` and limits by client.
    fn remote_ip(&self, request: &Request, connection: &Connection) -> IpAddr {
        remote_ip(
            request.headers(),
            connection.source_ip,
            self.trusted_proxies,
        )
    }

    fn gateway_ref(&self) -> GatewayRef<'_> {
        GatewayRef {
            namespace: &self.gateway.namespace,
            name: &self.gateway.name,
            class: WAYPOINT_CLASS,
        }
    }

    fn connection(&self, port: u16) -> Connection {
        let ip = self.dialled.ip();
        let like = self
            .source
            .addresses
            .iter()
            .find(|own| own.is_ipv4() == ip.is_ipv4());
        Connection {
            source: Some(self.source.identity()),
            source_ip: like
                .or_else(|| self.source.addresses.first())
                .copied()
                .unwrap_or(ip),
            destination: SocketAddr::new(ip, port),
        }
    }

    /// The client, as routes ask for it.
    fn sender(&self) -> Sender {
        let identity = self.source.identity();
        Sender {
            namespace: Some(self.source.namespace.clone()),
            labels: self.source.labels.clone(),
            principal: Some(identity.principal().to_string().into()),
        }
    }

    /// What is done with tokens of requests for a service, and the objects that say so.
    fn token_rules(
        &self,
        facts: &crate::Facts,
        service: Option<&Service>,
    ) -> (TokenRules, Vec<Object>) {
        let bound = service.filter(|service| self.is_bound(facts, service));
        let key = bound.map(|service| &service.key);
        let mut applying = facts.of_waypoint(&self.gateway).request_authentications();
        applying.retain(|one| is_target(&one.targets, key, self.gateway_ref()));
        let objects = applying
            .iter()
            .map(|one| Object::new("RequestAuthentication", &one.key.namespace, &one.key.name))
            .collect();
        (TokenRules::new(applying.iter()), objects)
    }

    fn is_bound(&self, facts: &crate::Facts, service: &Service) -> bool {
        let gateway = service
            .waypoint
            .as_ref()
            .and_then(|waypoint| facts.gateway(waypoint));
        gateway.as_ref() == Some(&self.gateway)
    }

    /// The policies for requests to a service.
    fn policies(&self, facts: &crate::Facts, service: Option<&Service>) -> RequestPolicies {
        let bound = service.filter(|service| self.is_bound(facts, service));
        let key = bound.map(|service| &service.key);
        let all = facts.of_waypoint(&self.gateway).waypoint_policies();
        let applying = all
            .into_iter()
            .filter(|policy| applies(policy, key, self.gateway_ref()));
        RequestPolicies::compile(applying, &[])
    }
}

impl Ask<'_> {
    /// A connection whose next hop is a waypoint.
    pub(super) fn through_waypoint(
        &mut self,
        source: &Workload,
        dialled: SocketAddr,
        way: Way,
    ) -> Fate {
        let facts = self.facts;
        let gateway = way
            .waypoint
            .as_ref()
            .and_then(|waypoint| facts.gateway(waypoint));
        let (Some(gateway), Some(replica)) = (gateway, way.workload) else {
            let text = "the waypoint has no Gateway that is known here".to_owned();
            self.say(StepName::Waypoint, Outcome::Stops, text.clone());
            return Fate::new(Verdict::Fails, StepName::Waypoint, text);
        };
        let text = format!(
            "through waypoint {gateway} (replica {}), in mutual TLS",
            shown(&replica)
        );
        let about = Object::new("Gateway", &gateway.namespace, &gateway.name);
        self.say(StepName::Path, Outcome::Passes, text).about = Some(about);
        let configured = facts.trusted_proxies(&gateway);
        let at = AtWaypoint {
            source,
            trusted_proxies: self.trusted_proxies.map_or(configured, usize::from),
            gateway,
            replica,
            dialled,
        };
        match way.service {
            Some(service) => self.service_at(&at, &service),
            None => self.workload_at(&at),
        }
    }

    /// The client named a service.
    fn service_at(&mut self, at: &AtWaypoint<'_>, service: &Arc<Service>) -> Fate {
        let port = at.dialled.port();
        let state = self.facts.of_waypoint(&at.gateway);
        let routes = state.routes_of(&service.key);
        let table = Table::compile(&service.key, port, routes.iter().cloned());
        let found = table.routes(Some(&at.source.namespace));
        let declared = service
            .ports
            .get(&port)
            .map(|declared| declared.app_protocol)
            .unwrap_or_default();
        let is_http = match (&found, declared) {
            (Routes::Tcp(_) | Routes::OrderedTcp(_) | Routes::Tls(_), _)
            | (_, AppProtocol::Tcp | AppProtocol::Tls) => false,
            (_, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => true,
            (_, AppProtocol::Unknown) => self.request.is_some(),
        };
        if !is_http {
            return self.connection_at(at, service, &found);
        }
        let Some(asked) = self.request else {
            return self.without_request(at, service, &found);
        };
        let request = match self.request_at(at, Some(service), asked) {
            Ok(request) => request,
            Err(fate) => return fate,
        };
        let picked = match &found {
            Routes::Http(table) => {
                let picked = table.pick(&request);
                let place = Place {
                    service: &service.key,
                    port,
                    client_namespace: Some(&at.source.namespace),
                    request: &request,
                };
                let misses = near::misses(place, &routes, picked.map(|picked| &**picked.rule));
                match self.route_step(picked, misses) {
                    Ok(picked) => Some(picked),
                    Err(fate) => return fate,
                }
            }
            _ => {
                let text = "the service has no routes: to its own endpoints";
                self.say(StepName::Route, Outcome::Passes, text);
                None
            }
        };
        let policies = at.policies(self.facts, Some(service));
        if let Some(fate) = self.authorize(at, &policies, &request, (service, port)) {
            return fate;
        }
        self.limits(at, service, &request, picked);
        self.backends(at, service, picked)
    }

    fn route_step<'t>(
        &mut self,
        picked: Option<Picked<'t>>,
        misses: Vec<Detail>,
    ) -> Result<Picked<'t>, Fate> {
        let (outcome, text) = match picked {
            Some(picked) => (
                Outcome::Passes,
                format!("{} takes the request", picked.rule.label),
            ),
            None => (
                Outcome::Stops,
                "no rule of the service's routes takes the request: 404".to_owned(),
            ),
        };
        let step = self.say(StepName::Route, outcome, text.clone());
        step.about = picked.map(|picked| near::of_route(&picked.rule.route));
        step.details = misses;
        picked.ok_or_else(|| Fate::new(Verdict::Fails, StepName::Route, text))
    }

    /// The request as it is when routes and policies look at it: normalised, with its verified token.
    fn request_at(
        &mut self,
        at: &AtWaypoint<'_>,
        service: Option<&Service>,
        asked: &AskedRequest,
    ) -> Result<Request, Fate> {
        let mut request = self.head(asked).map_err(|error| {
            let text = error.to_string();
            self.say(StepName::Waypoint, Outcome::Stops, text.clone());
            Fate::new(Verdict::Fails, StepName::Waypoint, text)
        })?;
        request.set_sender(Arc::new(at.sender()));
        self.client_step(at, &request);
        let (rules, objects) = at.token_rules(self.facts, service);
        if rules.is_empty() {
            return Ok(request);
        }
        let names: Vec<String> = objects.iter().map(ToString::to_string).collect();
        let (outcome, text, fate) = match rules.authenticate(&mut request, self.now) {
            Ok(()) => {
                let who = match request.token() {
                    Some(_) => "the request's token is verified",
                    None => "the request has no token: it goes on without a principal",
                };
                (Outcome::Passes, who.to_owned(), None)
            }
            Err(rejected) => {
                let text = format!("{}: {rejected}", rejected.status());
                let fate = Fate::new(Verdict::Denied, StepName::Token, text.clone());
                let fate = match objects.first() {
                    Some(first) => fate.by(first.clone(), None),
                    None => fate,
                };
                (Outcome::Stops, text, Some(fate))
            }
        };
        let step = self.say(StepName::Token, outcome, text);
        step.details = objects
            .into_iter()
            .zip(names)
            .map(|(object, name)| Detail::about(object, format!("{name} applies")))
            .collect();
        fate.map_or(Ok(request), Err)
    }

    /// Which address the client has for policies and limits, where a proxy says one or should.
    fn client_step(&mut self, at: &AtWaypoint<'_>, request: &Request) {
        let is_said = request.headers().contains_key(FORWARDED_FOR);
        let trusted = at.trusted_proxies;
        let connection = at.connection(at.dialled.port());
        let text = match (is_said, trusted) {
            (false, 0) => return,
            (true, 0) => format!(
                "X-Forwarded-For is not believed, since this waypoint trusts no proxies (numTrustedProxies): the client's address is {}",
                connection.source_ip
            ),
            (true, _) => format!(
                "the client's address is {}, by entry {trusted} of X-Forwarded-For from the right (numTrustedProxies {trusted})",
                at.remote_ip(request, &connection)
            ),
            (false, _) => format!(
                "{trusted} trusted proxies should have written X-Forwarded-For and the question has none (--header): the client's address is {}",
                connection.source_ip
            ),
        };
        let about = Object::new("Gateway", &at.gateway.namespace, &at.gateway.name);
        self.say(StepName::Waypoint, Outcome::Passes, text).about = Some(about);
    }

    /// Asks request policies; the fate if they refuse.
    fn authorize(
        &mut self,
        at: &AtWaypoint<'_>,
        policies: &RequestPolicies,
        request: &Request,
        (service, port): (&Service, u16),
    ) -> Option<Fate> {
        let connection = at.connection(port);
        let asked = Asked {
            request,
            connection: &connection,
            remote_ip: at.remote_ip(request, &connection),
            sni: None,
        };
        let name = service.key.to_string();
        if let Some(fate) = self.decided(&policies.explain(&asked), &name) {
            return Some(fate);
        }
        let external = policies.external(&asked);
        let (provider, rule) = external.ask.first()?;
        let text = format!(
            "external authorizer {} is asked, since {rule} matches: its answer decides",
            provider.name
        );
        let object = Object::of_policy(&rule.policy);
        self.say(StepName::RequestPolicy, Outcome::Depends, text.clone())
            .about = Some(object.clone());
        Some(Fate::new(Verdict::Depends, StepName::RequestPolicy, text).by(object, Some(rule.rule)))
    }

    fn decided(&mut self, explained: &RequestExplanation, name: &str) -> Option<Fate> {
        let text = match explained.policies.len() {
            0 => format!("no request policy applies to {name}"),
            1 => format!("1 request policy applies to {name}"),
            some => format!("{some} request policies apply to {name}"),
        };
        let mut details: Vec<Detail> = explained
            .policies
            .iter()
            .flat_map(|trace| {
                let object = Object::of_policy(&trace.policy);
                lines_of(trace)
                    .into_iter()
                    .map(move |line| Detail::about(object.clone(), line))
            })
            .collect();
        details.extend(arrival::dry_run(&explained.decision.dry_run));
        let fate = match &explained.decision.verdict {
            Decided::Allow => None,
            Decided::Deny(reason) => Some(denied(name, reason, explained)),
        };
        let outcome = match fate {
            None => Outcome::Passes,
            Some(_) => Outcome::Stops,
        };
        self.say(StepName::RequestPolicy, outcome, text).details = details;
        fate
    }

    /// The port is HTTP, and nobody said which request.
    fn without_request(
        &mut self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        routes: &Routes<'_>,
    ) -> Fate {
        let policies = at.policies(self.facts, Some(service));
        if policies.is_empty() && matches!(routes, Routes::None) {
            return self.own_endpoints(at, service, at.dialled.port(), None);
        }
        let text = format!(
            "the waypoint reads requests on this port ({} request policies, {}), and the question names none: add METHOD PATH",
            policies.len(),
            match routes {
                Routes::None => "no routes",
                _ => "routes",
            }
        );
        self.say(StepName::Waypoint, Outcome::Depends, text.clone());
        Fate::new(Verdict::Depends, StepName::Waypoint, text)
    }

    /// A connection that is no HTTP.
    fn connection_at(
        &mut self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        routes: &Routes<'_>,
    ) -> Fate {
        let policies = at.policies(self.facts, Some(service));
        let connection = at.connection(at.dialled.port());
        let asked = AskedConnection {
            connection: &connection,
            remote_ip: connection.source_ip,
            sni: None,
        };
        let explained = policies.explain_connection(&asked);
        if let Some(fate) = self.decided(&explained, &service.key.to_string()) {
            return fate;
        }
        match routes {
            Routes::None | Routes::Http(_) => {
                self.own_endpoints(at, service, at.dialled.port(), None)
            }
            Routes::Tls(_) => {
                let text = "TLS routes decide by the server name, which the question does not name";
                self.say(StepName::Route, Outcome::Depends, text);
                Fate::new(Verdict::Depends, StepName::Route, text)
            }
            Routes::Tcp(rule) => self.l4_rule(at, service, rule),
            Routes::OrderedTcp(table) => {
                let sender = at.sender();
                let picked = table.pick(&Dialled {
                    sni: None,
                    port: at.dialled.port(),
                    destination: Some(at.dialled.ip()),
                    client: Some(connection.source_ip),
                    sender: &sender,
                });
                match picked {
                    Some(rule) => self.l4_rule(at, service, rule),
                    None => {
                        let text = "no rule of the service's TCP routes takes the connection";
                        self.say(StepName::Route, Outcome::Stops, text);
                        Fate::new(Verdict::Fails, StepName::Route, text)
                    }
                }
            }
        }
    }

    /// The backends of a rule for connections.
    fn l4_rule(&mut self, at: &AtWaypoint<'_>, own: &Arc<Service>, rule: &L4Rule) -> Fate {
        let name = format!("{}/{}", rule.route.key, rule.index);
        let object = near::of_route(&rule.route);
        let text = format!("{name} takes the connection");
        self.say(StepName::Route, Outcome::Passes, text).about = Some(object.clone());
        let fails = |ask: &mut Self, text: String| {
            ask.say(StepName::Backend, Outcome::Stops, text.clone());
            Fate::new(Verdict::Fails, StepName::Backend, text).by(object.clone(), Some(rule.index))
        };
        let branches: Vec<(String, &Backend)> = rule
            .backends
            .iter()
            .filter(|backend| backend.weight > 0)
            .map(|backend| (backend_name(&backend.backend), &backend.backend))
            .collect();
        if branches.is_empty() {
            let text = "the rule has no backend with a weight above zero".to_owned();
            return fails(self, text);
        }
        self.fork("backend", branches, |ask, backend| {
            let (key, port, subset) = match backend {
                Backend::Invalid(why) => return fails(ask, why.to_string()),
                Backend::Service {
                    service,
                    port,
                    subset,
                } => (service, *port, subset.as_deref()),
            };
            let port = if port == 0 { at.dialled.port() } else { port };
            let Some(service) = ask.facts.mesh.service(key) else {
                return fails(ask, format!("backend service {key} does not exist"));
            };
            if service.key != own.key {
                let policies = at.policies(ask.facts, Some(&service));
                let connection = at.connection(port);
                let explained = policies.explain_connection(&AskedConnection {
                    connection: &connection,
                    remote_ip: connection.source_ip,
                    sni: None,
                });
                if !policies.is_empty()
                    && let Some(fate) = ask.decided(&explained, &service.key.to_string())
                {
                    return fate;
                }
            }
            ask.own_endpoints(at, &service, port, subset)
        })
    }

    /// The client named a workload: there is nothing to route, and policies of every service behind this waypoint apply.
    fn workload_at(&mut self, at: &AtWaypoint<'_>) -> Fate {
        let facts = self.facts;
        let addr = facts.addr(at.dialled.ip());
        let Some(workload) = facts.mesh.workload_at(&addr) else {
            let text = format!("{} is nobody that the mesh knows", at.dialled);
            self.say(StepName::Waypoint, Outcome::Stops, text.clone());
            return Fate::new(Verdict::Fails, StepName::Waypoint, text);
        };
        let behind = services_behind(facts, at, &workload, at.dialled.port());
        for (service, port) in &behind {
            if let Some(fate) = self.pinned(at, Some(service), *port) {
                return fate;
            }
        }
        if behind.is_empty()
            && let Some(fate) = self.pinned(at, None, at.dialled.port())
        {
            return fate;
        }
        let hop = outbound::hop(&workload, at.dialled, &[]);
        self.at_workload(at, workload, hop)
    }

    fn pinned(
        &mut self,
        at: &AtWaypoint<'_>,
        service: Option<&Arc<Service>>,
        port: u16,
    ) -> Option<Fate> {
        let policies = at.policies(self.facts, service.map(|service| &**service));
        let connection = at.connection(port);
        let name = service.map_or_else(
            || format!("waypoint {}", at.gateway),
            |service| service.key.to_string(),
        );
        if policies.is_empty() {
            return None;
        }
        let request = match self.request {
            Some(asked) => match self.request_at(at, service.map(|service| &**service), asked) {
                Ok(request) => Some(request),
                Err(fate) => return Some(fate),
            },
            None => None,
        };
        let explained = match &request {
            Some(request) => policies.explain(&Asked {
                request,
                connection: &connection,
                remote_ip: at.remote_ip(request, &connection),
                sni: None,
            }),
            None => policies.explain_connection(&AskedConnection {
                connection: &connection,
                remote_ip: connection.source_ip,
                sni: None,
            }),
        };
        self.decided(&explained, &name)
    }
}

fn denied(name: &str, reason: &DenyReason, explained: &RequestExplanation) -> Fate {
    let fate = |because: String| Fate::new(Verdict::Denied, StepName::RequestPolicy, because);
    match reason {
        DenyReason::Policy(rule) => fate(format!(
            "rule {} of this DENY policy matches the request for {name}",
            rule.rule
        ))
        .by(Object::of_policy(&rule.policy), Some(rule.rule)),
        DenyReason::Missing(key) => fate(format!("policy {key} applies and is not here yet"))
            .by(Object::of_policy(key), None),
        DenyReason::NotAllowed => {
            let allowing: Vec<_> = explained
                .policies
                .iter()
                .filter(|trace| {
                    trace.action == karst_model::waypoint_policy::RequestAction::Allow
                        && !trace.dry_run
                })
                .collect();
            let lines: Vec<String> = allowing
                .iter()
                .take(3)
                .flat_map(|trace| lines_of(trace))
                .collect();
            let because = format!(
                "ALLOW policies apply to {name} and none matches: {}",
                lines.join("; ")
            );
            match allowing.first() {
                Some(first) => fate(because).by(Object::of_policy(&first.policy), None),
                None => fate(because),
            }
        }
    }
}

/// The lines of what a policy said.
fn lines_of(trace: &RequestTrace) -> Vec<String> {
    arrival::one_by_one(&trace.outcome, |outcome| RequestTrace {
        policy: trace.policy.clone(),
        action: trace.action,
        dry_run: trace.dry_run,
        outcome,
    })
}

/// The services behind this waypoint of which a port is this target port at the workload.
fn services_behind(
    facts: &crate::Facts,
    at: &AtWaypoint<'_>,
    workload: &Workload,
    target: u16,
) -> Vec<(Arc<Service>, u16)> {
    workload
        .services
        .iter()
        .filter_map(|(key, ports)| {
            let service = facts.mesh.service(key)?;
            if !at.is_bound(facts, &service) {
                return None;
            }
            let mapped = ports.iter().find(|(_, mapped)| **mapped == target);
            let declared = || {
                let mut declared = service.ports.iter();
                declared.find(|(_, port)| port.target_port == target)
            };
            let port = mapped
                .map(|(port, _)| *port)
                .or_else(|| declared().map(|(port, _)| *port))?;
            Some((service, port))
        })
        .collect()
}
