//! Other meshes in the cluster, and how our own is.

use kube::api::ListParams;
use serde_json::Value;

use super::Finding;
use crate::cluster::{CONTROLLER, Cluster, Kind, MANAGED_BY};

const MOVE: &str = "take Istio away first (istioctl uninstall --purge, or helm uninstall istiod ztunnel istio-cni), then install; labels, policies and routes stay and are honoured. To try both, use two clusters";

/// A live istiod owns the labels, the classes and the ConfigMaps that Karst would own.
pub(super) async fn others(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let mut found = Vec::new();
    let istiod = ListParams::default().labels("app=istiod");
    for object in cluster.list(Kind::DEPLOYMENT, None, &istiod).await? {
        if object.data["status"]["replicas"].as_i64().unwrap_or(0) > 0 {
            found.push(format!("Deployment {}", place(&object.metadata)));
        }
    }
    for (label, value) in [("app", "ztunnel"), ("k8s-app", "istio-cni-node")] {
        let params = ListParams::default().labels(&format!("{label}={value}"));
        for object in cluster.list(Kind::DAEMON_SET, None, &params).await? {
            found.push(format!("DaemonSet {}", place(&object.metadata)));
        }
    }
    for kind in [Kind::WEBHOOK, Kind::MUTATING_WEBHOOK] {
        for object in cluster.list(kind, None, &istiod).await? {
            found.push(format!("{} {}", kind_of(&object), place(&object.metadata)));
        }
    }
    for object in cluster
        .list(Kind::GATEWAY_CLASS, None, &ListParams::default())
        .await?
    {
        let labels = object.metadata.labels.as_ref();
        let is_ours = labels
            .and_then(|labels| labels.get(MANAGED_BY))
            .map(String::as_str)
            == Some(CONTROLLER);
        if class_is_istios(&object.data) && !is_ours {
            found.push(format!(
                "GatewayClass {} (accepted)",
                place(&object.metadata)
            ));
        }
    }
    Ok(vec![match found.is_empty() {
        true => Finding::fine(
            "other-mesh",
            "",
            "no other control plane owns Istio's labels and classes",
        ),
        false => Finding::failure(
            "other-mesh",
            "",
            format!(
                "Istio is here and owns the same labels and classes: {}",
                found.join(", ")
            ),
            MOVE,
        ),
    }])
}

/// A class that istiod has accepted; one that it left behind has no controller any more, which its pods tell.
fn class_is_istios(class: &Value) -> bool {
    let controller = class["spec"]["controllerName"].as_str().unwrap_or_default();
    let conditions = class["status"]["conditions"].as_array();
    let accepted = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Accepted" && condition["status"] == "True");
    controller.starts_with("istio.io/") && accepted
}

fn kind_of(object: &kube::api::DynamicObject) -> &str {
    object
        .types
        .as_ref()
        .map_or("webhook", |types| types.kind.as_str())
}

fn place(meta: &kube::api::ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Whether what is installed runs.
pub(super) async fn installed(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let namespace = Some(cluster.namespace.as_str());
    let controller = cluster
        .get(Kind::DEPLOYMENT, namespace, "karst-controller")
        .await?;
    let agents = cluster
        .get(Kind::DAEMON_SET, namespace, "karst-agent")
        .await?;
    let (Some(controller), Some(agents)) = (controller, agents) else {
        return Ok(vec![Finding::fine(
            "installation",
            &cluster.namespace,
            "Karst is not installed here yet",
        )]);
    };
    let count = |data: &Value, name: &str| data["status"][name].as_i64().unwrap_or(0);
    let mut findings = Vec::new();
    findings.push(running(
        "controller",
        &cluster.namespace,
        count(&controller.data, "readyReplicas"),
        controller.data["spec"]["replicas"].as_i64().unwrap_or(1),
        "kubectl -n NAMESPACE describe pods -l app.kubernetes.io/name=karst-controller",
    ));
    findings.push(running(
        "agents",
        &cluster.namespace,
        count(&agents.data, "numberReady"),
        count(&agents.data, "desiredNumberScheduled"),
        "kubectl -n NAMESPACE describe pods -l app.kubernetes.io/name=karst-agent",
    ));
    findings.extend(uncovered_nodes(cluster, count(&agents.data, "desiredNumberScheduled")).await?);
    Ok(findings)
}

fn running(check: &str, namespace: &str, ready: i64, wanted: i64, look: &str) -> Finding {
    let message = format!("{ready} of {wanted} ready");
    match ready >= wanted && wanted > 0 {
        true => Finding::fine(check, "", message),
        false => Finding::failure(check, "", message, look.replace("NAMESPACE", namespace)),
    }
}

/// Nodes that no agent is meant to run on: enrolled pods do not start there.
async fn uncovered_nodes(cluster: &Cluster, agents: i64) -> anyhow::Result<Option<Finding>> {
    let nodes = cluster
        .list(Kind::NODE, None, &ListParams::default())
        .await?;
    let linux = nodes
        .iter()
        .filter(|node| node.data["status"]["nodeInfo"]["operatingSystem"] == "linux");
    let linux = i64::try_from(linux.count()).unwrap_or(i64::MAX);
    Ok((agents < linux).then(|| {
        Finding::warning(
            "coverage",
            "",
            format!("{agents} agents for {linux} Linux nodes: pods elsewhere cannot be enrolled"),
            "agent.tolerations and agent.nodeSelector (values) choose the nodes",
        )
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_counts_once_its_controller_accepted_it() {
        let mut class = json!({"spec": {"controllerName": "istio.io/gateway-controller"}});
        assert!(!class_is_istios(&class));
        class["status"] = json!({"conditions": [{"type": "Accepted", "status": "True"}]});
        assert!(class_is_istios(&class));
        class["spec"]["controllerName"] = json!("karst.dev/gateway-controller");
        assert!(!class_is_istios(&class));
    }
}
