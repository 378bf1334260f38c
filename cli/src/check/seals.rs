//! Whom sealed services refuse. A sealed service accepts its waypoint only, and callers outside of the mesh have no way
//! through it; who they are is known from what the agents have seen, also before a policy seals the service for good
//! (`istio.io/dry-run`). What is sealed, or would be, the controller says in the Service's status.

use std::collections::BTreeMap;

use kube::api::{DynamicObject, ListParams};
use serde_json::Value;

use super::Finding;
use crate::{
    cluster::{CONTROLLER, Cluster, Kind},
    reads::{ReaderArgs, Reads},
};

const FIX: &str = "enroll the callers (label istio.io/dataplane-mode=ambient), or waive the seal: annotation karst.dev/seal: \"false\" on the Service";
/// The condition by which the controller says whether a Service is sealed.
const SEALED: &str = "karst.dev/Sealed";
/// Its reason where only a policy in dry run would seal it.
const DRY_RUN: &str = "DryRun";

/// Callers of sealed services, and of those that a policy in dry run would seal, that come without the mesh.
pub(super) async fn look(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let own = Some(cluster.namespace.as_str());
    if cluster
        .get(Kind::DEPLOYMENT, own, CONTROLLER)
        .await?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let all = ListParams::default();
    let services = cluster.list(Kind::SERVICE, None, &all).await?;
    let sealed: Vec<Sealed> = services.iter().filter_map(sealed).collect();
    if sealed.is_empty() {
        return Ok(Vec::new());
    }
    let pods = cluster.list(Kind::POD, None, &all).await?;
    let reads = Reads::open(cluster, &ReaderArgs::default()).await?;
    let edges = reads.all("edges", None).await?;
    Ok(sealed
        .iter()
        .map(|one| one.refuses(&pods, &edges))
        .collect())
}

/// A service that is sealed, or would be.
struct Sealed {
    namespace: String,
    name: String,
    selector: BTreeMap<String, String>,
    /// In the controller's words.
    why: String,
    /// Only a policy in dry run asks for it.
    later: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// As the controller says in the Service's status.
fn sealed(service: &DynamicObject) -> Option<Sealed> {
    let conditions = service.data["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|one| one["type"] == SEALED)?;
    let later = condition["status"] != "True";
    if later && condition["reason"] != DRY_RUN {
        return None;
    }
    let selector = service.data["spec"]["selector"].as_object()?.iter();
    let selector =
        selector.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
    Some(Sealed {
        namespace: service.metadata.namespace.clone()?,
        name: service.metadata.name.clone()?,
        selector: selector.collect(),
        why: text(condition, "message").to_owned(),
        later,
    })
}

impl Sealed {
    fn refuses(&self, pods: &[DynamicObject], edges: &[Value]) -> Finding {
        let subject = format!("{}/{}", self.namespace, self.name);
        let mut callers: BTreeMap<String, u64> = BTreeMap::new();
        for edge in edges.iter().filter(|edge| self.is_plain_call(pods, edge)) {
            let (namespace, workload) =
                (text(edge, "sourceNamespace"), text(edge, "sourceWorkload"));
            let caller = match workload {
                "" => "somebody unknown to the mesh".to_owned(),
                workload => format!("{namespace}/{workload}"),
            };
            *callers.entry(caller).or_default() += edge["connections"].as_u64().unwrap_or_default();
        }
        if callers.is_empty() {
            let message = format!("{}; nobody was seen to call it without the mesh", self.why);
            return Finding::fine("seal", &subject, message);
        }
        let callers = callers
            .iter()
            .map(|(caller, count)| format!("{caller} ({count} connections)"));
        let refuses = match self.later {
            true => "this would refuse",
            false => "this refuses",
        };
        let message = format!(
            "{}; {refuses} these callers, which come without the mesh: {}",
            self.why,
            callers.collect::<Vec<_>>().join(", ")
        );
        Finding::warning("seal", &subject, message, FIX)
    }

    /// Whether an edge is a call of one of the service's pods that no mutual TLS carried.
    fn is_plain_call(&self, pods: &[DynamicObject], edge: &Value) -> bool {
        let workload = text(edge, "destinationWorkload");
        let is_of = |pod: &DynamicObject| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let owned = name
                .strip_prefix(workload)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
            owned
                && pod.metadata.namespace.as_deref() == Some(&self.namespace)
                && self
                    .selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
        };
        text(edge, "direction") == "inbound"
            && edge["mutualTls"] == false
            && !workload.is_empty()
            && !self.selector.is_empty()
            && text(edge, "destinationNamespace") == self.namespace
            && pods.iter().any(is_of)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    /// A Service of which the controller says this; nothing without a reason.
    fn service(reason: &str, status: &str) -> DynamicObject {
        let theirs =
            json!({"type": "LoadBalancerPortsError", "status": "True", "reason": "PolicyAttached"});
        let ours = json!({
            "type": "karst.dev/Sealed", "status": status, "reason": reason,
            "message": "policy shop/deny decides by request: its ports accept waypoint shop/w only",
        });
        let conditions = match reason {
            "" => vec![theirs],
            _ => vec![theirs, ours],
        };
        object(json!({
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"selector": {"app": "orders"}},
            "status": {"conditions": conditions},
        }))
    }

    #[test]
    fn a_service_is_sealed_where_its_status_says_so() {
        assert!(sealed(&service("", "")).is_none());
        assert!(sealed(&object(json!({"metadata": {}, "spec": {}}))).is_none());
        for reason in ["PolicyAttached", "Asked"] {
            let by = sealed(&service(reason, "True")).unwrap();
            assert!(by.why.starts_with("policy shop/deny") && !by.later);
        }
        assert!(sealed(&service("DryRun", "False")).unwrap().later);
        assert!(sealed(&service("Waived", "False")).is_none());
    }

    #[test]
    fn callers_without_the_mesh_are_listed() {
        let pods = [object(json!({
            "metadata": {"name": "orders-v1-5d9-x", "namespace": "shop", "labels": {"app": "orders", "version": "v1"}},
        }))];
        let edge = |from: &str, to: &str, mutual: bool| {
            json!({
                "direction": "inbound", "sourceNamespace": "plain", "sourceWorkload": from, "destinationNamespace": "shop",
                "destinationWorkload": to, "mutualTls": mutual, "connections": 3,
            })
        };
        let one = sealed(&service("PolicyAttached", "True")).unwrap();
        let quiet = [
            edge("front", "orders-v1", true),
            edge("cron", "carts", false),
        ];
        assert!(one.refuses(&pods, &quiet).is_fine());
        let found = one.refuses(
            &pods,
            &[
                edge("cron", "orders-v1", false),
                edge("cron", "orders-v1", false),
            ],
        );
        assert!(
            found.message.contains("plain/cron (6 connections)"),
            "{}",
            found.message
        );
        assert!(!found.is_fine() && !found.is_failure());
    }
}
