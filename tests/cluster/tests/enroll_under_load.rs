//! A namespace enters and leaves the mesh while its pods are clients and servers: no connection fails, no pod restarts.

use karst_test_cluster::{Amount, Cluster, Load, Namespace, cluster::run, pair::server_and_client};

/// How often the namespace goes in and out.
const ROUNDS: u32 = 10;

#[test]
fn nobody_fails_while_a_namespace_enters_and_leaves_the_mesh() {
    let cluster = Cluster::get();
    let namespace = Namespace::new("enroll-live");
    namespace.apply(&server_and_client());
    cluster.wait_ready(namespace.name());
    let before = cluster.lives(namespace.name());

    let target = format!("server.{}:9000", namespace.name());
    let amount = Amount {
        rate: 50,
        long: 10,
        seconds: 600,
    };
    let client = format!("{}/client", namespace.name());
    let load = Load::start(cluster, &client, &target, amount);
    for _ in 0..ROUNDS {
        namespace.label();
        namespace.wait_enrolled();
        namespace.unlabel();
        namespace.wait_released();
    }
    let report = load.stop(cluster);
    println!("{ROUNDS} rounds: {report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert!(report["long_exchanges"].as_u64() > Some(100), "{report}");
    assert_eq!(cluster.lives(namespace.name()), before, "pods restarted");
    run(cluster
        .kubectl()
        .args(["-n", namespace.name(), "delete", "pods", "--all", "--now"]));
}
