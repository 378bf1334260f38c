//! The pods that are measured: the same pair in a namespace that is in the mesh and in one that is not.

use std::{collections::HashMap, fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::super::{ECHO_PORT, MESHED, PLAIN, Site};
use super::HTTP_PORT;
use crate::{cluster::Cluster, lab::Pod, shell};

const IMAGE: &str = "karst.test/echo:1";
pub(super) const CLIENT_NODE: &str = "n1";
const SERVER_NODE: &str = "n2";

/// The pods, running.
pub(super) struct Pods {
    kubectl: Box<dyn Fn() -> Command>,
    places: HashMap<String, Place>,
}

/// Where a pod is on this machine.
struct Place {
    address: IpAddr,
    /// A process in its namespaces, as this machine numbers it.
    process: u32,
}

impl Pods {
    /// Makes namespaces and pods, puts one namespace into the mesh, and waits until all is ready.
    pub(super) fn start(cluster: &Cluster) -> Result<Self> {
        let kubectl = Box::new(cluster.kubectl());
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects()});
        shell::input(
            kubectl().args(["apply", "--server-side", "--filename", "-"]),
            &objects.to_string(),
        )?;
        for namespace in [MESHED.client.namespace, PLAIN.client.namespace] {
            shell::capture(kubectl().args([
                "wait",
                "--for=condition=Ready",
                "pod",
                "--all",
                "--timeout=120s",
                "--namespace",
                namespace,
            ]))?;
        }
        let mut pods = Self {
            kubectl,
            places: HashMap::new(),
        };
        for pod in [MESHED.client, MESHED.server, PLAIN.client, PLAIN.server] {
            let place = pods.find(pod)?;
            pods.places.insert(pod.path(), place);
        }
        Ok(pods)
    }

    fn find(&self, pod: Pod) -> Result<Place> {
        let said = shell::capture((self.kubectl)().args([
            "get",
            "pod",
            pod.name,
            "--namespace",
            pod.namespace,
            "--output",
            "json",
        ]))?;
        let object: Value = serde_json::from_str(&said)?;
        let uid = object["metadata"]["uid"]
            .as_str()
            .context("the pod has no uid")?;
        Ok(Place {
            address: object["status"]["podIP"]
                .as_str()
                .context("the pod has no address")?
                .parse()?,
            process: process_of(uid).with_context(|| format!("finding {}", pod.path()))?,
        })
    }

    /// Takes everything away again.
    pub(super) fn remove(&self) -> Result<()> {
        for namespace in [MESHED.client.namespace, PLAIN.client.namespace] {
            shell::capture((self.kubectl)().args(["delete", "namespace", namespace]))?;
        }
        Ok(())
    }
}

impl Site for Pods {
    fn inside(&self, pod: Pod, command: &[&str]) -> Result<Command> {
        let place = self.place(pod)?;
        let mut inside = Command::new("nsenter");
        inside
            .args(["--target", &place.process.to_string(), "--net", "--"])
            .args(command);
        Ok(inside)
    }

    fn address(&self, pod: Pod) -> Result<IpAddr> {
        self.place(pod).map(|place| place.address)
    }
}

impl Pods {
    fn place(&self, pod: Pod) -> Result<&Place> {
        self.places
            .get(&pod.path())
            .with_context(|| format!("{} is none of our pods", pod.path()))
    }
}

fn objects() -> Vec<Value> {
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let ambient = json!({"istio.io/dataplane-mode": "ambient"});
    let mut objects = vec![
        namespace(MESHED.client.namespace, ambient),
        namespace(PLAIN.client.namespace, json!({})),
    ];
    for pair in [MESHED, PLAIN] {
        objects.push(pod(pair.client, CLIENT_NODE));
        objects.push(pod(pair.server, SERVER_NODE));
    }
    objects
}

/// Clients serve too, so that one kind of pod is enough.
pub(super) fn pod(pod: Pod, node: &str) -> Value {
    let (echo, http) = (format!("echo:{ECHO_PORT}"), HTTP_PORT.to_string());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": {"app": pod.name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "echo",
                "image": IMAGE,
                "args": ["server", "--mode", echo, "--port", http],
                "readinessProbe": {
                    "tcpSocket": {"port": ECHO_PORT},
                    "periodSeconds": 1,
                },
            }],
        },
    })
}

/// A process of the pod, found by the cgroup that bears its UID.
fn process_of(uid: &str) -> Result<u32> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).copied())
        .context("no cgroup v2 is mounted")?;
    first_process(Path::new(root), uid, false)?
        .with_context(|| format!("no process runs in a cgroup of pod {uid}"))
}

fn first_process(folder: &Path, uid: &str, below: bool) -> Result<Option<u32>> {
    if below {
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        if let Some(process) = processes.lines().next() {
            return Ok(Some(process.parse()?));
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let ours = below || entry.file_name().to_string_lossy().contains(uid);
        if let Some(process) = first_process(&entry.path(), uid, ours)? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}
