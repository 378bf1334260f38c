//! `karst enroll` and `karst unenroll`: set the label, wait until it holds, say what happened.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Kind, told},
    output,
    reads::{ReaderArgs, Reads},
};

/// The label that namespaces and pods are enrolled by.
const LABEL: &str = "istio.io/dataplane-mode";
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EnrollArgs {
    /// Namespaces: ns/NAME, or NAME
    #[arg(required = true, value_name = "ns/NAME")]
    namespaces: Vec<String>,
    #[command(flatten)]
    reader: ReaderArgs,
    /// Seconds to wait until every pod is in, or out
    #[arg(long, default_value_t = 60)]
    timeout_seconds: u64,
}

/// Into the mesh, or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Enroll,
    Unenroll,
}

/// Enrols or releases namespaces, one after the other.
pub(crate) async fn run(
    cluster: &Cluster,
    args: &EnrollArgs,
    direction: Direction,
) -> anyhow::Result<()> {
    let reads = Reads::open(cluster, &args.reader).await?;
    for name in &args.namespaces {
        let namespace = match name.split_once('/') {
            None => name.as_str(),
            Some(("ns" | "namespace", namespace)) => namespace,
            Some(_) => bail!("{name}: expected ns/NAME"),
        };
        one(cluster, &reads, namespace, args.timeout_seconds, direction).await?;
    }
    Ok(())
}

