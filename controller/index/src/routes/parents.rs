//! Which parents of a route are ours, and what each makes of it.

use std::collections::BTreeSet;

use karst_k8s_api::gateway::route::ParentReference;
use karst_model::{
    name::{GatewayKey, ServiceKey},
    route::{Attachment, Clients, RouteKey},
};

use super::{World, group};
use crate::{
    conditions::{Condition, ConditionType},
    facts::Name,
    references::{ISTIO_NETWORKING, NoTarget, Reference, Target, TargetService},
};

/// What a parent makes of a route, whatever its rules.
pub(super) enum Verdict {
    /// Another controller's parent.
    NotOurs,
    Refused {
        reason: &'static str,
        message: String,
    },
    Fits(Fit),
}

/// The services of a parent that takes the route.
pub(super) struct Fit {
    pub(super) attachments: Vec<Attachment>,
    services: Vec<TargetService>,
}

impl Fit {
    /// Whether the route has an effect: only a waypoint routes.
    pub(super) fn programmed(&self, world: &World<'_>) -> Condition {
        let unbound = self.services.iter().find(|one| one.waypoint.is_none());
        let mut names: Vec<String> = self.waypoints().map(|one| one.to_string()).collect();
        names.dedup();
        match unbound {
            None => Condition::yes(
                ConditionType::Programmed,
                "Programmed",
                format!("by waypoint {}{}", names.join(", "), self.instead(world)),
            ),
            Some(service) => Condition::no(
                ConditionType::Programmed,
                "NoWaypoint",
                format!(
                    "{} is bound to no waypoint, so that its traffic goes as without the route: label it, or its namespace, with istio.io/use-waypoint",
                    service.key.hostname
                ),
            ),
        }
    }

    /// The VirtualServices that it comes before.
    fn instead(&self, world: &World<'_>) -> String {
        let all = self.attachments.iter();
        let names: BTreeSet<String> = all
            .flat_map(|attachment| (world.replaced)(attachment))
            .map(|name| name.to_string())
            .collect();
        match names.is_empty() {
            true => String::new(),
            false => {
                let names: Vec<String> = names.into_iter().collect();
                format!(", in the place of VirtualService {}", names.join(", "))
            }
        }
    }

    pub(super) fn waypoints(&self) -> impl Iterator<Item = GatewayKey> {
        self.services.iter().filter_map(|one| one.waypoint.clone())
    }
}

/// Services that the route's parents stand for, whether or not they accept it.
pub(super) fn services(
    key: &RouteKey,
    parents: &[ParentReference],
    world: &World<'_>,
) -> Vec<ServiceKey> {
    let ours = parents.iter().filter(|parent| is_service_like(parent));
    let targets = ours.filter_map(|parent| (world.target)(&reference(key, parent)).ok());
    targets
        .flat_map(|target| target.services)
        .map(|service| service.key)
        .collect()
}

/// What one parent makes of the route.
pub(super) fn judge(key: &RouteKey, parent: &ParentReference, world: &World<'_>) -> Verdict {
    let to = reference(key, parent);
    if to.kind == "Gateway" && group(parent) == super::GATEWAY_GROUP {
        return gateway(&to, world);
    }
    if !is_service_like(parent) {
        return Verdict::NotOurs;
    }
    let refused = |reason, message| Verdict::Refused { reason, message };
    match (world.target)(&to) {
        Err(NoTarget::Kind) => refused(
            "UnsupportedValue",
            format!(
                "a {} cannot have routes: a Service or a ServiceEntry can",
                to.kind
            ),
        ),
        Err(NoTarget::Missing) => refused("NoMatchingParent", format!("there is no {to}")),
        Err(NoTarget::ExternalName) => refused(
            "UnsupportedValue",
            format!("{to} is only another name (ExternalName): nobody can be routed by it"),
        ),
        Ok(target) => fit(key, parent, &to, target)
            .map_or_else(|(reason, message)| refused(reason, message), Verdict::Fits),
    }
}

fn fit(
    key: &RouteKey,
    parent: &ParentReference,
    to: &Reference<'_>,
    target: Target,
) -> Result<Fit, (&'static str, String)> {
    if target.services.iter().all(|service| !service.has_address) {
        let message = format!(
            "{to} has no address of its own (headless): who dials its pods chooses among them"
        );
        return Err(("UnsupportedValue", message));
    }
    let ports = ports(parent, &target).ok_or_else(|| {
        let asked = match (parent.port, parent.section_name.as_deref()) {
            (Some(port), Some(name)) => format!("{port} of the name {name:?}"),
            (Some(port), None) => port.to_string(),
            (None, name) => format!("{:?}", name.unwrap_or_default()),
        };
        ("NoMatchingParent", format!("{to} has no port {asked}"))
    })?;
    let clients = match *to.namespace == *key.namespace {
        true => Clients::All,
        false => Clients::Namespace(key.namespace.clone()),
    };
    let attachments = target.services.iter().flat_map(|service| {
        ports.iter().map(|port| Attachment {
            service: service.key.clone(),
            port: *port,
            clients: clients.clone(),
        })
    });
    Ok(Fit {
        attachments: attachments.collect(),
        services: target.services,
    })
}

/// The ports that a parent names; `[None]` for all of them, nothing where it names one that is not there.
fn ports(parent: &ParentReference, target: &Target) -> Option<Vec<Option<u16>>> {
    let section = parent
        .section_name
        .as_deref()
        .filter(|name| !name.is_empty());
    if parent.port.is_none() && section.is_none() {
        return Some(vec![None]);
    }
    let fitting = target.ports.iter().filter(|port| {
        parent
            .port
            .is_none_or(|asked| asked == i64::from(port.number))
            && section.is_none_or(|asked| asked == &*port.name)
    });
    let numbers: Vec<Option<u16>> = fitting.map(|port| Some(port.number)).collect();
    (!numbers.is_empty()).then_some(numbers)
}

/// Gateways belong to other controllers, unless they are waypoints.
fn gateway(to: &Reference<'_>, world: &World<'_>) -> Verdict {
    let name = Name {
        namespace: to.namespace.into(),
        name: to.name.into(),
    };
    if !(world.is_waypoint)(&name) {
        return Verdict::NotOurs;
    }
    Verdict::Refused {
        reason: "NotAllowedByListeners",
        message: format!("{to} is a waypoint, which takes no routes: attach to its services"),
    }
}

/// Whether a parent's group is one of those that services are of.
pub(super) fn is_service_like(parent: &ParentReference) -> bool {
    matches!(group(parent), "" | ISTIO_NETWORKING)
}

fn reference<'a>(key: &'a RouteKey, parent: &'a ParentReference) -> Reference<'a> {
    let namespace = parent.namespace.as_deref().filter(|one| !one.is_empty());
    Reference {
        group: group(parent),
        kind: parent.kind.as_deref().unwrap_or("Gateway"),
        namespace: namespace.unwrap_or(&key.namespace),
        name: &parent.name,
    }
}
