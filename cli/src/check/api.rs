//! What the API server tells about itself, about us, about the nodes' kernels and clocks.

use anyhow::Context as _;
use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};

use super::Finding;
use crate::cluster::{Cluster, Kind};

/// The oldest Kubernetes that this was made for: 1.30 has ValidatingAdmissionPolicy and bound-node token claims behind it.
const MINOR_MIN: u32 = 30;
/// The oldest kernel: sk_lookup, socket storage in cgroup programs and netns cookies are all there.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// Certificates start ten minutes in the past; beyond half of it we warn.
const SKEW_SECONDS_MAX: i64 = 300;
const SKEW_SECONDS_WARN: i64 = 30;

pub(super) async fn look(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let mut findings = vec![version(cluster).await?];
    findings.extend(permissions(cluster).await?);
    findings.extend(seen("pod-security", pod_security(cluster).await));
    findings.extend(seen("kernel-version", kernels(cluster).await));
    findings.extend(seen("clock", clocks(cluster).await));
    Ok(findings)
}

/// What cannot be looked at is a finding too.
pub(super) fn seen(check: &str, findings: anyhow::Result<Vec<Finding>>) -> Vec<Finding> {
    findings.unwrap_or_else(|error| {
        vec![Finding::failure(
            check,
            "",
            format!("cannot be looked at: {error:#}"),
            "let this user read nodes, namespaces, workloads, webhooks and leases, or use one bound to cluster-admin",
        )]
    })
}

async fn version(cluster: &Cluster) -> anyhow::Result<Finding> {
    let version = cluster.client.apiserver_version().await?;
    let minor = version.minor.trim_end_matches('+').parse().unwrap_or(0);
    Ok(match minor >= MINOR_MIN {
        true => Finding::fine("kubernetes-version", "", version.git_version),
        false => Finding::failure(
            "kubernetes-version",
            "",
            format!("{} is older than 1.{MINOR_MIN}", version.git_version),
            format!("upgrade the cluster to Kubernetes 1.{MINOR_MIN} or newer"),
        ),
    })
}

/// What an installation must be allowed to make: group, resource.
const NEEDED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "configmaps"),
    ("", "services"),
    ("", "pods"),
    ("apps", "deployments"),
    ("apps", "daemonsets"),
    ("policy", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
    ),
];

async fn permissions(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let reviews = cluster.objects(Kind::ACCESS_REVIEW, None);
    let mut missing = Vec::new();
    for (group, resource) in NEEDED {
        for verb in ["create", "patch", "delete"] {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "metadata": {},
                "spec": {"resourceAttributes": {"group": group, "resource": resource, "verb": verb, "namespace": cluster.namespace}},
            });
            let review: DynamicObject = serde_json::from_value(review)?;
            let answer = reviews
                .create(&PostParams::default(), &review)
                .await
                .context("cannot ask what this user may do (SelfSubjectAccessReview)")?;
            if answer.data["status"]["allowed"] != true {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok(vec![match missing.is_empty() {
        true => Finding::fine("permissions", "", "this user may install and uninstall"),
        false => Finding::failure(
            "permissions",
            "",
            format!("this user may not: {}", missing.join(", ")),
            "bind this user to a ClusterRole with these verbs, or use a user bound to cluster-admin",
        ),
    }])
}

/// Agents are privileged; a namespace that enforces less refuses their pods.
async fn pod_security(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    const LABEL: &str = "pod-security.kubernetes.io/enforce";
    let name = &cluster.namespace;
    let namespace = cluster.get(Kind::NAMESPACE, None, name).await?;
    let Some(namespace) = namespace else {
        return Ok(vec![Finding::fine(
            "pod-security",
            name,
            "the namespace will be made with the right labels",
        )]);
    };
    let labels = namespace.metadata.labels.unwrap_or_default();
    Ok(vec![match labels.get(LABEL).map(String::as_str) {
        None | Some("privileged") => {
            Finding::fine("pod-security", name, "privileged pods are admitted")
        }
        Some(level) => Finding::failure(
            "pod-security",
            name,
            format!("level {level} is enforced, which refuses the agents' pods"),
            format!("kubectl label --overwrite namespace {name} {LABEL}=privileged"),
        ),
    }])
}

async fn kernels(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let nodes = cluster
        .list(Kind::NODE, None, &ListParams::default())
        .await?;
    let nodes = nodes
        .iter()
        .filter(|node| node.data["status"]["nodeInfo"]["operatingSystem"] == "linux");
    Ok(nodes
        .map(|node| {
            kernel(
                node.metadata.name.as_deref().unwrap_or_default(),
                &node.data,
            )
        })
        .collect())
}

fn kernel(name: &str, node: &Value) -> Finding {
    let version = node["status"]["nodeInfo"]["kernelVersion"]
        .as_str()
        .unwrap_or_default();
    let mut numbers = version
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match (major, minor) >= KERNEL_MIN {
        true => Finding::fine("kernel-version", name, version),
        false => Finding::failure(
            "kernel-version",
            name,
            format!(
                "Linux {version} is older than {}.{}",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            "boot this node with a newer kernel, or keep agents off it by agent.nodeSelector",
        ),
    }
}

/// A node's lease holds its own time, and beside it, in managedFields, the API server's time of the same write.
async fn clocks(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let leases = cluster
        .list(Kind::LEASE, Some("kube-node-lease"), &ListParams::default())
        .await?;
    let mut findings = Vec::new();
    for lease in &leases {
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        if let Some(seconds) = skew(&serde_json::to_value(lease)?) {
            findings.push(clock(name, seconds));
        }
    }
    Ok(findings)
}

/// Seconds that the node is ahead of the API server.
fn skew(lease: &Value) -> Option<i64> {
    let node: Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
    let writes = lease["metadata"]["managedFields"].as_array()?;
    let server = writes
        .iter()
        .filter_map(|write| write["time"].as_str()?.parse::<Timestamp>().ok());
    Some(node.as_second() - server.max()?.as_second())
}

fn clock(node: &str, seconds: i64) -> Finding {
    let told = match seconds {
        0.. => format!("{seconds} s ahead of the API server"),
        _ => format!("{} s behind the API server", -seconds),
    };
    let fix = "start a time service (chrony, systemd-timesyncd) on this node";
    match seconds.abs() {
        ..SKEW_SECONDS_WARN => Finding::fine("clock", node, "agrees with the API server's"),
        SKEW_SECONDS_WARN..SKEW_SECONDS_MAX => Finding::warning("clock", node, told, fix),
        _ => Finding::failure(
            "clock",
            node,
            format!("{told}: certificates would look not yet valid, or ended"),
            fix,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        let verdict = |version: &str| {
            kernel(
                "n",
                &json!({"status": {"nodeInfo": {"kernelVersion": version}}}),
            )
            .is_fine()
        };
        assert!(verdict("6.18.0-generic"));
        assert!(verdict("5.15.167.4-microsoft-standard-WSL2"));
        assert!(!verdict("5.14.21"));
        assert!(!verdict("4.18.0-553.el8"));
        assert!(!verdict(""));
    }

    #[test]
    fn a_node_s_clock_is_compared_with_the_api_server_s() {
        let lease = json!({
            "metadata": {"managedFields": [{"time": "2026-01-01T00:00:00Z"}]},
            "spec": {"renewTime": "2026-01-01T00:10:00.123456Z"},
        });
        assert_eq!(skew(&lease), Some(600));
        assert!(clock("n", 600).is_failure());
        assert!(clock("n", -600).is_failure());
        assert!(clock("n", 1).is_fine());
        assert!(!clock("n", 60).is_fine());
    }
}
