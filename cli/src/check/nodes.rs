//! What a pod on each node says about its kernel, mounts and CNI chain.
//!
//! The pod is the agents' own, told `--node-check`: what works for it works for an agent. Where nothing is installed
//! yet, it runs in a namespace of its own, which is deleted afterwards.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use serde_json::{Value, json};

use super::{CheckArgs, Finding, paths};
use crate::{
    chart,
    cluster::{Apply, Cluster, Kind, Reference},
};

/// Name and label of the pods.
pub(super) const NAME: &str = "karst-check";
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);
/// Longest wait until pods and namespace of a check are gone.
const GONE_MAX: Duration = Duration::from_secs(60);
/// A node's last finding.
const LAST: &str = "done";

pub(super) async fn look(cluster: &Cluster, args: &CheckArgs) -> anyhow::Result<Vec<Finding>> {
    let installed = cluster
        .get(Kind::DAEMON_SET, Some(&cluster.namespace), "karst-agent")
        .await?;
    let (template, namespace) = match &installed {
        Some(agents) => (
            agents.data["spec"]["template"].clone(),
            cluster.namespace.clone(),
        ),
        None => (template_of_chart(&cluster.namespace)?, NAME.to_owned()),
    };
    let place = Cluster {
        client: cluster.client.clone(),
        namespace,
    };
    if installed.is_none() {
        place.apply(&own_namespace(), Apply::Really).await?;
    }
    let found = in_namespace(&place, &template, args).await;
    // Whatever was found, nothing stays.
    let deleted = clean_up(&place, installed.is_none()).await;
    let findings = found?;
    deleted?;
    Ok(findings)
}

fn template_of_chart(namespace: &str) -> anyhow::Result<Value> {
    let values = chart::values(json!({}))?;
    let objects = chart::objects(namespace, &values)?;
    let agents = objects
        .into_iter()
        .find(|object| object["kind"] == "DaemonSet");
    Ok(agents.unwrap_or_default()["spec"]["template"].clone())
}

fn own_namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAME, "labels": {
            "istio.io/dataplane-mode": "none",
            "pod-security.kubernetes.io/enforce": "privileged",
        }},
    })
}

async fn clean_up(place: &Cluster, with_namespace: bool) -> anyhow::Result<()> {
    let mut gone = Vec::new();
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name={NAME}"));
    for pod in place
        .list(Kind::POD, Some(&place.namespace), &params)
        .await?
    {
        let name = pod.metadata.name.unwrap_or_default();
        let pod = Reference::new(Kind::POD, Some(&place.namespace), &name);
        place.delete(&pod).await?;
        gone.push(pod);
    }
    if with_namespace {
        let namespace = Reference::new(Kind::NAMESPACE, None, NAME);
        place.delete(&namespace).await?;
        gone.push(namespace);
    }
    // The next check uses the same names.
    let deadline = Instant::now() + GONE_MAX;
    for reference in gone {
        place.wait_gone(&reference, deadline).await?;
    }
    Ok(())
}

async fn in_namespace(
    place: &Cluster,
    template: &Value,
    args: &CheckArgs,
) -> anyhow::Result<Vec<Finding>> {
    let mut nodes = Vec::new();
    for node in place.list(Kind::NODE, None, &ListParams::default()).await? {
        let name = node.metadata.name.clone().unwrap_or_default();
        if node.data["status"]["nodeInfo"]["operatingSystem"] != "linux" {
            continue;
        }
        let pod = check_pod(template, &place.namespace, &name, args.image.as_deref());
        place.apply(&pod, Apply::Really).await?;
        nodes.push(name);
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout_seconds);
    let pods: Api<Pod> = Api::namespaced(place.client.clone(), &place.namespace);
    let mut findings = Vec::new();
    let mut addresses = BTreeMap::new();
    for node in &nodes {
        match of_node(&pods, node, deadline).await? {
            Said::All { said, address } => {
                findings.extend(said);
                addresses.extend(address.map(|address| (node.clone(), address)));
            }
            Said::TooLate(why) => findings.push(Finding::failure(
                "node",
                node,
                format!("its check did not answer: {why}"),
                format!(
                    "kubectl -n {} describe pod {}",
                    place.namespace,
                    pod_name(node)
                ),
            )),
        }
    }
    findings.extend(paths::look(&pods, &addresses).await?);
    Ok(findings)
}

