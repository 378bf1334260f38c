//! A namespace enters and leaves the mesh while its pods are clients and servers: no connection fails, no pod restarts.

use std::process::Child;

use karst_test_node::Lab;
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
    rounds(5, "14");
}

#[test]
#[ignore = "twenty rounds take too long for the rung"]
fn soak_twenty_rounds_of_entering_and_leaving_fail_nobody() {
    rounds(20, "45");
}

fn rounds(count: u32, seconds: &str) {
    let lab = Lab::up("tests/fixtures/pair");
    let before = processes(&lab);
    let loads = LOADS.map(|(pod, target, rate, long)| {
        let load = ["karst-echo", "load", target, "--rate", rate, "--long", long];
        lab.spawn(pod, &[&load[..], &["--duration", seconds]].concat())
    });
    let mut loads = loads.into_iter().collect::<Vec<_>>();
    for _ in 0..count {
        lab.edit("mesh.yaml", ON, OFF);
        lab.wait_enrolled();
        lab.edit("mesh.yaml", OFF, ON);
        lab.wait_enrolled();
    }
    let ended_early = loads
        .iter_mut()
        .any(|load| load.try_wait().expect("a child").is_some());
    assert!(
        !ended_early,
        "the load must outlast the last round: more seconds"
    );
    for (load, what) in loads.into_iter().zip(LOADS) {
        let report = report(load);
        assert_eq!(report["failures"], 0, "{what:?}: {report}");
        assert!(report["long_exchanges"].as_u64() > Some(100), "{report}");
    }
    assert_eq!(processes(&lab), before, "pods were restarted");
}

fn report(load: Child) -> Value {
    let output = load.wait_with_output().expect("the load ends");
    serde_json::from_slice(&output.stdout).expect("a report")
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
