//! A NetworkPolicy that blocks the mesh's port is named as the likely cause, in the access log and in the metrics, and
//! nothing falls back to plaintext. Played with nftables where a network plugin would put its rules.

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers: [{name: echo, image: karst.test/echo:1, command: [karst-echo, server, '--port=8080']}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
";

/// The rule on the client's node; gone when dropped.
struct Blocked<'a>(&'a Cluster);

impl<'a> Blocked<'a> {
    fn put(cluster: &'a Cluster) -> Self {
        let script = "nft add table inet policytest && \
            nft 'add chain inet policytest f { type filter hook forward priority -10; }' && \
            nft 'add rule inet policytest f tcp dport 15008 drop'";
        run(cluster.node("n1").args(["sh", "-c", script]));
        Self(cluster)
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        let mut node = self.0.node("n1");
        let _ = node
            .args(["nft", "delete", "table", "inet", "policytest"])
            .output();
    }
}

#[test]
fn a_blocked_tunnel_port_is_reported_as_such() {
    let cluster = Cluster::get();
    let shop = Namespace::new("network-policy");
    shop.apply(PODS);
    cluster.wait_ready(shop.name());
    shop.label();
    shop.wait_enrolled();
    let server = cluster.object(&["-n", shop.name(), "pod", "server"]);
    let server = server["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let client = format!("{}/client", shop.name());
    let url = format!("http://{server}:8080/");
    let answered = || {
        let call = cluster.exec(&client, &["karst-echo", "client", "--timeout", "30", &url]);
        call.status.success()
    };

    let blocked = Blocked::put(cluster);
    assert!(!answered(), "went around the tunnel");
    let agent = agent_of(cluster, "n1");
    let log = agent_log(cluster, &agent);
    let line = log
        .lines()
        .find(|line| line.contains("connection failed") && line.contains(&server));
    let line = line.unwrap_or_else(|| panic!("no line tells of it:\n{log}"));
    let cause = "a NetworkPolicy may block TCP port 15008";
    assert!(line.contains(cause), "{line}");
    let counted = metrics(cluster, &agent);
    assert!(
        counted
            .lines()
            .any(|line| line.starts_with("istio_tcp_connections_failed")
                && line.contains("response_flags=\"NETWORK_POLICY\"")
                && line.contains(shop.name())),
        "not counted"
    );

    drop(blocked);
    eventually("without the rule the server answers", answered);
}

fn agent_of(cluster: &Cluster, node: &str) -> String {
    let field = format!("--field-selector=spec.nodeName={node}");
    let label = "app.kubernetes.io/name=karst-agent";
    let pods = cluster.object(&["-n", "karst-system", "pods", "-l", label, &field]);
    let name = pods["items"][0]["metadata"]["name"].as_str();
    name.expect("an agent").to_owned()
}

fn agent_log(cluster: &Cluster, agent: &str) -> String {
    let mut logs = cluster.kubectl();
    let said = run(logs.args(["-n", "karst-system", "logs", agent, "--since=2m"]));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// What a scraper reads of an agent.
fn metrics(cluster: &Cluster, agent: &str) -> String {
    let path = format!("/api/v1/namespaces/karst-system/pods/{agent}:15020/proxy/metrics");
    let said = run(cluster.kubectl().args(["get", "--raw", &path]));
    String::from_utf8_lossy(&said.stdout).into_owned()
}
