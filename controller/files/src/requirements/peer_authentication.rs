//! PeerAuthentication: what would leave plaintext in that its author meant to keep out.

use super::place::Place;

pub(super) fn check(policy: &mut Place<'_>) {
    let mut spec = policy.field("spec");
    selector(&mut spec);
    let has_ports = spec
        .value
        .get("portLevelMtls")
        .and_then(serde_json::Value::as_object)
        .is_some_and(|ports| !ports.is_empty());
    let selects = spec
        .value
        .pointer("/selector/matchLabels")
        .and_then(serde_json::Value::as_object)
        .is_some_and(|labels| !labels.is_empty());
    if has_ports && !selects {
        let message = "needs a selector with matchLabels: ports belong to workloads, and without one nothing is enforced";
        spec.field("portLevelMtls").report(message.to_owned());
    }
    spec.entries("portLevelMtls", |place, port| {
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            place.report(format!("{port:?}, expected a port from 1 to 65535"));
        }
    });
}

/// Labels of a selector; a wildcard is read as itself and selects nothing.
pub(super) fn selector(spec: &mut Place<'_>) {
    spec.field("selector").entries("matchLabels", |place, key| {
        let value = place.value.as_str().unwrap_or_default();
        if key.contains('*') || value.contains('*') {
            place.report("a selector takes no wildcard: expected the whole label".to_owned());
        }
    });
}
