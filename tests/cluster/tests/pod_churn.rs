//! Pods come, go and die at random, five hundred times, or two thousand in `soak`; then the mesh knows exactly the pods that the API server knows,
//! and the nodes have kept nothing of those that are gone.

use std::collections::{BTreeMap, BTreeSet};

use karst_test_cluster::{Cluster, Namespace, cluster::run, until};
use serde_json::{Value, json};

/// How much happens between two calls of kubectl.
const BATCH: u32 = 25;
/// Pods at once.
const PODS_MAX: usize = 40;
/// Chooses what happens; printed, and set to repeat a run.
const SEED_VARIABLE: &str = "KARST_CHURN_SEED";
const NODES: [&str; 2] = ["n1", "n2"];

/// Numbers that look random: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("less than bound")
    }
}

/// What happens between two calls.
#[derive(Default)]
struct Batch {
    add: BTreeSet<String>,
    delete: BTreeSet<String>,
    kill: BTreeSet<String>,
}

struct Churn<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    dice: Dice,
    alive: BTreeSet<String>,
    named: u32,
}

impl Churn<'_> {
    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            let touched = batch.delete.len() + batch.kill.len() + batch.add.len();
            let old: Vec<_> = self.alive.difference(&batch.add).cloned().collect();
            let what = self.dice.below(10);
            if self.alive.len() < PODS_MAX && (what < 5 || old.is_empty()) {
                self.named += 1;
                let name = format!("pod-{}", self.named);
                self.alive.insert(name.clone());
                batch.add.insert(name);
            } else if what < 9 || touched == 0 {
                let gone = &old[self.dice.below(old.len())];
                self.alive.remove(gone);
                batch.kill.remove(gone);
                batch.delete.insert(gone.clone());
            } else {
                batch.kill.insert(old[self.dice.below(old.len())].clone());
            }
        }
        batch
    }

    /// The sandboxes are killed as by a crash; kubelets notice and start their pods anew, in other namespaces.
    fn play(&mut self, batch: &Batch) {
        let pods: Vec<_> = batch.add.iter().map(|name| self.pod(name)).collect();
        if !pods.is_empty() {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
            self.cluster.apply_in(self.namespace, &list.to_string());
        }
        if !batch.delete.is_empty() {
            let mut delete = self.cluster.kubectl();
            delete.args([
                "-n",
                self.namespace,
                "delete",
                "pod",
                "--wait=false",
                "--now",
            ]);
            run(delete.args(&batch.delete));
        }
        for (node, name) in batch
            .kill
            .iter()
            .flat_map(|name| NODES.map(|node| (node, name)))
        {
            let script = format!(
                "for one in $(ctr containers ls -q \
                 'labels.\"io.kubernetes.pod.name\"=={name},labels.\"io.cri-containerd.kind\"==sandbox'); \
                 do ctr tasks kill --signal SIGKILL $one; done"
            );
            // It may not be there, or not yet.
            let _ = self.cluster.node(node).args(["sh", "-c", &script]).output();
        }
    }

    fn pod(&mut self, name: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeName": NODES[self.dice.below(NODES.len())],
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "karst.test/busybox:1", "command": ["sleep", "infinity"]}],
            },
        })
    }
}

/// Node and addresses of each pod that runs.
type Known = BTreeMap<String, (String, BTreeSet<String>)>;

#[test]
fn after_five_hundred_events_the_mesh_knows_what_the_api_server_knows() {
    after(500);
}

#[test]
#[ignore = "soak: eight minutes"]
fn soak_after_two_thousand_events_the_mesh_knows_what_the_api_server_knows() {
    after(2000);
}

fn after(events: u32) {
    let cluster = Cluster::get();
    let given = std::env::var(SEED_VARIABLE).ok();
    let seed = given.map_or_else(
        || u64::from(std::process::id()) << 20 | 1,
        |seed| seed.parse().expect("a number"),
    );
    eprintln!("{SEED_VARIABLE}={seed}");
    let namespace = Namespace::new("churn");
    namespace.label();
    let mut churn = Churn {
        cluster,
        namespace: namespace.name(),
        dice: Dice(seed),
        alive: BTreeSet::new(),
        named: 0,
    };
    for _ in 0..events / BATCH {
        let batch = churn.batch();
        churn.play(&batch);
    }
    until("the pods that are left run", || {
        let running = running(cluster, namespace.name())?;
        (running.keys().eq(churn.alive.iter())).then_some(())
    });
    let equal = || -> Option<()> {
        let pods = running(cluster, namespace.name())?;
        let known = known(cluster, namespace.name())?;
        (pods == known && kept(cluster) == captured(&known)).then_some(())
    };
    until(
        "the mesh knows the pods that run, and nodes keep nothing else",
        equal,
    );
    eprintln!("{events} events, {} pods left", churn.alive.len());
}

/// Pods that are ready, and nothing while one is not or is going.
fn running(cluster: &Cluster, namespace: &str) -> Option<Known> {
    let pods = cluster.object(&["-n", namespace, "pods"]);
    let pods = pods["items"].as_array()?;
    let ready = |pod: &Value| {
        let containers = pod["status"]["containerStatuses"].as_array();
        let ready = containers.is_some_and(|all| all.iter().all(|one| one["ready"] == true));
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    if !pods.iter().all(ready) {
        return None;
    }
    let all = pods.iter().map(|pod| {
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses = addresses.map(|one| text(&one["ip"]));
        (
            text(&pod["metadata"]["name"]),
            (text(&pod["spec"]["nodeName"]), addresses.collect()),
        )
    });
    Some(all.collect())
}

/// What the mesh knows, and nothing while a pod is not in it.
fn known(cluster: &Cluster, namespace: &str) -> Option<Known> {
    let workloads = cluster.workloads(namespace)?;
    let within = workloads.iter().all(|one| one["protocol"] == "HBONE");
    let all = workloads.iter().map(|one| {
        let addresses = one["addresses"].as_array().into_iter().flatten().map(text);
        (
            text(&one["name"]),
            (text(&one["node"]), addresses.collect()),
        )
    });
    within.then(|| all.collect())
}

/// How many pods each node has, by the mesh.
fn captured(known: &Known) -> Vec<usize> {
    let on = |node: &str| known.values().filter(|(its, _)| its == node).count();
    NODES.map(on).to_vec()
}

/// How many pods each node's kernel still has programs for: pins of one kind, of which each captured pod has one.
fn kept(cluster: &Cluster) -> Vec<usize> {
    let pins = |node: &str| {
        let script = "ls /sys/fs/bpf/karst | grep -c ^guard_ || true";
        let said = run(cluster.node(node).args(["sh", "-c", script]));
        let count = String::from_utf8_lossy(&said.stdout).trim().parse();
        count.expect("a number")
    };
    NODES.map(pins).to_vec()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
