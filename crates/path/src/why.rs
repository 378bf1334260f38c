//! `karst why`: what would happen to a connection or a request, and why. Every decision is asked of the code that decides
//! it in the data plane: the agent's [`crate::outbound`], `karst-routing`'s tables, filters and endpoints, `karst-policy`'s
//! explanations. What is here puts them in the order in which a connection meets them.
//!
//! ```text
//!   Question ──► who and what is meant ──► client's node ──┬─► endpoint ──────────────────► server's node ──► Answer
//!                (question)                (this file)     └─► waypoint ─► backend, endpoint ─┘   (arrival)
//!                                                              (waypoint)
//! ```
//!
//! Where something would be drawn at random (an endpoint, a backend), all that may be drawn are asked about; if they do
//! not agree, the verdict is that it depends, and on what.

mod answer;
mod arrival;
mod near;
mod printable;
mod question;
mod waypoint;

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use karst_model::{
    enrollment::EnrollMode,
    protocol::TunnelProtocol,
    service::{HealthPolicy, Service},
    workload::{Health, Workload},
};
use karst_routing::balance::{self, Candidates, Choice, Mode, NoEndpoint};

pub use self::{
    answer::{Answer, Decider, Detail, Object, Outcome, Step, StepName, Verdict},
    printable::{printable, printable_json},
    question::{AskError, AskedRequest, Question},
};
use self::{
    arrival::Arriving,
    question::{By, Client, Dialled, Unknown, shown, split_port},
};
use crate::{
    facts::Facts,
    outbound::{self, Choose, Egress, Hop, Refused, Replica, Way},
};

/// Endpoints, or addresses, that one question looks at.
const BRANCHES_MAX: usize = 100;
/// Names of branches in one line.
const NAMES_SHOWN: usize = 4;

/// Answers a question as things are at `now`, by which tokens hold or have expired.
///
/// # Errors
/// That it is not clear what is meant, or that it does not exist.
pub fn answer(facts: &Facts, question: &Question, now: SystemTime) -> Result<Answer, AskError> {
    let (host, port) = split_port(&question.destination)?;
    let client = question::client(facts, question)?;
    let dialled = question::dialled(facts, question, host, &client)?;
    let port = port_of(&dialled, host, port)?;
    let mut ask = Ask {
        facts,
        now: now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        client,
        port,
        request: question.request.as_ref(),
        trusted_proxies: question.trusted_proxies,
        host,
        steps: Vec::new(),
    };
    if let Some(request) = ask.request {
        ask.head(request)?;
    }
    let fate = ask.run(&dialled);
    Ok(Answer {
        question: asked(&ask.client, host, port, question.request.as_ref()),
        verdict: fate.verdict,
        because: fate.because,
        decided_by: fate.decider,
        decided_at: fate.at,
        steps: ask.steps,
    })
}

fn asked(client: &Client, host: &str, port: u16, request: Option<&AskedRequest>) -> String {
    let request = request.map_or_else(String::new, |request| {
        format!(" {} {}", request.method, request.path)
    });
    format!("{client} -> {host}:{port}{request}")
}

/// The port that is meant where none is named: the only one that there is.
fn port_of(dialled: &Dialled, host: &str, port: Option<u16>) -> Result<u16, AskError> {
    if let Some(port) = port {
        return Ok(port);
    }
    let missing = |hint: String| AskError::PortMissing {
        name: host.to_owned(),
        hint,
    };
    match dialled {
        Dialled::Service { service, .. } => {
            let ports: Vec<u16> = service.ports.keys().copied().collect();
            match ports[..] {
                [only] => Ok(only),
                _ => Err(missing(format!(", it has ports {ports:?}"))),
            }
        }
        Dialled::Workload { .. } | Dialled::Unknown(_) => Err(missing(String::new())),
    }
}

/// A question being answered.
struct Ask<'a> {
    facts: &'a Facts,
    /// Seconds since the epoch.
    now: u64,
    client: Client,
    port: u16,
    request: Option<&'a AskedRequest>,
    /// What the question says of proxies in front of waypoints.
    trusted_proxies: Option<u16>,
    /// What the client calls its destination.
    host: &'a str,
    steps: Vec<Step>,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fate {
    verdict: Verdict,
    because: String,
    decider: Option<Decider>,
    at: StepName,
}

impl Fate {
    fn new(verdict: Verdict, at: StepName, because: impl Into<String>) -> Self {
        Self {
            verdict,
            because: because.into(),
            decider: None,
            at,
        }
    }

    fn by(mut self, object: Object, rule: Option<usize>) -> Self {
        self.decider = Some(Decider { object, rule });
        self
    }

