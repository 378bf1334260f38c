//! From the rule that takes a request to the endpoints that may get it: filters, backends by weight, subsets.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use karst_model::{
    route::{Backend, RouteRules},
    service::Service,
    workload::Workload,
};
use karst_routing::{
    balance::{self, Choice, Levels, Mode, Wanted},
    filter::{CorsOutcome, Fault, Filter, fault::Abort},
    request::Request,
    table::{HttpRoute, Picked},
};

use super::AtWaypoint;
use crate::{
    outbound::{self, Hop},
    why::{
        Ask, Fate, Object, Outcome, StepName, Verdict, arrival::Arriving, near, question::shown,
    },
};

/// Draws that a fault hits first, and last.
const SOME: u64 = 0;
const ALL: u64 = u64::MAX;

impl Ask<'_> {
    /// Applies the filters of the rule, then follows each backend that requests may fall to.
    pub(super) fn backends(
        &mut self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        picked: Option<Picked<'_>>,
    ) -> Fate {
        let Some(picked) = picked else {
            return self.own_endpoints(at, service, at.dialled.port(), None);
        };
        let mut request = match self.request.map(|asked| self.head(asked)) {
            Some(Ok(request)) => request,
            _ => return self.own_endpoints(at, service, at.dialled.port(), None),
        };
        if let Some(fate) = self.filters(&picked.rule.filters, &mut request, picked) {
            return fate;
        }
        let weights = weights(picked.rule);
        let branches: Vec<(String, usize)> = picked
            .rule
            .backends
            .iter()
            .enumerate()
            .filter(|(index, _)| weights.get(*index).is_some_and(|weight| *weight > 0))
            .map(|(index, backend)| (backend_name(&backend.backend), index))
            .collect();
        if branches.is_empty() {
            let text = "the rule has no backend with a weight above zero: 500".to_owned();
            self.say(StepName::Backend, Outcome::Stops, text.clone());
            return Fate::new(Verdict::Fails, StepName::Backend, text)
                .by(near::of_route(&picked.rule.route), Some(picked.rule.index));
        }
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        self.fork("backend", branches, |ask, index| {
            let share = format!("{} of {total}", weights.get(index).copied().unwrap_or(0));
            ask.backend(at, service, picked, (index, &share))
        })
    }

    fn backend(
        &mut self,
        at: &AtWaypoint<'_>,
        own: &Arc<Service>,
        picked: Picked<'_>,
        (index, share): (usize, &str),
    ) -> Fate {
        let fails = |ask: &mut Self, text: String| {
            ask.say(StepName::Backend, Outcome::Stops, text.clone());
            Fate::new(Verdict::Fails, StepName::Backend, text)
                .by(near::of_route(&picked.rule.route), Some(picked.rule.index))
        };
        let backend = &picked.rule.backends[index];
        let (key, port, subset) = match &backend.backend {
            Backend::Invalid(why) => return fails(self, format!("{why}: 500")),
            Backend::Service {
                service,
                port,
                subset,
            } => (service, *port, subset.as_deref()),
        };
        let port = if port == 0 { at.dialled.port() } else { port };
        let Some(service) = self.facts.mesh.service(key) else {
            return fails(self, format!("backend service {key} does not exist: 500"));
        };
        if !service.ports.contains_key(&port) {
            return fails(
                self,
                format!("backend service {key} has no port {port}: 500"),
            );
        }
        let text = format!("to {key} port {port} ({share})");
        let about = Object::of_service(key);
        self.say(StepName::Backend, Outcome::Passes, text).about = Some(about);
        if service.key != own.key
            && let Some(asked) = self.request
            && let Ok(mut request) = self.head(asked)
        {
            let shown = self.steps.len();
            let answered = self
                .filters(&picked.rule.filters, &mut request, picked)
                .or_else(|| self.filters(&backend.filters, &mut request, picked));
            if let Some(fate) = answered {
                return fate;
            }
            self.steps.truncate(shown);
            let policies = at.policies(self.facts, Some(&service));
            if !policies.is_empty()
                && let Some(fate) = self.authorize(at, &policies, &request, (&service, port))
            {
                return fate;
            }
        }
        self.own_endpoints(at, &service, port, subset)
    }

    /// What filters do that ends the request, or changes what policies see later.
    fn filters(
        &mut self,
        filters: &[Filter],
        request: &mut Request,
        picked: Picked<'_>,
    ) -> Option<Fate> {
        for filter in filters {
            let answer = match filter {
                Filter::RequestHeaders(changes) => {
                    changes.apply_to_request(request);
                    None
                }
                Filter::Rewrite(rewrite) => match rewrite.apply(request, picked.matched) {
                    Ok(()) => None,
                    Err(error) => Some(format!("400: the route cannot be applied: {error}")),
                },
                Filter::Redirect(redirect) => match redirect.answer(request, picked.matched) {
                    Ok((status, location)) => {
                        let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
                        Some(format!("{} to {location}", status.as_u16()))
                    }
                    Err(error) => Some(format!("400: the route cannot be applied: {error}")),
                },
                Filter::Direct(direct) => Some(format!("{} {}", direct.status, direct.reason)),
                Filter::Cors(cors) => match cors.handle(request) {
                    CorsOutcome::Preflight(status, _) => {
                        Some(format!("{} to a CORS preflight", status.as_u16()))
                    }
                    _ => None,
                },
                Filter::Fault(fault) => self.fault(fault, picked),
                Filter::ResponseHeaders(_) | Filter::Mirror(_) => None,
            };
            if let Some(text) = answer {
                let text = format!("the route answers itself: {text}");
                self.say(StepName::Route, Outcome::Stops, text.clone());
                let fate = Fate::new(Verdict::Answered, StepName::Route, text);
                return Some(fate.by(near::of_route(&picked.rule.route), Some(picked.rule.index)));
            }
        }
        None
    }

    /// What a fault does to every request: its answer, where all are aborted. One that only some meet is said.
    fn fault(&mut self, fault: &Fault, picked: Picked<'_>) -> Option<String> {
        let shown = |abort: Abort| match abort {
            Abort::Http(status) => status.as_u16().to_string(),
            Abort::Grpc(status) => format!("gRPC status {status}"),
        };
        let about = near::of_route(&picked.rule.route);
        if let Some(wait) = fault.delay(SOME) {
            let which = which(fault.delay(ALL).is_some());
            let text = format!("a fault of the route lets {which} wait {wait:?}");
            self.say(StepName::Route, Outcome::Passes, text).about = Some(about.clone());
        }
        if let Some(abort) = fault.abort(ALL) {
            return Some(format!("{} (a fault of the route)", shown(abort)));
        }
        let abort = fault.abort(SOME)?;
        let text = format!(
            "a fault of the route answers {} with {}",
            which(false),
            shown(abort)
        );
        self.say(StepName::Route, Outcome::Depends, text).about = Some(about);
        None
    }

    /// From the waypoint to each endpoint that it may choose.
    pub(super) fn own_endpoints(
        &mut self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        port: u16,
        subset: Option<&str>,
    ) -> Fate {
        if let Some(why) = self.broken_tls(at, service, port, subset) {
            let text = format!("the waypoint cannot make TLS to {}: {why}", service.key);
            self.say(StepName::Endpoints, Outcome::Stops, text.clone());
            return Fate::new(Verdict::Fails, StepName::Endpoints, format!("{text}: 503"));
        }
        let choices = match self.choices_at(at, service, port, subset) {
            Ok(choices) => choices,
            Err(text) => {
                self.say(StepName::Endpoints, Outcome::Stops, text.clone());
                return Fate::new(Verdict::Fails, StepName::Endpoints, format!("{text}: 503"));
            }
        };
        self.endpoints_step(service, choices.len());
        let names = service.subject_alt_names.clone();
        let branches = choices
            .into_iter()
            .map(|choice| (shown(&choice.workload), choice))
            .collect();
        self.fork("endpoint", branches, |ask, choice| {
            let Some(ip) = choice.ip() else {
                let text = "the endpoint is a host outside the cluster: the waypoint resolves its name, Karst decides nothing there";
                ask.say(StepName::Arrival, Outcome::Passes, text);
                return Fate::new(Verdict::Allowed, StepName::Arrival, text);
            };
            let target = SocketAddr::new(ip, choice.target_port);
            let hop = outbound::hop(&choice.workload, target, &names);
            ask.at_workload(at, choice.workload, hop)
        })
    }

    /// Why the TLS that a rule has the waypoint make cannot be made.
    fn broken_tls(
        &self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        port: u16,
        subset: Option<&str>,
    ) -> Option<Arc<str>> {
        let traffic = self
            .facts
            .of_waypoint(&at.gateway)
            .traffic_of(&service.key)?;
        traffic.policy(port, subset)?.tls.as_ref()?.broken.clone()
    }

    /// The endpoints that the waypoint may choose from, all of them or those of a subset.
    fn choices_at(
        &self,
        at: &AtWaypoint<'_>,
        service: &Arc<Service>,
        port: u16,
        subset: Option<&str>,
    ) -> Result<Vec<Choice>, String> {
        let endpoints = self.facts.mesh.endpoints(&service.key);
        let traffic = self.facts.of_waypoint(&at.gateway).traffic_of(&service.key);
        let subset = match subset {
            None => None,
            Some(name) => {
                let traffic = traffic.as_ref();
                let found = traffic.and_then(|traffic| traffic.subset(name));
                Some(found.ok_or_else(|| format!("the service has no subset {name}"))?)
            }
        };
        let request = balance::Request {
            service,
            port,
            dialled: SocketAddr::new(family(service, &at.replica), port),
            source: &at.replica,
            sticky: None,
            mode: Mode::Standard,
        };
        let wanted = Wanted {
            subset,
            locality: None,
        };
        let levels =
            Levels::new(&request, &endpoints, wanted).map_err(|error| error.to_string())?;
        let nearest = levels.levels().first();
        Ok(nearest.map_or_else(Vec::new, |level| level.choices().to_vec()))
    }

    pub(super) fn at_workload(
        &mut self,
        at: &AtWaypoint<'_>,
        workload: Arc<Workload>,
        hop: Hop,
    ) -> Fate {
        let (target, identity) = match hop {
            Hop::Direct { addr } => (addr, None),
            Hop::Tunnel(tunnel) => (tunnel.target, Some(at.replica.identity())),
        };
        let text = match &identity {
            Some(identity) => format!("from the waypoint to {target} in mutual TLS, as {identity}"),
            None => format!("from the waypoint to {target} in plain text: that is not in the mesh"),
        };
        self.say(StepName::Path, Outcome::Passes, text);
        let same = at
            .replica
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4() == target.is_ipv4());
        let ip = same.or_else(|| at.replica.addresses.first()).copied();
        self.arrive(&Arriving {
            workload: Some(workload),
            target,
            identity,
            ip: ip.unwrap_or_else(|| target.ip()),
        })
    }
}

fn which(all: bool) -> &'static str {
    match all {
        true => "every request",
        false => "some requests",
    }
}

/// The weights of a rule's backends.
fn weights(rule: &HttpRoute) -> Vec<u32> {
    match &rule.route.rules {
        RouteRules::Http(rules) => rules.get(rule.index).map_or_else(Vec::new, |rule| {
            rule.backends.iter().map(|backend| backend.weight).collect()
        }),
        RouteRules::Tls(_) | RouteRules::Tcp(_) => Vec::new(),
    }
}

pub(super) fn backend_name(backend: &Backend) -> String {
    match backend {
        Backend::Service { service, port, .. } => format!("{service}:{port}"),
        Backend::Invalid(why) => why.to_string(),
    }
}

/// The address whose family is preferred.
fn family(service: &Service, replica: &Workload) -> IpAddr {
    let vip = service.addresses.first().map(|vip| vip.ip);
    vip.or_else(|| replica.addresses.first().copied())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
