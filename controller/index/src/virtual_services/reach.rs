//! Which services a VirtualService governs, port by port, and what its author is told of the others.

use std::sync::Arc;

use hashbrown::HashSet;
use karst_model::{
    name::GatewayKey,
    protocol::AppProtocol,
    route::{Attachment, Clients, RouteRules},
};

use super::{Displaced, Known, Parts, VirtualFacts, World};
use crate::{
    conditions::{Condition, ConditionType},
    facts::Name,
};

/// What a VirtualService governs, and what it does not.
#[derive(Default)]
pub(super) struct Reach {
    pub(super) http: Vec<Attachment>,
    pub(super) tls: Vec<Attachment>,
    pub(super) tcp: Vec<Attachment>,
    pub(super) waypoints: HashSet<GatewayKey>,
    /// Hosts that no service has.
    pub(super) nobody: Vec<Arc<str>>,
    unbound: Vec<Arc<str>>,
    hidden: Vec<Arc<str>>,
    /// Services without a port that one of the parts is for.
    portless: Vec<Arc<str>>,
    displaced: Vec<(Arc<str>, Displaced)>,
    /// Services that only clients of its own namespace follow it for.
    own_clients: Vec<Arc<str>>,
}

impl Reach {
    pub(super) fn attach(
        &mut self,
        name: &Name,
        facts: &VirtualFacts,
        service: &Known,
        parts: &Parts,
        world: &World<'_>,
    ) {
        let host = &service.key.hostname;
        let Some(waypoint) = service.waypoint.as_ref().filter(|_| service.has_address) else {
            self.unbound.push(host.clone());
            return;
        };
        let clients = facts.clients(name, &service.key, world.root);
        if clients.is_empty() {
            self.hidden.push(host.clone());
        }
        if clients == [Clients::Namespace(name.namespace.clone())]
            && name.namespace != service.key.namespace
        {
            self.own_clients.push(host.clone());
        }
        let mut fits = false;
        for (port, protocol) in &service.ports {
            let Some(part) = part_for(*protocol, parts) else {
                continue;
            };
            fits = true;
            for clients in &clients {
                match (world.displaced)(&service.key, *port, clients) {
                    Some(displaced) => {
                        let displaced = (host.clone(), displaced);
                        if !self.displaced.contains(&displaced) {
                            self.displaced.push(displaced);
                        }
                    }
                    None => {
                        self.waypoints.insert(waypoint.clone());
                        let attachment = Attachment {
                            service: service.key.clone(),
                            port: Some(*port),
                            clients: clients.clone(),
                        };
                        let list = self.of(part);
                        // Two hosts may stand for one service.
                        if !list.contains(&attachment) {
                            list.push(attachment);
                        }
                    }
                }
            }
        }
        if !fits {
            self.portless.push(host.clone());
        }
    }

    fn of(&mut self, part: Part) -> &mut Vec<Attachment> {
        match part {
            Part::Http => &mut self.http,
            Part::Tls => &mut self.tls,
            Part::Tcp => &mut self.tcp,
        }
    }

    /// Where it holds, where not, and why.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        let list = |hosts: &[Arc<str>]| hosts.join(", ");
        let mut lacks = Vec::new();
        let mut reason = "NoMatchingHost";
        if !self.nobody.is_empty() {
            lacks.push(format!("no service has the host {}", list(&self.nobody)));
        }
        if !self.hidden.is_empty() {
            reason = "NotExported";
            lacks.push(format!(
                "exportTo leaves nobody who calls {}",
                list(&self.hidden)
            ));
        }
        if !self.portless.is_empty() {
            reason = "NoMatchingPort";
            lacks.push(format!(
                "{} has no port of a protocol that there are rules for",
                list(&self.portless)
            ));
        }
        if !self.unbound.is_empty() {
            reason = "NoWaypoint";
            lacks.push(format!(
                "{} is bound to no waypoint, so that its traffic goes as without it: label it, or its namespace, with istio.io/use-waypoint",
                list(&self.unbound)
            ));
        }
        let mut conditions = Vec::new();
        if let Some(conflict) = self.conflict() {
            reason = "Displaced";
            conditions.push(conflict);
        }
        let mut names: Vec<String> = self.waypoints.iter().map(ToString::to_string).collect();
        names.sort();
        if !self.own_clients.is_empty() {
            lacks.push(format!(
                "for {} only clients of its own namespace follow it: those of others follow what the service's namespace has",
                list(&self.own_clients)
            ));
        }
        conditions.push(match names.is_empty() {
            true => Condition::no(ConditionType::Programmed, reason, lacks.join("; ")),
            false => {
                let by = format!("by waypoint {}", names.join(", "));
                let message: Vec<String> = std::iter::once(by).chain(lacks).collect();
                Condition::yes(ConditionType::Programmed, "Programmed", message.join("; "))
            }
        });
        conditions
    }

    /// Who governs instead.
    fn conflict(&self) -> Option<Condition> {
        let all: Vec<String> = self
            .displaced
            .iter()
            .map(|(host, displaced)| match displaced {
                Displaced::By(other) => format!(
                    "VirtualService {other} governs {host}, since of several for one host only one is followed: that of the clients' namespace, of the service's, of the root namespace; the more exact host; the oldest"
                ),
                Displaced::ByRoute(route, port) => format!(
                    "port {port} of {host} follows {route}: routes of the Gateway API come before a VirtualService"
                ),
            })
            .collect();
        let reason = match self.displaced.first()? {
            (_, Displaced::By(_)) => "OtherVirtualService",
            (_, Displaced::ByRoute(..)) => "GatewayApiRoute",
        };
        Some(Condition::yes(
            ConditionType::Conflicted,
            reason,
            all.join("; "),
        ))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Http,
    Tls,
    Tcp,
}

/// The part whose rules a port follows.
fn part_for(protocol: AppProtocol, parts: &Parts) -> Option<Part> {
    let there = |rules: &RouteRules| match rules {
        RouteRules::Http(rules) => !rules.is_empty(),
        RouteRules::Tls(rules) => !rules.is_empty(),
        RouteRules::Tcp(rules) => !rules.is_empty(),
    };
    let parts = [
        (Part::Http, there(&parts.http)),
        (Part::Tls, there(&parts.tls)),
        (Part::Tcp, there(&parts.tcp)),
    ];
    let wanted: &[Part] = match protocol {
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => &[Part::Http],
        AppProtocol::Tls => &[Part::Tls],
        AppProtocol::Tcp => &[Part::Tcp],
        // Whatever is written: the first that there is.
        AppProtocol::Unknown => &[Part::Http, Part::Tls, Part::Tcp],
    };
    let mut there = wanted.iter().copied();
    there.find(|part| parts.contains(&(*part, true)))
}
