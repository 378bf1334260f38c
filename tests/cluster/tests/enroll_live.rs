//! A namespace enters and leaves the mesh while its pods are clients and servers: no connection fails, no pod restarts.

use karst_test_cluster::{Cluster, Load, Namespace, cluster::run};

/// How often the namespace goes in and out.
const ROUNDS: u32 = 10;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, '--mode=echo:9000']
      readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: tcp, port: 9000}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

#[test]
fn nobody_fails_while_a_namespace_enters_and_leaves_the_mesh() {
    let cluster = Cluster::get();
    let namespace = Namespace::new("enroll-live");
    namespace.apply(PODS);
    cluster.wait_ready(namespace.name());
    let before = cluster.lives(namespace.name());

    let target = format!("server.{}:9000", namespace.name());
    let load = [
        "karst-echo",
        "load",
        &target,
        "--rate",
        "50",
        "--long",
        "10",
        "--duration",
        "600",
    ];
    let load = Load::spawn(cluster, &format!("{}/client", namespace.name()), &load);
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
