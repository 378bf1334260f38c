//! Every agent is replaced under load: new connections wait rather than fail, and those that an agent carried are lost
//! with it at the end of its drain, no other.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use karst_test_cluster::{
    Amount, Cluster, ControllersAway, Load, Namespace, cluster::run, eventually,
    pair::server_and_client,
};
use serde_json::Value;

const LOAD: Amount = Amount {
    rate: 200,
    long: 10,
    seconds: 600,
};

/// How long an update is watched that must not go on.
const STANDS_STILL: Duration = Duration::from_secs(25);

/// A server and a client on two nodes, in the mesh.
fn shop(cluster: &Cluster, name: &str) -> Namespace {
    let namespace = Namespace::new(name);
    namespace.apply(&server_and_client());
    cluster.wait_ready(namespace.name());
    namespace.label();
    namespace.wait_enrolled();
    namespace
}

fn load(cluster: &Cluster, namespace: &Namespace, amount: Amount) -> Load {
    let client = format!("{}/client", namespace.name());
    let target = format!("server.{}:9000", namespace.name());
    Load::start(cluster, &client, &target, amount)
}

fn rollout(cluster: &Cluster, verb: &str) {
    let mut rollout = cluster.kubectl();
    run(rollout.args([
        "-n",
        "karst-system",
        "rollout",
        verb,
        "daemonset/karst-agent",
    ]));
}

/// The pods of agents that are not told to end, and whether each is ready.
fn agents(cluster: &Cluster) -> BTreeMap<String, bool> {
    let label = "app.kubernetes.io/name=karst-agent";
    let pods = cluster.object(&["-n", "karst-system", "pods", "-l", label]);
    let pods = pods["items"].as_array().into_iter().flatten();
    let stay = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let ready = |pod: &Value| {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let status = &pod["status"]["containerStatuses"][0];
        (uid.to_owned(), status["ready"] == true)
    };
    stay.map(ready).collect()
}

/// A newcomer that took over from the disk would not know the pods of the last seconds, and refuse their connections.
#[test]
fn an_update_that_finds_no_controller_stands_still() {
    let cluster = Cluster::get();
    let namespace = shop(cluster, "rollout-alone");
    let away = ControllersAway::send(cluster);
    let load = load(cluster, &namespace, LOAD);
    let before = agents(cluster);
    rollout(cluster, "restart");
    eventually("a newcomer has come", || {
        let now = agents(cluster);
        now.keys().any(|agent| !before.contains_key(agent))
    });
    let since = Instant::now();
    while since.elapsed() < STANDS_STILL {
        let now = agents(cluster);
        for (agent, ready) in &now {
            // Old ones serve, and a newcomer waits.
            assert_eq!(*ready, before.contains_key(agent), "{before:?}, {now:?}");
        }
        assert!(before.keys().all(|agent| now.contains_key(agent)));
        // Asking costs processor time that the load needs.
        sleep(Duration::from_secs(1));
    }
    let report = load.stop(cluster);
    println!("update without a controller: {report}");
    drop(away);
    rollout(cluster, "status");
    assert_eq!(report["failures"], 0, "{report}");
}

#[test]
fn replacing_every_agent_loses_only_what_outlasts_the_drain() {
    let cluster = Cluster::get();
    let namespace = shop(cluster, "rollout-agents");
    let before = cluster.lives(namespace.name());
    let load = load(cluster, &namespace, LOAD);
    rollout(cluster, "restart");
    rollout(cluster, "status");
    let report = load.stop(cluster);
    println!("every agent replaced: {report}");
    let lost = report["failures_by_kind"].as_object().expect("a map");
    let (long, short): (Vec<_>, Vec<_>) =
        lost.iter().partition(|(kind, _)| kind.starts_with("long "));
    assert!(short.is_empty(), "new connections failed: {report}");
    // Each long connection goes through both nodes' agents, and is lost with the first that ends.
    let long: u64 = long.iter().filter_map(|(_, count)| count.as_u64()).sum();
    assert!(long <= u64::from(LOAD.long), "{report}");
    assert_eq!(cluster.lives(namespace.name()), before, "pods restarted");
}
