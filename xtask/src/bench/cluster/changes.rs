//! P13, P14 and P16: from a change at the API server to what it does.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    super::{ECHO_PORT, MESHED, PLAIN, Pair, Site, report::Row},
    api::{Api, Body},
    link::Tunnels,
    pods::{CLIENT_NODE, Pods, pod},
};
use crate::{cluster::Cluster, lab::Pod, load::Attempt, shell};

/// How often P13 labels and unlabels, and P14 denies and allows.
const TIMES: usize = 10;
/// Longest wait for one change to be in force.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long tunnels are silent once a pod has left the mesh.
const SILENCE: Duration = Duration::from_secs(1);
/// Between two connections of the client that watches.
const PACE_MS: u64 = 2;

pub(super) fn rows(cluster: &Cluster, pods: &Pods, rounds: usize) -> Result<Vec<Row>> {
    let api = Api::start(cluster.kubectl()())?;
    let (captured, failed) = enrolment(&api, cluster, pods)?;
    let mut rows = vec![
        Row::alone(
            "P13",
            "label to first captured connection, p50",
            "ms",
            middle(&captured),
        ),
        Row::alone(
            "P13b",
            "the same, slowest",
            "ms",
            captured.iter().copied().fold(0.0, f64::max),
        ),
        Row::alone(
            "P13c",
            "connections of running clients that failed meanwhile",
            "of all",
            failed,
        ),
    ];
    let refused = denial(&api, pods)?;
    rows.push(Row::alone(
        "P14",
        "policy to first refused connection, p50",
        "ms",
        middle(&refused),
    ));
    rows.push(start_of_pods(&api, rounds)?);
    Ok(rows)
}

fn middle(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A client that connects all the time and says how each attempt went.
struct Watcher {
    child: Child,
    attempts: std::sync::mpsc::Receiver<Attempt>,
    seen: Vec<Attempt>,
}

impl Watcher {
    fn start(site: &dyn Site, pair: Pair) -> Result<Self> {
        let target = std::net::SocketAddr::new(site.address(pair.server)?, ECHO_PORT).to_string();
        let this = std::env::current_exe().context("finding this program")?;
        let pace = PACE_MS.to_string();
        let words = [
            &*this.to_string_lossy(),
            "load",
            "watch",
            &target,
            "--pace-ms",
            &pace,
            "--seconds",
            "600",
        ];
        let mut child = site
            .inside(pair.client, &words)?
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the load")?;
        let lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
        let (tell, attempts) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(attempt) = serde_json::from_str::<Attempt>(&line) else {
                    continue;
                };
                if tell.send(attempt).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            attempts,
            seen: Vec::new(),
        })
    }

    /// The first attempt begun after `since` that is as `wanted`.
    fn first(&mut self, since: SystemTime, wanted: impl Fn(&Attempt) -> bool) -> Result<Attempt> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let attempt = self
                .attempts
                .recv_timeout(left)
                .context("the change did not come into force")?;
            self.seen.push(attempt);
            if attempt.begun() >= since && wanted(&attempt) {
                return Ok(attempt);
            }
        }
    }

    /// All attempts so far, and how many of them failed.
    fn count(&mut self) -> (usize, usize) {
        self.seen.extend(self.attempts.try_iter());
        let failed = self.seen.iter().filter(|attempt| !attempt.answered);
        (self.seen.len(), failed.count())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Labels the namespace of running pods; the time until the node's link carries their first tunnel, and the share of
/// connections that failed over all rounds.
fn enrolment(api: &Api, cluster: &Cluster, pods: &Pods) -> Result<(Vec<f64>, f64)> {
    let path = format!("/api/v1/namespaces/{}", MESHED.client.namespace);
    let label = |mode: Value| {
        let patch = json!({"metadata": {"labels": {"istio.io/dataplane-mode": mode}}});
        api.call("PATCH", &path, &Body::MergePatch(&patch))
    };
    label(Value::Null)?;
    let mut watcher = Watcher::start(pods, MESHED)?;
    let tunnels = Tunnels::listen(cluster, CLIENT_NODE, pods.address(MESHED.client)?)?;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        // Out of the mesh again: its connections are plain, and the tunnels fall silent.
        tunnels.wait_for_silence(SILENCE)?;
        let start = SystemTime::now();
        label(json!("ambient"))?;
        let at = tunnels.next(PATIENCE)?;
        times.push(ms(at.duration_since(start).unwrap_or_default()));
        watcher.first(SystemTime::now(), |attempt| attempt.answered)?;
        label(Value::Null)?;
    }
    // What is measured next begins inside the mesh.
    tunnels.wait_for_silence(SILENCE)?;
    label(json!("ambient"))?;
    tunnels.next(PATIENCE)?;
    let (all, failed) = watcher.count();
    Ok((times, failed as f64 / all.max(1) as f64))
}

/// A policy that denies the client comes and goes.
fn denial(api: &Api, pods: &Pods) -> Result<Vec<f64>> {
    let folder = format!(
        "/apis/security.istio.io/v1/namespaces/{}/authorizationpolicies",
        MESHED.client.namespace
    );
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "bench"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [ECHO_PORT.to_string()]}}]}]},
    });
    let mut watcher = Watcher::start(pods, MESHED)?;
    watcher.first(SystemTime::now(), |attempt| attempt.answered)?;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let start = SystemTime::now();
        api.call("POST", &folder, &Body::Json(&policy))?;
        let refused = watcher.first(start, |attempt| !attempt.answered)?;
        times.push(ms(refused
            .begun()
            .duration_since(start)
            .unwrap_or_default()));
        api.call("DELETE", &format!("{folder}/bench"), &Body::None)?;
        watcher.first(SystemTime::now(), |attempt| attempt.answered)?;
    }
    Ok(times)
}

/// P16: from the creation of a pod to its readiness, in the mesh and outside, in turns.
fn start_of_pods(api: &Api, rounds: usize) -> Result<Row> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(3) * 2 {
        outside.push(start_one(api, PLAIN.client.namespace)?);
        inside.push(start_one(api, MESHED.client.namespace)?);
    }
    Ok(Row::timed(
        "P16",
        "pod created to ready, p50",
        "ms",
        middle(&inside),
        middle(&outside),
    ))
}

fn start_one(api: &Api, namespace: &'static str) -> Result<f64> {
    let name = "started";
    let folder = format!("/api/v1/namespaces/{namespace}/pods");
    let mut object = pod(Pod { namespace, name }, CLIENT_NODE);
    // A probe once a second would make every difference a whole second.
    object["spec"]["containers"][0]["readinessProbe"] = Value::Null;
    let start = Instant::now();
    api.call("POST", &folder, &Body::Json(&object))?;
    let watch = format!("{folder}?watch=1&fieldSelector=metadata.name={name}&timeoutSeconds=60");
    let mut ready = None;
    api.watch(&watch, |event| {
        let conditions = event["object"]["status"]["conditions"].as_array();
        let is_ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        if is_ready {
            ready = Some(start.elapsed());
        }
        is_ready
    })?;
    api.call("DELETE", &format!("{folder}/{name}"), &Body::None)?;
    shell::wait_for("the pod is gone", PATIENCE, || {
        let gone = api.call("GET", &format!("{folder}/{name}"), &Body::None);
        gone.is_err().then_some(())
    })?;
    match ready {
        Some(time) => Ok(ms(time)),
        None => bail!("pod {namespace}/{name} did not become ready"),
    }
}
