//! A node loses power and comes back: its pods are in the mesh again by themselves, and its CNI chain was never without
//! the plugin.

use karst_test_cluster::{Cluster, Namespace, cluster::run, eventually};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  containers: [{name: echo, image: karst.test/echo:1, command: [karst-echo, server, '--port=8080']}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers: [{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

#[test]
fn pods_of_a_rebooted_node_are_in_the_mesh_again() {
    let cluster = Cluster::get();
    let shop = Namespace::new("reboot");
    shop.apply(PODS);
    cluster.wait_ready(shop.name());
    shop.label();
    shop.wait_enrolled();
    let server = cluster.object(&["-n", shop.name(), "pod", "server"]);
    let url = format!(
        "http://{}:8080/",
        server["status"]["podIP"].as_str().expect("an address")
    );
    let client = format!("{}/client", shop.name());
    // STRICT: only what is captured is answered.
    let answered = || {
        cluster
            .exec(&client, &["karst-echo", "client", "--timeout", "2", &url])
            .status
            .success()
    };
    eventually("the server answers before", answered);

    let chain = || {
        run(cluster
            .node("n2")
            .args(["sh", "-c", "cat /etc/cni/net.d/*.conflist"]))
        .stdout
    };
    cluster.reboot("n2");
    assert!(
        String::from_utf8_lossy(&chain()).contains("karst-cni"),
        "the chain survives"
    );
    eventually("the server answers the pod that came back", answered);
    shop.wait_enrolled();
}

#[test]
fn a_chain_that_another_program_rewrites_has_the_plugin_again() {
    let cluster = Cluster::get();
    let on_node = |command: &str| {
        let output = run(cluster.node("n1").args(["sh", "-c", command])).stdout;
        String::from_utf8_lossy(&output).into_owned()
    };
    let file = on_node("ls /etc/cni/net.d/*.conflist").trim().to_owned();
    on_node(&format!(
        "cp {file}.karst-original /etc/cni/net.d/.aside && mv /etc/cni/net.d/.aside {file}"
    ));
    eventually("the agent repairs the chain", || {
        on_node(&format!("cat {file}")).contains("karst-cni")
    });
}
