//! A Deployment whose pods do nothing at their end (no preStop) is restarted again and again under load: in the mesh no
//! more connections fail than outside of it.

use std::thread;

use karst_test_cluster::{
    Amount, Cluster, Load, Namespace,
    cluster::run,
    pods::{byte_service, shell},
};
use serde_json::Value;

/// How often the Deployment is restarted.
const RESTARTS: u32 = 10;
const LOAD: Amount = Amount {
    rate: 200,
    long: 0,
    seconds: 600,
};

const SERVER: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      containers:
        - name: echo
          image: karst.test/echo:1
          command: [karst-echo, server, '--mode=echo:9000']
          readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
";

#[test]
fn restarting_a_deployment_costs_no_more_connections_than_without_the_mesh() {
    let cluster = Cluster::get();
    let [plain, meshed] = ["rollout-plain", "rollout-meshed"].map(|name| {
        let namespace = Namespace::new(name);
        namespace.apply(SERVER);
        namespace.apply(&(byte_service("server", "", "") + &shell("client", "n1")));
        namespace
    });
    cluster.wait_ready(plain.name());
    cluster.wait_ready(meshed.name());
    meshed.label();
    meshed.wait_enrolled();

    // Side by side: whatever else this machine does meanwhile, it does to both.
    let [plain, meshed] = thread::scope(|scope| {
        [&plain, &meshed]
            .map(|namespace| scope.spawn(|| restarted(cluster, namespace)))
            .map(|restarting| restarting.join().expect("it ran to its end"))
    });
    println!(
        "{RESTARTS} restarts under {} connections/s:\n  outside the mesh {plain}\n  in the mesh {meshed}",
        LOAD.rate
    );
    let failures = |report: &Value| report["failures"].as_u64().expect("a count");
    assert!(
        failures(&meshed) <= failures(&plain),
        "in the mesh {meshed}, outside {plain}"
    );
    let enough = u64::from(LOAD.rate * RESTARTS);
    assert!(meshed["connections"].as_u64() > Some(enough), "{meshed}");
}

/// The report of the load while every pod was replaced, again and again.
fn restarted(cluster: &Cluster, namespace: &Namespace) -> Value {
    let client = format!("{}/client", namespace.name());
    let target = format!("server.{}:9000", namespace.name());
    let load = Load::start(cluster, &client, &target, LOAD);
    for _ in 0..RESTARTS {
        for verb in ["restart", "status"] {
            let mut rollout = cluster.kubectl();
            run(rollout.args(["-n", namespace.name(), "rollout", verb, "deployment/server"]));
        }
    }
    load.stop(cluster)
}
