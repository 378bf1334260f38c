//! A namespace that a test made and that goes when the test ends.

use serde_json::Value;

use crate::{
    Cluster,
    cluster::run,
    wait::{eventually, until},
};

/// The label that puts a namespace into the mesh.
const MODE: &str = "istio.io/dataplane-mode";

/// Pods made for a Gateway have it.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// A namespace of a test's own.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, outside the mesh; one of that name that an earlier run left goes first.
    pub fn new(name: &str) -> Self {
        let cluster = Cluster::get();
        let mut delete = cluster.kubectl();
        run(delete.args(["delete", "namespace", name, "--ignore-not-found"]));
        run(cluster.kubectl().args(["create", "namespace", name]));
        // Pods are refused until the namespace has its default account.
        until("the namespace has a service account", || {
            let mut get = cluster.kubectl();
            get.args(["-n", name, "get", "serviceaccount", "default"]);
            let found = get.output().ok()?;
            found.status.success().then_some(())
        });
        Self {
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Applies YAML whose objects name no namespace.
    pub fn apply(&self, yaml: &str) {
        Cluster::get().apply_in(&self.name, yaml);
    }

    /// Sets the label; the mesh's answer is awaited by [`Self::wait_enrolled`].
    pub fn label(&self) {
        self.set(&format!("{MODE}=ambient"));
    }

    /// Takes the label away.
    pub fn unlabel(&self) {
        self.set(&format!("{MODE}-"));
    }

    fn set(&self, label: &str) {
        let mut set = Cluster::get().kubectl();
        run(set.args(["label", "--overwrite", "namespace", &self.name, label]));
    }

    /// Waits until `karst` says that every pod is reached by HBONE.
    pub fn wait_enrolled(&self) {
        self.wait_for_protocol("HBONE");
    }

    /// Waits until `karst` says that no pod is.
    pub fn wait_released(&self) {
        self.wait_for_protocol("TCP");
    }

    /// Its pods are those that the mesh has addresses of; waypoints, which are never captured, do not count.
    fn wait_for_protocol(&self, protocol: &str) {
        let what = format!("all pods of {} speak {protocol}", self.name);
        eventually(&what, || {
            let cluster = Cluster::get();
            let waypoints = cluster.object(&["pods", "-n", &self.name, "-l", GATEWAY]);
            let is_waypoint = |one: &Value| {
                let mut waypoints = waypoints["items"].as_array().into_iter().flatten();
                waypoints.any(|pod| pod["metadata"]["name"] == one["name"])
            };
            let mut workloads = cluster.workloads(&self.name).unwrap_or_default();
            workloads.retain(|one| !is_waypoint(one));
            !workloads.is_empty() && workloads.iter().all(|one| one["protocol"] == protocol)
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report();
        }
        let mut delete = Cluster::get().kubectl();
        delete.args(["delete", "namespace", &self.name, "--wait=false"]);
        let _ = delete.output();
    }
}

impl Namespace {
    /// What the namespace and the mesh look like, beside a test's failure.
    fn report(&self) {
        let cluster = Cluster::get();
        let mut pods = cluster.kubectl();
        pods.args(["-n", &self.name, "get", "pods,events", "-o", "wide"]);
        let mut agents = cluster.kubectl();
        agents.args([
            "-n",
            "karst-system",
            "logs",
            "--tail=60",
            "--prefix",
            "--all-containers",
        ]);
        agents.args([
            "--max-log-requests=20",
            "-l",
            "app.kubernetes.io/part-of=karst",
        ]);
        for command in [&mut pods, &mut agents] {
            if let Ok(said) = command.output() {
                eprintln!("{}", String::from_utf8_lossy(&said.stdout));
            }
        }
    }
}
