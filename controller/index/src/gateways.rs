//! The status of a waypoint's Gateway: what is accepted of it, whether it is in place, and where.
//!
//! Source: Gateway API reference v1.6, `GatewayStatus`, and what Istio writes for a waypoint.

use std::{net::IpAddr, sync::Arc};

use karst_k8s_api::labels;

use crate::{
    conditions::{Condition, ConditionType},
    waypoints::{GatewayFacts, HBONE},
};

/// What a Gateway's status should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    /// `metadata.generation` that it speaks of.
    pub observed_generation: Option<i64>,
    pub conditions: Vec<Condition>,
    /// Empty until the waypoint was ready once: what is bound to it goes as without it until then.
    pub addresses: Vec<Address>,
    pub listeners: Vec<ListenerStatus>,
    /// Somebody else runs it: nothing is to be deployed.
    pub is_manual: bool,
    /// Proxies in front of it whose entries in `x-forwarded-for` it is to believe.
    pub trusted_proxies: u16,
}

/// Where a waypoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Hostname(Arc<str>),
    Ip(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    pub name: Arc<str>,
    /// Routes that name the Gateway itself. Routes of a mesh name services, so there are none.
    pub attached_routes: u32,
    pub conditions: Vec<Condition>,
}

/// What is known around a Gateway.
pub(crate) struct Surroundings<'a> {
    pub(crate) facts: &'a GatewayFacts,
    pub(crate) hostname: Arc<str>,
    /// Addresses of the service of its name; `None`: there is no service.
    pub(crate) vips: Option<&'a [IpAddr]>,
    /// Pods of it that are ready.
    pub(crate) ready: usize,
    /// What the mesh says of trusted proxies.
    pub(crate) trusted_proxies: u16,
}

pub(crate) fn status(around: Surroundings<'_>) -> GatewayStatus {
    let facts = around.facts;
    let listeners: Vec<ListenerStatus> = facts
        .listeners
        .iter()
        .map(|listener| ListenerStatus {
            name: listener.name.clone(),
            attached_routes: 0,
            conditions: listener_conditions(listener.is_hbone(), &listener.protocol),
        })
        .collect();
    let accepted = accepted(facts);
    let in_place = around.ready > 0 || facts.has_addresses || facts.is_manual();
    let addresses = match (accepted.status, in_place) {
        (true, true) => addresses(&around),
        _ => Vec::new(),
    };
    let programmed = programmed(&around, accepted.status);
    GatewayStatus {
        observed_generation: facts.generation,
        conditions: vec![accepted, programmed],
        addresses,
        listeners,
        is_manual: facts.is_manual(),
        trusted_proxies: match facts.trusted_proxies {
            Ok(Some(own)) => own,
            Ok(None) | Err(_) => around.trusted_proxies,
        },
    }
}

fn accepted(facts: &GatewayFacts) -> Condition {
    let no = |reason, message: String| Condition::no(ConditionType::Accepted, reason, message);
    if let Some(bad) = facts.bad_traffic() {
        let message = format!(
            "label istio.io/waypoint-for is {bad:?}, expected service, workload, all or none: taken for service"
        );
        return no("Invalid", message);
    }
    if let Some(bad) = facts.bad_inbound() {
        let message = format!(
            "annotation ambient.istio.io/waypoint-inbound-binding is {bad:?}, expected NONE, PROXY or PROXY/PORT: taken as if \
             it were not there"
        );
        return no("Invalid", message);
    }
    if let Err(wrong) = &facts.trusted_proxies {
        let message = format!(
            "annotation {}: {wrong}: nothing is deployed anew",
            labels::PROXY_CONFIG
        );
        return no("Invalid", message);
    }
    if !facts.listeners.iter().any(|listener| listener.is_hbone()) {
        let message = format!(
            "a waypoint needs a listener of protocol {HBONE} on port 15008: nothing can attach to it"
        );
        return no("ListenersNotValid", message);
    }
    if let Some(other) = facts
        .listeners
        .iter()
        .find(|listener| listener.is_hbone() && listener.port != 15008)
    {
        let message = format!(
            "listener {} has port {}: waypoints listen on 15008, whatever is written",
            other.name, other.port
        );
        return no("ListenersNotValid", message);
    }
    Condition::yes(ConditionType::Accepted, "Accepted", "it is a waypoint")
}

fn programmed(around: &Surroundings<'_>, accepted: bool) -> Condition {
    let no = |reason, message: &str| Condition::no(ConditionType::Programmed, reason, message);
    match (accepted, around.facts.is_manual(), around.vips) {
        (false, ..) => no("Invalid", "it is not accepted"),
        (true, true, _) => Condition::yes(
            ConditionType::Programmed,
            "Programmed",
            "somebody else runs it, at the address that it names",
        ),
        (true, false, None) => no("AddressNotAssigned", "its service is not there yet"),
        (true, false, Some(_)) if around.ready == 0 => no(
            "NoResources",
            "none of its pods is ready: what is bound to it is refused, or goes as without it while it was never ready",
        ),
        (true, false, Some(_)) => Condition::yes(
            ConditionType::Programmed,
            "Programmed",
            format!("{} of its pods are ready", around.ready),
        ),
    }
}

fn addresses(around: &Surroundings<'_>) -> Vec<Address> {
    let vips = around.vips.unwrap_or_default().iter();
    let hostname = std::iter::once(Address::Hostname(around.hostname.clone()));
    hostname.chain(vips.map(|ip| Address::Ip(*ip))).collect()
}

fn listener_conditions(is_hbone: bool, protocol: &str) -> Vec<Condition> {
    use ConditionType::{Accepted, Conflicted, Programmed, ResolvedRefs};
    if !is_hbone {
        let message = format!("protocol {protocol:?} is not one of a waypoint, expected {HBONE}");
        return vec![
            Condition::no(Accepted, "UnsupportedProtocol", message.clone()),
            Condition::no(Programmed, "Invalid", message),
            Condition::no(Conflicted, "NoConflicts", ""),
            Condition::yes(ResolvedRefs, "ResolvedRefs", ""),
        ];
    }
    vec![
        Condition::yes(Accepted, "Accepted", ""),
        Condition::yes(Programmed, "Programmed", ""),
        Condition::no(Conflicted, "NoConflicts", ""),
        Condition::yes(ResolvedRefs, "ResolvedRefs", ""),
    ]
}

/// What a Gateway's author is to be told of what does not hold.
pub(crate) fn complaints(status: &GatewayStatus) -> Vec<Condition> {
    let own = status.conditions.iter();
    let of_listeners = status
        .listeners
        .iter()
        .flat_map(|listener| &listener.conditions)
        .filter(|condition| condition.kind == ConditionType::Accepted);
    own.chain(of_listeners)
        .filter(|condition| !condition.status)
        .cloned()
        .collect()
}
