//! No agent runs on any node: pods of the mesh wait and say for whom, all others start. No controller runs: a pod of which
//! nobody knows whether it belongs to the mesh waits, and says for whom. Both end, and agents come back alone: pods that ran
//! go on, under policy.

use std::collections::BTreeMap;

use karst_test_cluster::{
    Cluster, ControllersAway, Namespace, Pair, cluster::run, eventually, until,
};
use serde_json::Value;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: POD}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

fn pod(name: &str) -> String {
    POD.replace("POD", name)
}

/// The agents are on no node until this is dropped.
struct AgentsAway<'a>(&'a Cluster);

impl<'a> AgentsAway<'a> {
    fn send(cluster: &'a Cluster) -> Self {
        let away = Self(cluster);
        away.patch(r#"{"spec":{"template":{"spec":{"nodeSelector":{"agents":"away"}}}}}"#);
        eventually("every agent has ended", || {
            let pods = [
                "-n",
                "karst-system",
                "pods",
                "-l",
                "app.kubernetes.io/name=karst-agent",
            ];
            let pods = cluster.object(&pods);
            pods["items"].as_array().is_some_and(Vec::is_empty)
        });
        away
    }

    fn patch(&self, patch: &str) {
        let mut kubectl = self.0.kubectl();
        run(kubectl.args([
            "-n",
            "karst-system",
            "patch",
            "daemonset",
            "karst-agent",
            "-p",
            patch,
        ]));
    }
}

impl Drop for AgentsAway<'_> {
    fn drop(&mut self) {
        self.patch(r#"{"spec":{"template":{"spec":{"nodeSelector":{"agents":null}}}}}"#);
    }
}

#[test]
fn while_agents_are_away_pods_of_the_mesh_wait_and_all_others_start() {
    let cluster = Cluster::get();
    let (shop, street) = (Namespace::new("away-shop"), Namespace::new("away-street"));
    for namespace in [&shop, &street] {
        namespace.apply(&pod("before"));
        cluster.wait_ready(namespace.name());
    }
    shop.label();
    shop.wait_enrolled();

    let away = AgentsAway::send(cluster);
    street.apply(&pod("after"));
    cluster.wait_ready(street.name());
    shop.apply(&pod("after"));
    let why = why_it_waits(cluster, shop.name(), "after");
    assert!(
        why.contains("the karst agent of this node") && why.contains(shop.name()),
        "{why}"
    );
    let waiting = cluster.object(&["-n", shop.name(), "pod", "after"]);
    assert_eq!(waiting["status"]["phase"], "Pending");

    drop(away);
    cluster.wait_ready(shop.name());
    shop.wait_enrolled();
}

/// What the kubelet says of a pod that gets no sandbox.
fn why_it_waits(cluster: &Cluster, namespace: &str, pod: &str) -> String {
    until("the waiting pod says why", || {
        let mut events = cluster.kubectl();
        let about = format!("involvedObject.name={pod},reason=FailedCreatePodSandBox");
        events.args(["-n", namespace, "get", "events", "--field-selector", &about]);
        events.args(["-o", "jsonpath={.items[*].message}"]);
        let said = String::from_utf8_lossy(&run(&mut events).stdout).into_owned();
        (!said.is_empty()).then_some(said)
    })
}

#[test]
fn while_controllers_are_away_a_new_pod_waits_and_those_that_run_go_on() {
    let cluster = Cluster::get();
    let shop = Namespace::new("away-controllers");
    shop.apply(&pod("before"));
    cluster.wait_ready(shop.name());
    shop.label();
    shop.wait_enrolled();

    let away = ControllersAway::send(cluster);
    shop.apply(&pod("after"));
    let why = why_it_waits(cluster, shop.name(), "after");
    assert!(
        why.contains("the controller has not told this node's agent"),
        "{why}"
    );
    let waiting = cluster.object(&["-n", shop.name(), "pod", "after"]);
    assert_eq!(waiting["status"]["phase"], "Pending");
    let name = "kubernetes.default.svc.cluster.local";
    let lookup = cluster.exec("away-controllers/before", &["nslookup", name]);
    assert!(lookup.status.success(), "{lookup:?}");

    drop(away);
    cluster.wait_ready(shop.name());
    shop.wait_enrolled();
}

/// Its kubelet starts it anew, and it takes over what its predecessor has left on the node.
#[test]
fn agents_killed_while_controllers_are_away_serve_the_pods_that_ran() {
    let cluster = Cluster::get();
    let pair = Pair::open("away-both");
    let lives = cluster.lives("away-both");
    let away = ControllersAway::send(cluster);
    let load = pair.load(50);
    let before = agents(cluster);
    for node in ["n1", "n2"] {
        let kill = ["pkill", "-KILL", "-x", "karst-agent"];
        run(cluster.node(node).args(kill));
    }
    eventually("every agent was started anew", || {
        let after = agents(cluster);
        let again = |(node, restarts): (&String, &u64)| after.get(node) > Some(restarts);
        before.iter().all(again)
    });
    eventually("the client is served", || pair.reaches("client"));
    assert!(!pair.reaches("stranger"), "the policy is gone");
    println!("agents killed without a controller: {}", load.stop(cluster));
    assert_eq!(cluster.lives("away-both"), lives, "pods restarted");
    pair.namespace.apply(&pod("after"));
    let why = why_it_waits(cluster, "away-both", "after");
    assert!(
        why.contains("the controller has not told this node's agent"),
        "{why}"
    );
    drop(away);
    cluster.wait_ready("away-both");
    pair.expect_changes();
}

/// How often the agent of each node was started anew.
fn agents(cluster: &Cluster) -> BTreeMap<String, u64> {
    let label = "app.kubernetes.io/name=karst-agent";
    let pods = cluster.object(&["-n", "karst-system", "pods", "-l", label]);
    let pods = pods["items"].as_array().into_iter().flatten();
    let count = |pod: &Value| {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        (node.to_owned(), restarts.as_u64().unwrap_or_default())
    };
    pods.map(count).collect()
}
