//! Whom sealed services refuse. A sealed service accepts its waypoint only, and callers outside of the mesh have no way
//! through it; who they are is known from what the agents have seen, also before a policy seals the service for good
//! (`istio.io/dry-run`).

use std::collections::BTreeMap;

use karst_k8s_api::labels::{DRY_RUN, SEAL, USE_WAYPOINT};
use kube::api::{DynamicObject, ListParams};
use serde_json::Value;

use super::Finding;
use crate::{
    cluster::{CONTROLLER, Cluster, Kind},
    reads::{ReaderArgs, Reads},
};

const FIX: &str = "enroll the callers (label istio.io/dataplane-mode=ambient), or waive the seal: annotation karst.dev/seal: \"false\" on the Service";

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
    let mut policies = cluster.list(Kind::AUTHORIZATION_POLICY, None, &all).await?;
    policies.extend(
        cluster
            .list(Kind::REQUEST_AUTHENTICATION, None, &all)
            .await?,
    );
    let services = cluster.list(Kind::SERVICE, None, &all).await?;
    let sealed: Vec<Sealed> = services
        .iter()
        .filter_map(|one| sealed(one, &policies))
        .collect();
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
    why: String,
    /// Only a policy in dry run asks for it.
    later: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn annotation<'a>(object: &'a DynamicObject, name: &str) -> Option<&'a str> {
    object
        .metadata
        .annotations
        .as_ref()?
        .get(name)
        .map(String::as_str)
}

/// As the controller derives it, for policies that target the service or its waypoint by name.
fn sealed(service: &DynamicObject, policies: &[DynamicObject]) -> Option<Sealed> {
    let wish = annotation(service, SEAL);
    if wish == Some("false") {
        return None;
    }
    let mut deciding: Vec<&DynamicObject> = policies
        .iter()
        .filter(|one| decides(one, service))
        .collect();
    deciding.sort_by_key(|one| annotation(one, DRY_RUN) == Some("true"));
    let (why, later) = match (wish, deciding.first()) {
        (Some("true"), _) => (format!("annotation {SEAL}"), false),
        (_, Some(policy)) => (
            format!(
                "policy {}",
                policy.metadata.name.as_deref().unwrap_or_default()
            ),
            annotation(policy, DRY_RUN) == Some("true"),
        ),
        _ => return None,
    };
    let selector = service.data["spec"]["selector"].as_object()?.iter();
    let selector =
        selector.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
    Some(Sealed {
        namespace: service.metadata.namespace.clone()?,
        name: service.metadata.name.clone()?,
        selector: selector.collect(),
        why,
        later,
    })
}

/// Whether a policy decides by request about a service.
fn decides(policy: &DynamicObject, service: &DynamicObject) -> bool {
    let spec = &policy.data["spec"];
    let labels = service.metadata.labels.as_ref();
    let waypoint = labels.and_then(|labels| labels.get(USE_WAYPOINT));
    let refs = spec["targetRefs"].as_array().into_iter().flatten();
    let targets = refs.chain(spec.get("targetRef")).any(|target| {
        let name = Some(text(target, "name"));
        match text(target, "kind") {
            "Service" => name == service.metadata.name.as_deref(),
            "Gateway" => name == waypoint.map(String::as_str),
            _ => false,
        }
    });
    targets && policy.metadata.namespace == service.metadata.namespace && spec["action"] != "AUDIT"
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
            let message = format!(
                "sealed by {}; nobody was seen to call it without the mesh",
                self.why
            );
            return Finding::fine("seal", &subject, message);
        }
        let callers = callers
            .iter()
            .map(|(caller, count)| format!("{caller} ({count} connections)"));
        let (is, refuses) = match self.later {
            true => ("would be sealed", "would refuse"),
            false => ("is sealed", "refuses"),
        };
        let message = format!(
            "{is} by {} and {refuses} these callers, which come without the mesh: {}",
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

    fn service(annotations: Value) -> DynamicObject {
        object(json!({
            "metadata": {"name": "orders", "namespace": "shop", "annotations": annotations, "labels": {USE_WAYPOINT: "w"}},
            "spec": {"selector": {"app": "orders"}},
        }))
    }

    fn policy(kind: &str, name: &str, annotations: Value) -> DynamicObject {
        object(json!({
            "metadata": {"name": "deny", "namespace": "shop", "annotations": annotations},
            "spec": {"action": "DENY", "targetRefs": [{"kind": kind, "name": name}]},
        }))
    }

    #[test]
    fn a_service_is_sealed_by_annotation_and_by_policies_on_it_and_on_its_waypoint() {
        let plain = service(json!({}));
        assert!(sealed(&plain, &[]).is_none());
        assert!(sealed(&plain, &[policy("Service", "carts", json!({}))]).is_none());
        for (kind, name) in [("Service", "orders"), ("Gateway", "w")] {
            let by = sealed(&plain, &[policy(kind, name, json!({}))]).unwrap();
            assert_eq!((by.why.as_str(), by.later), ("policy deny", false));
        }
        let dry = policy("Service", "orders", json!({DRY_RUN: "true"}));
        assert!(sealed(&plain, std::slice::from_ref(&dry)).unwrap().later);
        assert!(sealed(&service(json!({SEAL: "false"})), &[dry]).is_none());
        assert!(!sealed(&service(json!({SEAL: "true"})), &[]).unwrap().later);
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
        let one = sealed(&service(json!({SEAL: "true"})), &[]).unwrap();
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
