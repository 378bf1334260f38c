//! `outboundTrafficPolicy: REGISTRY_ONLY` in the lab: what the mesh does not know is refused at the client's node, edited
//! while the mesh runs, and everything else goes on.

use karst_test_node::{Lab, eventually};

fn mesh_config(mode: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: 'outboundTrafficPolicy: {{mode: {mode}}}'}}
"
    )
}

/// A page of the node itself, which the mesh does not know: its agent's readiness.
fn outside(lab: &Lab) -> String {
    let shown = lab.exec_node("b", &["ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
    let text = shown.success();
    let address = text.split_whitespace().find_map(|word| {
        let (address, _) = word.split_once('/')?;
        address.parse::<std::net::Ipv4Addr>().ok()
    });
    let address = address.expect("the node has an address");
    format!("http://{address}:15021/healthz/ready")
}

#[test]
fn what_is_in_no_registry_is_refused_and_everything_else_goes_on() {
    let lab = Lab::start("tests/fixtures/pair");
    let outside = outside(&lab);
    let call = |pod: &str, url: &str| {
        lab.exec(pod, &["karst-echo", "client", "--timeout", "3", url])
            .ok()
    };
    let server = lab.address("meshed", "server");
    let inside = format!("http://{server}:8080/");
    eventually("a server outside of the mesh is reached", || {
        call("meshed/client", &outside)
    });

    lab.apply("istio.yaml", &mesh_config("REGISTRY_ONLY"));
    eventually("it is reached no more", || !call("meshed/client", &outside));
    assert!(call("meshed/client", &inside), "the mesh goes on");
    assert!(
        call("plain/client", &outside),
        "who is not in the mesh, too"
    );
    let log = lab.agent_log("a");
    assert!(log.contains("is in no registry of the mesh"), "{log}");
    let metrics = lab.exec_node("a", &["curl", "-s", "http://127.0.0.1:15020/metrics"]);
    let metrics = metrics.success();
    assert!(metrics.contains("BlackHoleCluster"), "{metrics}");

    lab.apply("istio.yaml", &mesh_config("ALLOW_ANY"));
    eventually("it is reached again", || call("meshed/client", &outside));
}
