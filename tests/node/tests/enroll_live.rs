//! A namespace enters and leaves the mesh while its pods are clients and servers: no connection fails, no pod restarts.

use karst_test_node::{Lab, Load, Script, eventually, script::PROBER};
use serde_json::Value;

const ON: &str = "istio.io/dataplane-mode: ambient";
const OFF: &str = "istio.io/dataplane-mode: none";

/// Client, target, new connections per second, connections that stay: 200 and 50 in all.
const LOADS: [(&str, &str, &str, &str); 4] = [
    ("meshed/client", "server.meshed:9000", "70", "20"),
    ("plain/client", "server.meshed:9000", "60", "15"),
    ("meshed/client", "server.plain:9000", "40", "10"),
    ("meshed/server", "neighbour.meshed:9000", "30", "5"),
];

#[test]
fn nobody_fails_while_a_namespace_enters_and_leaves_the_mesh() {
    let lab = Lab::up("tests/fixtures/pair");
    rounds(&lab, 5, &LOADS, || {});
}

#[test]
#[ignore = "soak: twenty rounds take too long for the rung"]
fn soak_twenty_rounds_of_entering_and_leaving_fail_nobody() {
    let lab = Lab::up("tests/fixtures/pair");
    rounds(&lab, 20, &LOADS, || {});
}

/// Nobody without an identity may, as soon as the namespace is in the mesh.
const BY_IDENTITY: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: meshed
spec:
  mtls:
    mode: STRICT
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: by-identity
  namespace: meshed
spec:
  action: ALLOW
  rules:
    - from:
        - source:
            principals: [cluster.local/ns/meshed/sa/client, cluster.local/ns/meshed/sa/server]
";

/// Loads between pods that may.
const LOADS_BY_IDENTITY: [(&str, &str, &str, &str); 3] = [
    ("meshed/client", "server.meshed:9000", "100", "25"),
    ("meshed/client", "neighbour.meshed:9000", "40", "10"),
    ("meshed/server", "neighbour.meshed:9000", "60", "15"),
];

#[test]
fn nobody_with_an_identity_is_refused_while_policies_by_identity_take_hold_and_end() {
    rounds_by_identity(5);
}

#[test]
#[ignore = "soak: twenty rounds take too long for the rung"]
fn soak_twenty_rounds_of_policies_by_identity_refuse_nobody_who_has_one() {
    rounds_by_identity(20);
}

fn rounds_by_identity(count: u32) {
    let lab = Lab::up("tests/fixtures/pair");
    lab.apply("by-identity.yaml", BY_IDENTITY);
    let server = lab.address("meshed", "server");
    let mut stranger = Script::start(&lab, "plain/client", PROBER, &[]);
    let question = format!("{server} 9000 hello");
    eventually("the policies hold", || stranger.ask(&question) != "ok");
    rounds(&lab, count, &LOADS_BY_IDENTITY, || {
        assert_ne!(stranger.ask(&question), "ok", "in the mesh, and open");
    });
}

fn rounds(
    lab: &Lab,
    count: u32,
    loads: &[(&str, &str, &str, &str)],
    mut in_the_mesh: impl FnMut(),
) {
    let before = processes(lab);
    let started = loads.iter().map(|(pod, target, rate, long)| {
        let load = ["load", target, "--rate", rate, "--long", long];
        Load::start(lab, pod, &load)
    });
    let started = started.collect::<Vec<_>>();
    for _ in 0..count {
        lab.edit("mesh.yaml", ON, OFF);
        lab.wait_enrolled();
        lab.edit("mesh.yaml", OFF, ON);
        lab.wait_enrolled();
        in_the_mesh();
    }
    for (load, what) in started.into_iter().zip(loads) {
        let report = load.stop(lab);
        assert_eq!(report["failures"], 0, "{what:?}: {report}");
        assert!(report["long_exchanges"].as_u64() > Some(100), "{report}");
    }
    assert_eq!(processes(lab), before, "pods were restarted");
}

/// Every pod's processes and restarts.
fn processes(lab: &Lab) -> Vec<(String, Value, Value)> {
    let status = lab.status();
    let pods = status["pods"].as_array().expect("a list of pods");
    pods.iter()
        .map(|pod| {
            let name = format!("{}/{}", pod["namespace"], pod["name"]);
            (name, pod["pids"].clone(), pod["restarts"].clone())
        })
        .collect()
}
