//! A node's kubelet or its container runtime is killed: connections go on, pods stay in the mesh, and the next ones start in
//! it.

use karst_test_cluster::{Cluster, Pair, cluster::run};

/// The node of the clients, where newcomers start.
const NODE: &str = "n1";

#[test]
fn a_killed_kubelet_or_runtime_is_not_noticed() {
    let cluster = Cluster::get();
    let pair = Pair::open("services");
    let before = cluster.lives("services");
    let load = pair.load(50);
    for service in ["kubelet", "containerd"] {
        let kill = ["pkill", "-KILL", "-x", service];
        run(cluster.node(NODE).args(kill));
        pair.expect_changes();
        println!("{service} killed: a newcomer is in the mesh");
    }
    let report = load.stop(cluster);
    println!("{report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert!(!pair.reaches("stranger"), "the policy is gone");
    let after = cluster.lives("services");
    let same = before.iter().all(|pod| after.contains(pod));
    assert!(same, "pods restarted: {before:?}, {after:?}");
}