async fn one(
    cluster: &Cluster,
    reads: &Reads<'_>,
    namespace: &str,
    timeout_seconds: u64,
    direction: Direction,
) -> anyhow::Result<()> {
    let before = pods_of(cluster, namespace).await?;
    let started = Instant::now();
    label(cluster, namespace, direction).await?;
    let deadline = started + Duration::from_secs(timeout_seconds);
    let mut waiting;
    loop {
        let pods = pods_of(cluster, namespace).await?;
        // Of every replica: agents follow one each, and all must know.
        let workloads = reads.all("workloads", Some(namespace)).await?;
        waiting = unfinished(&pods, &workloads, direction);
        if waiting.is_empty() || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let elapsed = started.elapsed();
    let after = pods_of(cluster, namespace).await?;
    let told = Told {
        pods: after
            .iter()
            .filter(|pod| can_be_captured(pod, direction))
            .filter(|pod| !waiting.iter().any(|waits| waits == name(pod)))
            .count(),
        left_out: left_out(&after),
        restarts: restarts(&after, &before),
    };
    say(namespace, direction, elapsed, &told);
    if direction == Direction::Enroll {
        say_flows(reads, namespace).await?;
    }
    if !waiting.is_empty() {
        bail!(
            "{} pod(s) of {namespace} not {} after {timeout_seconds} s: {}. Look at: kubectl -n {namespace} get events, and the log of the agent on their node",
            waiting.len(),
            match direction {
                Direction::Enroll => "captured",
                Direction::Unenroll => "released",
            },
            waiting.join(", ")
        );
    }
    Ok(())
}

/// What is said at the end.
struct Told {
    pods: usize,
    left_out: Vec<String>,
    restarts: i64,
}

fn say(namespace: &str, direction: Direction, elapsed: Duration, told: &Told) {
    let done = match direction {
        Direction::Enroll => "in the mesh",
        Direction::Unenroll => "out of the mesh",
    };
    output::line(format!(
        "namespace {namespace}: {} pod(s) {done} after {:.1} s, {} restart(s)",
        told.pods,
        elapsed.as_secs_f32(),
        told.restarts
    ));
    for pod in &told.left_out {
        output::line(format!("  left alone: {pod}"));
    }
}

async fn say_flows(reads: &Reads<'_>, namespace: &str) -> anyhow::Result<()> {
    let connections = reads.all("connections", Some(namespace)).await?;
    let encrypted = connections
        .iter()
        .filter(|connection| connection["mutualTls"] == true)
        .count();
    output::line(match connections.len() {
        0 => "  flows: none opened since; connections that were open before stay as they are"
            .to_owned(),
        all => format!(
            "  flows: {encrypted} of {all} live connection(s) opened since are mutual TLS ({} %)",
            encrypted * 100 / all
        ),
    });
    Ok(())
}

async fn label(cluster: &Cluster, namespace: &str, direction: Direction) -> anyhow::Result<()> {
    let value = match direction {
        Direction::Enroll => json!("ambient"),
        Direction::Unenroll => Value::Null,
    };
    let patch = json!({"metadata": {"labels": {LABEL: value}}});
    cluster
        .objects(Kind::NAMESPACE, None)
        .patch(namespace, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(told)
        .with_context(|| format!("cannot label namespace {namespace}"))?;
    Ok(())
}

/// Pods that have not ended.
async fn pods_of(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let mut pods = cluster
        .list(Kind::POD, Some(namespace), &ListParams::default())
        .await?;
    pods.retain(|pod| {
        pod.data["status"]["phase"] == "Running" && pod.metadata.deletion_timestamp.is_none()
    });
    Ok(pods)
}

fn name(pod: &DynamicObject) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the label of the namespace decides over this pod.
fn can_be_captured(pod: &DynamicObject, direction: Direction) -> bool {
    let own = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(LABEL));
    let decided = match (direction, own.map(String::as_str)) {
        (_, None) => true,
        (Direction::Enroll, Some(mode)) => mode == "ambient",
        (Direction::Unenroll, Some(mode)) => mode != "ambient",
    };
    decided && pod.data["spec"]["hostNetwork"] != true
}

fn left_out(pods: &[DynamicObject]) -> Vec<String> {
    let why = |pod: &DynamicObject| {
        if pod.data["spec"]["hostNetwork"] == true {
            return Some(format!("{} (uses the host's network)", name(pod)));
        }
        let mode = pod.metadata.labels.as_ref()?.get(LABEL)?;
        Some(format!("{} (its own label says {LABEL}={mode})", name(pod)))
    };
    pods.iter().filter_map(why).collect()
}

/// Pods whose workload does not say yet what it is to say.
fn unfinished(pods: &[DynamicObject], workloads: &[Value], direction: Direction) -> Vec<String> {
    let wanted = match direction {
        Direction::Enroll => "HBONE",
        Direction::Unenroll => "TCP",
    };
    let is_done = |pod: &DynamicObject| {
        let mut said = workloads
            .iter()
            .filter(|workload| workload["name"] == name(pod))
            .peekable();
        said.peek().is_some() && said.all(|workload| workload["protocol"] == wanted)
    };
    let concerned = pods.iter().filter(|pod| can_be_captured(pod, direction));
    concerned
        .filter(|pod| !is_done(pod))
        .map(|pod| name(pod).to_owned())
        .collect()
}

/// Containers restarted since `before`, in pods that were there.
fn restarts(after: &[DynamicObject], before: &[DynamicObject]) -> i64 {
    let count = |pod: &DynamicObject| -> i64 {
        let containers = pod.data["status"]["containerStatuses"].as_array();
        containers
            .into_iter()
            .flatten()
            .filter_map(|status| status["restartCount"].as_i64())
            .sum()
    };
    let before: BTreeMap<&str, i64> = before.iter().map(|pod| (name(pod), count(pod))).collect();
    let more = after
        .iter()
        .filter_map(|pod| Some(count(pod) - before.get(name(pod))?));
    more.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, spec: Value, labels: Value, restarts: i64) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
            "status": {"phase": "Running", "containerStatuses": [{"restartCount": restarts}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_counts_once_its_workload_says_so() {
        let pods = [
            pod("a", json!({}), json!({}), 0),
            pod("b", json!({"hostNetwork": true}), json!({}), 0),
        ];
        let workloads = [json!({"name": "a", "protocol": "TCP"})];
        assert_eq!(unfinished(&pods, &workloads, Direction::Enroll), ["a"]);
        let two = [
            json!({"name": "a", "protocol": "HBONE"}),
            json!({"name": "a", "protocol": "TCP"}),
        ];
        assert_eq!(
            unfinished(&pods, &two, Direction::Enroll),
            ["a"],
            "one replica does not know yet"
        );
        assert!(unfinished(&pods, &two[..1], Direction::Enroll).is_empty());
        assert!(unfinished(&pods, &workloads, Direction::Unenroll).is_empty());
        assert_eq!(unfinished(&pods, &[], Direction::Enroll), ["a"]);
        assert_eq!(left_out(&pods), ["b (uses the host's network)"]);
    }

    #[test]
    fn a_pod_s_own_label_wins() {
        let out = pod("a", json!({}), json!({LABEL: "none"}), 0);
        assert!(!can_be_captured(&out, Direction::Enroll));
        let stays = pod("b", json!({}), json!({LABEL: "ambient"}), 0);
        assert!(!can_be_captured(&stays, Direction::Unenroll));
    }

    #[test]
    fn restarts_are_counted_in_pods_that_were_there() {
        let before = [pod("a", json!({}), json!({}), 3)];
        let after = [
            pod("a", json!({}), json!({}), 4),
            pod("new", json!({}), json!({}), 7),
        ];
        assert_eq!(restarts(&after, &before), 1);
    }
}
