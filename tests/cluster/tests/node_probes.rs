//! The kubelet's probes under STRICT: those of the pod itself pass, those that another pod aims at it get nothing.

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually};

const SERVER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, '--port=8080', '--port=8081', '--tcp=9000', '--grpc=7070']
      readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1, failureThreshold: 1}
      livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

/// Ready only if the kubelet reaches this port of another pod.
fn aimed_at(addr: &str, port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: aims-at-{port}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: n1}}
  containers:
    - name: shell
      image: karst.test/shell:1
      command: [sleep, infinity]
      readinessProbe: {{httpGet: {{host: '{addr}', port: {port}, path: /}}, periodSeconds: 1, failureThreshold: 1}}
"
    )
}

#[test]
fn own_probes_pass_under_strict_and_a_strangers_aim_gets_nothing() {
    let cluster = Cluster::get();
    let (shop, street) = (Namespace::new("probes"), Namespace::new("probes-street"));
    shop.apply(SERVER);
    cluster.wait_ready(shop.name());
    let pod = || cluster.object(&["-n", shop.name(), "pod", "server"]);
    let addr = pod()["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let is_ready = || pod()["status"]["containerStatuses"][0]["ready"] == true;
    let restarts = || pod()["status"]["containerStatuses"][0]["restartCount"].clone();

    // Control: outside the mesh the aim hits.
    street.apply(&aimed_at(&addr, 8081));
    cluster.wait_ready(street.name());

    shop.label();
    shop.wait_enrolled();
    let aimed = || {
        let pod = cluster.object(&["-n", street.name(), "pod", "aims-at-8081"]);
        pod["status"]["containerStatuses"][0]["ready"] == true
    };
    eventually("the aimed probe gets nothing", || !aimed());
    assert!(
        is_ready(),
        "the pod's own probe passes while the stranger's does not"
    );

    // Two more failures of its own probes would restart it: the stranger's has failed ten times by then.
    let failures = || {
        let mut events = cluster.kubectl();
        let about = "involvedObject.name=aims-at-8081,reason=Unhealthy";
        events.args([
            "-n",
            street.name(),
            "get",
            "events",
            "--field-selector",
            about,
            "-o",
            "jsonpath={.items[*].count}",
        ]);
        let counts = run(&mut events).stdout;
        let counts = String::from_utf8_lossy(&counts).into_owned();
        counts
            .split_whitespace()
            .filter_map(|count| count.parse::<u32>().ok())
            .sum::<u32>()
    };
    eventually("ten probes were refused", || failures() >= 10);
    assert!(is_ready() && restarts() == 0, "{}", pod()["status"]);
}