    fn is_like(&self, other: &Self) -> bool {
        self.verdict == other.verdict && self.decider == other.decider && self.at == other.at
    }
}

/// Draws the endpoint or replica of this index, and remembers how many there are.
struct Nth {
    index: usize,
    of: Cell<usize>,
}

impl Choose for Nth {
    type Held = ();

    fn endpoint(
        &self,
        source: &Workload,
        service: &Service,
        dialled: SocketAddr,
        endpoints: &[Arc<Workload>],
    ) -> Result<Choice, NoEndpoint> {
        let choices = choices(source, service, dialled, endpoints)?;
        self.of.set(choices.len());
        // There is at least one, and no index was ever counted beyond.
        Ok(choices[self.index.min(choices.len() - 1)].clone())
    }

    fn replica(&self, _usable: &[Replica<'_>]) -> (usize, ()) {
        // All replicas of a waypoint are alike.
        self.of.set(1);
        (0, ())
    }
}

/// Every endpoint that may be drawn; there is at least one.
fn choices(
    source: &Workload,
    service: &Service,
    dialled: SocketAddr,
    endpoints: &[Arc<Workload>],
) -> Result<Vec<Choice>, NoEndpoint> {
    let request = balance::Request {
        service,
        port: dialled.port(),
        dialled,
        source,
        sticky: None,
        mode: Mode::Standard,
    };
    Ok(Candidates::new(&request, endpoints)?.choices().to_vec())
}

/// Whether the client's node takes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Captured {
    Yes,
    No,
}