pub(super) fn pod_name(node: &str) -> String {
    format!("{NAME}-{node}")
}

/// The agents' pod, told to look and to answer on port 15008.
fn check_pod(template: &Value, namespace: &str, node: &str, image: Option<&str>) -> Value {
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(node);
    spec["restartPolicy"] = json!("Never");
    spec["terminationGracePeriodSeconds"] = json!(1);
    // Needs no account, and where nothing is installed there is none.
    for field in ["serviceAccountName", "priorityClassName"] {
        spec.as_object_mut().map(|fields| fields.remove(field));
    }
    let without = |list: &Value| -> Value {
        let kept = list.as_array().into_iter().flatten();
        kept.filter(|entry| {
            !["token", "root-cert"]
                .iter()
                .any(|name| entry["name"] == *name)
        })
        .cloned()
        .collect()
    };
    spec["volumes"] = without(&spec["volumes"]);
    if let Some(container) = spec["containers"].get_mut(0) {
        container["volumeMounts"] = without(&container["volumeMounts"]);
        if let Some(args) = container["args"].as_array_mut() {
            args.push(json!("--node-check"));
        }
        if let Some(image) = image {
            container["image"] = json!(image);
        }
        if let Some(fields) = container.as_object_mut() {
            for field in [
                "readinessProbe",
                "livenessProbe",
                "startupProbe",
                "lifecycle",
                "ports",
                "resources",
            ] {
                fields.remove(field);
            }
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(node),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": NAME,
                "app.kubernetes.io/part-of": "karst",
                "istio.io/dataplane-mode": "none",
            },
        },
        "spec": spec,
    })
}

/// What came from a node.
enum Said {
    All {
        said: Vec<Finding>,
        address: Option<String>,
    },
    TooLate(String),
}

async fn of_node(pods: &Api<Pod>, node: &str, deadline: Instant) -> anyhow::Result<Said> {
    let name = pod_name(node);
    let mut why;
    loop {
        let pod = pods.get_opt(&name).await?;
        let status = pod.and_then(|pod| pod.status).unwrap_or_default();
        let phase = status.phase.clone().unwrap_or_default();
        let log = match phase.as_str() {
            "Running" | "Succeeded" | "Failed" => pods
                .logs(&name, &LogParams::default())
                .await
                .unwrap_or_default(),
            _ => String::new(),
        };
        let said = findings_of(&log, node);
        if said.iter().any(|finding| finding.check == LAST) {
            return Ok(Said::All {
                said: said
                    .into_iter()
                    .filter(|finding| finding.check != LAST)
                    .collect(),
                address: status.pod_ip,
            });
        }
        let waiting = status
            .container_statuses
            .unwrap_or_default()
            .into_iter()
            .find_map(|container| {
                let waiting = container.state?.waiting?;
                waiting.message.or(waiting.reason)
            });
        why = waiting.unwrap_or_else(|| match phase.as_str() {
            "Failed" => log
                .lines()
                .last()
                .unwrap_or("it ended without a word")
                .to_owned(),
            other => format!("the pod is {other}"),
        });
        if Instant::now() > deadline || phase == "Failed" {
            return Ok(Said::TooLate(why));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The findings among the lines of a log.
pub(super) fn findings_of(log: &str, subject: &str) -> Vec<Finding> {
    let parsed = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Finding>(line).ok());
    parsed
        .map(|finding| Finding {
            subject: subject.to_owned(),
            ..finding
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_s_pod_has_the_agent_s_mounts_and_no_credentials() {
        let template = template_of_chart("karst-system").unwrap();
        let pod = check_pod(&template, NAME, "n1", Some("x/agent:1"));
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["image"], "x/agent:1");
        assert_eq!(
            container["args"].as_array().unwrap().last(),
            Some(&json!("--node-check"))
        );
        assert!(pod["spec"].get("serviceAccountName").is_none());
        assert!(!pod.to_string().contains("serviceAccountToken"));
        assert_eq!(
            container["securityContext"],
            template["spec"]["containers"][0]["securityContext"]
        );
    }

    #[test]
    fn other_lines_in_the_log_are_passed_over() {
        let log = "starting\n{\"check\":\"bpffs\",\"verdict\":\"fine\",\"message\":\"m\",\"fix\":\"\"}\n{}";
        let findings = findings_of(log, "n1");
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].subject, "n1");
    }
}
