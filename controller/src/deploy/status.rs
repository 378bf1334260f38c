//! The status of a Gateway and of the class, as the API server wants it. Pure.

use karst_index::{Address, Condition, GatewayStatus};
use karst_k8s_api::gateway::{
    GatewayClass,
    gateway_class::{SUPPORTED_FEATURES, WAYPOINT_CLASS, WAYPOINT_CONTROLLER},
};
use serde_json::{Value, json};

use super::{CONTROLLER, MANAGED_BY};

/// The status that a Gateway should have; `None` where it has it.
pub(super) fn of_gateway(
    status: &GatewayStatus,
    present: Option<&Value>,
    now: &str,
) -> Option<Value> {
    let nothing = Value::Null;
    let present = present.unwrap_or(&nothing);
    let generation = status.observed_generation;
    let listeners: Vec<Value> = status
        .listeners
        .iter()
        .map(|listener| {
            let before = present["listeners"].as_array();
            let before = before
                .and_then(|all| all.iter().find(|one| one["name"] == *listener.name))
                .unwrap_or(&nothing);
            json!({
                "name": &*listener.name,
                "attachedRoutes": listener.attached_routes,
                "supportedKinds": [],
                "conditions": conditions(&listener.conditions, generation, &before["conditions"], now),
            })
        })
        .collect();
    let addresses: Vec<Value> = status.addresses.iter().map(address).collect();
    let mut wanted = json!({
        "conditions": conditions(&status.conditions, generation, &present["conditions"], now),
        "listeners": listeners,
    });
    if !addresses.is_empty() {
        wanted["addresses"] = addresses.into();
    }
    let same = ["conditions", "listeners", "addresses"]
        .iter()
        .all(|field| wanted[*field] == present[*field]);
    (!same).then_some(wanted)
}

fn address(address: &Address) -> Value {
    match address {
        Address::Hostname(name) => json!({"type": "Hostname", "value": &**name}),
        Address::Ip(ip) => json!({"type": "IPAddress", "value": ip}),
    }
}

/// Conditions with the time of their last change: that of the present one where its status is the same.
fn conditions(
    wanted: &[Condition],
    generation: Option<i64>,
    present: &Value,
    now: &str,
) -> Vec<Value> {
    let wanted = wanted.iter().map(|condition| {
        let kind = condition.kind.to_string();
        let status = if condition.status { "True" } else { "False" };
        let before = present.as_array().into_iter().flatten();
        let since = before
            .filter(|one| one["type"] == *kind && one["status"] == *status)
            .find_map(|one| one["lastTransitionTime"].as_str());
        json!({
            "type": kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation.unwrap_or_default(),
            "lastTransitionTime": since.unwrap_or(now),
        })
    });
    wanted.collect()
}

/// The class as it should be, without status.
pub(super) fn class() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {
            "name": WAYPOINT_CLASS,
            "labels": {MANAGED_BY: CONTROLLER},
        },
        "spec": {
            "controllerName": WAYPOINT_CONTROLLER,
            // At most 64 characters.
            "description": "Karst's waypoint: routes and policy by request",
        },
    })
}

/// The status that the class should have; `None` where it has it, or is another controller's.
pub(super) fn of_class(class: &GatewayClass, now: &str) -> Option<Value> {
    if class.spec.controller_name != WAYPOINT_CONTROLLER {
        return None;
    }
    let nothing = Value::Null;
    let present = class.status.as_ref().unwrap_or(&nothing);
    let before = present["conditions"].as_array().into_iter().flatten();
    let since = before
        .filter(|one| one["type"] == "Accepted" && one["status"] == "True")
        .find_map(|one| one["lastTransitionTime"].as_str());
    let accepted = json!([{
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "Gateways of this class are deployed as waypoints",
        "observedGeneration": class.metadata.generation.unwrap_or_default(),
        "lastTransitionTime": since.unwrap_or(now),
    }]);
    let features: Vec<Value> = SUPPORTED_FEATURES
        .iter()
        .map(|name| json!({"name": name}))
        .collect();
    let wanted = json!({"conditions": accepted, "supportedFeatures": features});
    let same = wanted["conditions"] == present["conditions"]
        && wanted["supportedFeatures"] == present["supportedFeatures"];
    (!same).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_there_is_not_written_again() {
        let status = GatewayStatus {
            observed_generation: Some(2),
            conditions: Vec::new(),
            addresses: vec![Address::Hostname("w.shop.svc.cluster.local".into())],
            listeners: Vec::new(),
            is_manual: false,
            trusted_proxies: 0,
        };
        let written = of_gateway(&status, None, "t1").unwrap();
        assert_eq!(written["addresses"][0]["type"], "Hostname");
        assert_eq!(of_gateway(&status, Some(&written), "t2"), None);
    }

    #[test]
    fn a_class_of_another_controller_is_left_alone() {
        let mut class = GatewayClass::default();
        class.spec.controller_name = "example.com/other".to_owned();
        assert_eq!(of_class(&class, "t"), None);
        class.spec.controller_name = WAYPOINT_CONTROLLER.to_owned();
        class.status = of_class(&class, "t1");
        assert_eq!(of_class(&class, "t2"), None);
        assert!(
            SUPPORTED_FEATURES.is_sorted(),
            "the API wants them in order"
        );
    }
}