impl Ask<'_> {
    fn say(&mut self, name: StepName, outcome: Outcome, text: impl Into<String>) -> &mut Step {
        self.steps.push(Step {
            name,
            outcome,
            text: text.into(),
            about: None,
            details: Vec::new(),
        });
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    fn run(&mut self, dialled: &Dialled) -> Fate {
        let captured = self.enrolment();
        let addresses = match self.dns(dialled, captured) {
            Ok(addresses) => addresses,
            Err(fate) => return fate,
        };
        let branches = addresses
            .into_iter()
            .map(|ip| (ip.to_string(), SocketAddr::new(ip, self.port)))
            .collect();
        self.fork("address that is dialled", branches, |ask, addr| {
            match ask.left_alone(addr, captured) {
                Captured::Yes => ask.captured(addr),
                Captured::No => ask.plain(addr),
            }
        })
    }

    /// Follows every branch and puts together what came of them.
    fn fork<T>(
        &mut self,
        what: &str,
        branches: Vec<(String, T)>,
        mut follow: impl FnMut(&mut Self, T) -> Fate,
    ) -> Fate {
        let mut outcomes: Vec<(Fate, Vec<Step>, Vec<String>)> = Vec::new();
        for (name, branch) in branches.into_iter().take(BRANCHES_MAX) {
            let before = std::mem::take(&mut self.steps);
            let fate = follow(self, branch);
            let steps = std::mem::replace(&mut self.steps, before);
            match outcomes.iter_mut().find(|(known, ..)| known.is_like(&fate)) {
                Some((.., names)) => names.push(name),
                None => outcomes.push((fate, steps, vec![name])),
            }
        }
        if outcomes.len() == 1
            && let Some((fate, steps, _)) = outcomes.pop()
        {
            self.steps.extend(steps);
            return fate;
        }
        let mut said = Vec::new();
        let mut at = StepName::Endpoints;
        for (fate, mut steps, names) in outcomes {
            let names = match names.len() > NAMES_SHOWN {
                true => format!(
                    "{} and {} more",
                    names[..NAMES_SHOWN].join(", "),
                    names.len() - NAMES_SHOWN
                ),
                false => names.join(", "),
            };
            said.push(format!(
                "{names}: {} ({})",
                fate.verdict.as_str().to_lowercase(),
                fate.because
            ));
            if fate.verdict != Verdict::Allowed {
                at = fate.at;
            }
            if let Some(first) = steps.first_mut() {
                first.text = format!("[{names}] {}", first.text);
            }
            self.steps.extend(steps);
        }
        let because = format!("it depends on the {what}: {}", said.join("; "));
        Fate::new(Verdict::Depends, at, because)
    }

    /// Whether the client is in the mesh.
    fn enrolment(&mut self) -> Captured {
        let Some(workload) = self.client.workload().cloned() else {
            let text = format!(
                "{} is no workload of the mesh: it connects plainly and shows no identity",
                self.client
            );
            self.say(StepName::Enrolment, Outcome::Passes, text);
            return Captured::No;
        };
        let name = shown(&workload);
        let mode = self.facts.pod(&workload).map(|pod| pod.mode);
        let (captured, text) = match (workload.tunnel, mode) {
            _ if workload.native_tunnel => (
                Captured::No,
                format!(
                    "{name} speaks HBONE itself (a waypoint or a gateway): what it sends is not captured"
                ),
            ),
            (TunnelProtocol::Hbone, _) => (
                Captured::Yes,
                format!(
                    "{name} is in the mesh on node {} as {}",
                    workload.node,
                    workload.identity()
                ),
            ),
            _ if workload.host_network => (
                Captured::No,
                format!(
                    "{name} uses its node's network, so it cannot be in the mesh: it connects plainly and shows no identity"
                ),
            ),
            (TunnelProtocol::None, Some(EnrollMode::Ambient)) => (
                Captured::No,
                format!(
                    "{name} should be in the mesh and its node {} has not captured it (yet): it connects plainly; see `karst status` and that agent's log",
                    workload.node
                ),
            ),
            (TunnelProtocol::None, _) => (
                Captured::No,
                format!(
                    "{name} is not in the mesh (no label istio.io/dataplane-mode=ambient on it or its namespace, or it opts out): it connects plainly and shows no identity"
                ),
            ),
        };
        let about = Object::new("Pod", &workload.namespace, &workload.name);
        self.say(StepName::Enrolment, Outcome::Passes, text).about = Some(about);
        captured
    }

    /// The addresses that the client dials.
    fn dns(&mut self, dialled: &Dialled, captured: Captured) -> Result<Vec<IpAddr>, Fate> {
        let resolver = match captured {
            Captured::Yes => "its node's agent answers",
            Captured::No => "the cluster's resolver answers",
        };
        match dialled {
            Dialled::Unknown(Unknown::Addr(ip)) => {
                let text = format!("{ip} is no address of the mesh");
                self.say(StepName::Dns, Outcome::Passes, text);
                Ok(vec![*ip])
            }
            Dialled::Unknown(Unknown::Host(host)) => {
                let text = format!(
                    "the mesh does not know {host}: the cluster's resolver answers, and the connection leaves the mesh"
                );
                self.say(StepName::Dns, Outcome::Passes, text);
                if captured == Captured::Yes && self.egress() == Egress::RegistryOnly {
                    let because = format!(
                        "{host} is in no registry of the mesh, and outboundTrafficPolicy REGISTRY_ONLY lets pods reach \
                         nothing else: a ServiceEntry makes it known"
                    );
                    self.say(StepName::Path, Outcome::Stops, because.clone());
                    return Err(Fate::new(Verdict::Denied, StepName::Path, because));
                }
                let because = format!("{host} is outside the mesh: Karst decides nothing there");
                Err(Fate::new(Verdict::Allowed, StepName::Dns, because))
            }
            Dialled::Workload { workload, by } => {
                let name = shown(workload);
                let about = Object::new("Pod", &workload.namespace, &workload.name);
                let (addresses, text) = match by {
                    By::Addr(ip) => (vec![*ip], format!("{ip} is {name}'s own address")),
                    By::Name(_) => {
                        let first = workload.addresses.first().copied();
                        let text = match first {
                            Some(ip) => format!("{name} is dialled at its own address {ip}"),
                            None => format!("{name} has no address"),
                        };
                        (first.into_iter().collect(), text)
                    }
                };
                if addresses.is_empty() {
                    self.say(StepName::Dns, Outcome::Stops, text.clone()).about = Some(about);
                    return Err(Fate::new(Verdict::Fails, StepName::Dns, text));
                }
                self.say(StepName::Dns, Outcome::Passes, text).about = Some(about);
                Ok(addresses)
            }
            Dialled::Service { service, by } => self.service_addresses(service, by, resolver),
        }
    }

    fn service_addresses(
        &mut self,
        service: &Service,
        by: &By,
        resolver: &str,
    ) -> Result<Vec<IpAddr>, Fate> {
        let about = Object::of_service(&service.key);
        if let By::Addr(ip) = by {
            let text = format!("{ip} is service {}", service.key);
            self.say(StepName::Dns, Outcome::Passes, text).about = Some(about);
            return Ok(vec![*ip]);
        }
        let vips: Vec<IpAddr> = service
            .addresses
            .iter()
            .filter(|vip| vip.prefix_len.is_none() && vip.network == self.facts.network)
            .map(|vip| vip.ip)
            .collect();
        if let Some(vip) = vips.first() {
            let text = format!(
                "{} is service {} at {vip} ({resolver})",
                self.host, service.key
            );
            self.say(StepName::Dns, Outcome::Passes, text).about = Some(about);
            return Ok(vec![*vip]);
        }
        let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let endpoints = self.facts.mesh.endpoints(&service.key);
        let addresses: Vec<IpAddr> = endpoints
            .iter()
            .filter(|one| all || one.health == Health::Healthy)
            .filter_map(|one| one.addresses.first().copied())
            .collect();
        if addresses.is_empty() {
            let why = match endpoints.len() {
                0 => "it has no endpoints".to_owned(),
                some => format!("none of its {some} endpoints is ready, or they have no address"),
            };
            let text = format!(
                "{} is service {}, which has no address of its own, and {why}: the name resolves to nothing",
                self.host, service.key
            );
            self.say(StepName::Dns, Outcome::Stops, text.clone()).about = Some(about);
            return Err(Fate::new(Verdict::Fails, StepName::Dns, text));
        }
        let text = format!(
            "{} is headless service {}: {resolver} with the addresses of its pods, which are dialled themselves",
            self.host, service.key
        );
        self.say(StepName::Dns, Outcome::Passes, text).about = Some(about);
        Ok(addresses)
    }

    /// What the client's own annotations leave alone.
    fn left_alone(&mut self, addr: SocketAddr, captured: Captured) -> Captured {
        let Some(pod) = self
            .client
            .workload()
            .filter(|_| captured == Captured::Yes)
            .and_then(|workload| self.facts.pod(workload))
        else {
            return captured;
        };
        let options = &pod.capture;
        let port = options.exclude_outbound_ports.contains(&addr.port());
        let range = options
            .exclude_outbound_cidrs
            .iter()
            .find(|range| range.contains(&addr.ip()));
        let why = match (port, range) {
            (true, _) => format!("port {}", addr.port()),
            (false, Some(range)) => format!("range {range}"),
            (false, None) => return captured,
        };
        let text = format!(
            "the client's pod excludes outbound {why} from capture: it connects plainly and shows no identity"
        );
        self.say(StepName::Path, Outcome::Passes, text);
        Captured::No
    }

    /// What the client's node lets it reach beside what the mesh knows, by this port.
    fn egress(&self) -> Egress {
        let pod = self.client.workload().and_then(|one| self.facts.pod(one));
        match pod.map(|pod| &pod.capture) {
            Some(options)
                if options.registry_only
                    && !options.exclude_outbound_ports.contains(&self.port) =>
            {
                Egress::RegistryOnly
            }
            _ => Egress::Any,
        }
    }

    /// A connection that the client's node takes.
    fn captured(&mut self, dialled: SocketAddr) -> Fate {
        let Some(source) = self.client.workload().cloned() else {
            return self.plain(dialled);
        };
        let facts = self.facts;
        let egress = self.egress();
        let way = |index| {
            let nth = Nth {
                index,
                of: Cell::new(1),
            };
            let way = outbound::resolve(&facts.mesh, &facts.network, &nth, &source, dialled)?;
            Ok((egress.check(way)?, nth.of.get()))
        };
        let (first, of) = match way(0) {
            Ok(found) => found,
            Err(refused) => return self.refused(&refused),
        };
        if let Some(service) = &first.service {
            self.service_port(service, dialled.port());
        }
        if first.waypoint.is_some() {
            return self.through_waypoint(&source, dialled, first);
        }
        if let Some(service) = first.service.clone() {
            self.endpoints_step(&service, of);
        }
        let others = (1..of.min(BRANCHES_MAX)).filter_map(|index| Some(way(index).ok()?.0));
        let branches = std::iter::once(first.clone())
            .chain(others)
            .map(|way| (branch_name(&way), way))
            .collect();
        self.fork("endpoint", branches, |ask, way| ask.hop(&source, way))
    }

    fn hop(&mut self, source: &Arc<Workload>, way: Way) -> Fate {
        let (target, identity, text) = match &way.hop {
            Hop::Direct { addr } => (
                *addr,
                None,
                format!("straight to {addr}, in plain text: that is not in the mesh"),
            ),
            Hop::Tunnel(tunnel) => (
                tunnel.target,
                Some(source.identity()),
                format!(
                    "through the tunnel to {} in mutual TLS, for {}",
                    tunnel.addr, tunnel.target
                ),
            ),
        };
        self.say(StepName::Path, Outcome::Passes, text);
        self.arrive(&Arriving {
            workload: way.workload,
            target,
            identity,
            ip: self.client.ip(target.ip()),
        })
    }

    /// A connection that nobody takes at the client's node: Kubernetes leads it.
    fn plain(&mut self, dialled: SocketAddr) -> Fate {
        let facts = self.facts;
        let at = facts.addr(dialled.ip());
        let Some(service) = facts.mesh.service_at(&at, self.client.namespace()) else {
            let workload = facts.mesh.workload_at(&at);
            let text = format!("straight to {dialled}, in plain text");
            self.say(StepName::Path, Outcome::Passes, text);
            return self.arrive(&self.plainly(workload, dialled));
        };
        self.service_port(&service, dialled.port());
        let outside = Workload::new("outside");
        let source = self.client.workload().map_or(&outside, |workload| workload);
        let endpoints = facts.mesh.endpoints(&service.key);
        let choices = match choices(source, &service, dialled, &endpoints) {
            Ok(choices) => choices,
            Err(NoEndpoint::Passthrough { .. }) => {
                let text = format!(
                    "straight to {dialled}, in plain text: the service passes connections through"
                );
                self.say(StepName::Path, Outcome::Passes, text);
                let workload = facts.mesh.workload_at(&at);
                return self.arrive(&self.plainly(workload, dialled));
            }
            Err(error) => {
                let text = error.to_string();
                self.say(StepName::Endpoints, Outcome::Stops, text.clone());
                return Fate::new(Verdict::Fails, StepName::Endpoints, text);
            }
        };
        self.endpoints_step(&service, choices.len());
        if service.waypoint.is_some() {
            let text = "the client is not in the mesh, so nothing leads it through the service's waypoint: routes and request policies there do not see it";
            self.say(StepName::Waypoint, Outcome::Passes, text);
        }
        let branches = choices
            .into_iter()
            .map(|choice| (shown(&choice.workload), choice))
            .collect();
        self.fork("endpoint", branches, |ask, choice| {
            let Some(ip) = choice.ip() else {
                let text =
                    "the endpoint is a host outside the cluster: Karst decides nothing there";
                return Fate::new(Verdict::Allowed, StepName::Endpoints, text);
            };
            let target = SocketAddr::new(ip, choice.target_port);
            let text = format!("to {target} in plain text, by Kubernetes' own balancing");
            ask.say(StepName::Path, Outcome::Passes, text);
            let arriving = ask.plainly(Some(choice.workload), target);
            ask.arrive(&arriving)
        })
    }

    fn plainly(&self, workload: Option<Arc<Workload>>, target: SocketAddr) -> Arriving {
        Arriving {
            workload,
            target,
            identity: None,
            ip: self.client.ip(target.ip()),
        }
    }

    fn service_port(&mut self, service: &Service, port: u16) {
        let about = Object::of_service(&service.key);
        let text = match service.ports.get(&port) {
            Some(declared) => format!(
                "port {port} of {}{}, declared as {:?}",
                service.key,
                match declared.target_port {
                    0 => " to a named port of each pod".to_owned(),
                    target => format!(" to port {target} of its pods"),
                },
                declared.app_protocol
            ),
            None => format!("{} has no port {port}", service.key),
        };
        self.say(StepName::Service, Outcome::Passes, text).about = Some(about);
    }

    /// Says how many endpoints may be drawn, and what is with the others.
    fn endpoints_step(&mut self, service: &Service, usable: usize) {
        let endpoints = self.facts.mesh.endpoints(&service.key);
        let text = format!("{usable} of {} may be chosen", endpoints.len());
        let unready = endpoints
            .iter()
            .filter(|one| one.health == Health::Unhealthy)
            .map(|one| {
                let about = Object::new("Pod", &one.namespace, &one.name);
                Detail::about(about, format!("{} is not ready", shown(one)))
            })
            .collect();
        let about = Object::of_service(&service.key);
        let step = self.say(StepName::Endpoints, Outcome::Passes, text);
        step.details = unready;
        step.about = Some(about);
    }

    fn refused(&mut self, refused: &Refused) -> Fate {
        let text = refused.to_string();
        let at = match refused {
            Refused::NoPort { .. } => StepName::Service,
            Refused::NoEndpoint { .. } => StepName::Endpoints,
            _ => StepName::Path,
        };
        self.say(at, Outcome::Stops, text.clone());
        match refused {
            Refused::Sealed { .. } | Refused::NotInRegistry { .. } => {
                Fate::new(Verdict::Denied, at, text)
            }
            _ => Fate::new(Verdict::Fails, at, text),
        }
    }
}

fn branch_name(way: &Way) -> String {
    match &way.workload {
        Some(workload) => shown(workload),
        None => match &way.hop {
            Hop::Direct { addr } => addr.to_string(),
            Hop::Tunnel(tunnel) => tunnel.target.to_string(),
        },
    }
}
