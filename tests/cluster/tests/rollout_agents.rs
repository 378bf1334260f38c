//! Every agent is replaced under load: new connections wait rather than fail, and those that an agent carried are lost
//! with it at the end of its drain, no other.

use karst_test_cluster::{Amount, Cluster, Load, Namespace, cluster::run, pair::server_and_client};

const LOAD: Amount = Amount {
    rate: 200,
    long: 10,
    seconds: 600,
};

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

fn controllers(cluster: &Cluster, replicas: &str) {
    let mut scale = cluster.kubectl();
    run(scale.args([
        "-n",
        "karst-system",
        "scale",
        "deployment/karst-controller",
        &format!("--replicas={replicas}"),
    ]));
}

/// A newcomer that took over from the disk would not know the pods of the last seconds, and refuse their connections.
#[test]
fn an_update_that_finds_no_controller_stands_still() {
    let cluster = Cluster::get();
    let namespace = shop(cluster, "rollout-alone");
    controllers(cluster, "0");
    let alone = Amount {
        rate: 200,
        long: 10,
        seconds: 40,
    };
    let load = load(cluster, &namespace, alone);
    rollout(cluster, "restart");
    let report = load.report();
    println!("update without a controller: {report}");
    controllers(cluster, "2");
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
