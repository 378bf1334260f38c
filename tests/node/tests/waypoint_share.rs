//! A waypoint that gets more replicas under clients that are connected already: within fifteen seconds each replica does
//! about as much as the others, and no request fails that a client may not send again.

use std::{
    thread,
    time::{Duration, Instant},
};

use karst_test_node::{Lab, Load, eventually, until};

const MESH: &str = "mesh.yaml";
const REPLICAS: usize = 4;
/// How long after the last replica was ready the share must hold.
const WITHIN: Duration = Duration::from_secs(15);
/// How long requests are counted then.
const COUNTED: Duration = Duration::from_secs(10);

#[test]
fn ten_grpc_clients_of_one_connection_each_are_shared_by_four_replicas() {
    let lab = Lab::start("tests/fixtures/waypoint");
    eventually("gRPC goes through the waypoint", || {
        let ran = lab.exec(
            "shop/client",
            &["karst-echo", "client", "grpc://orders.shop"],
        );
        ran.ok() && requests(&lab, 0).is_some_and(|seen| seen > 0.0)
    });
    let clients = ["--connections", "10", "--pause-ms", "20"];
    let words = [&["requests", "grpc://orders.shop"], &clients[..]].concat();
    let load = Load::start(&lab, "shop/client", &words);
    lab.edit(
        MESH,
        "karst.dev/replicas: \"1\"",
        "karst.dev/replicas: \"4\"",
    );
    // Ready is who answers, and whom the clients' agent may choose.
    until("all replicas are ready", || {
        (0..REPLICAS)
            .map(|replica| requests(&lab, replica))
            .collect::<Option<Vec<f64>>>()
    });
    let ready = Instant::now();
    thread::sleep(WITHIN);
    let before = all(&lab);
    thread::sleep(COUNTED);
    let after = all(&lab);
    let served: Vec<f64> = before
        .iter()
        .zip(&after)
        .map(|(was, is)| is - was)
        .collect();
    let most = served.iter().copied().fold(0.0, f64::max);
    let least = served.iter().copied().fold(f64::MAX, f64::min);
    let report = load.stop(&lab);
    println!(
        "{:?} after scale-out, requests in {COUNTED:?}: {served:?}, busiest over idlest {:.2}; {report}",
        ready.elapsed(),
        most / least
    );
    assert!(most / least < 1.5, "{served:?}");
    // The client here sends nothing again; gRPC's libraries do so with what a GOAWAY without an error left over.
    let kinds = report["failures_by_kind"].as_object().unwrap();
    let left_over = |kind: &String| kind.ends_with("not a result of an error");
    assert!(kinds.keys().all(left_over), "{report}");
    assert!(report["failures"].as_u64() <= Some(10), "{report}");
}

fn all(lab: &Lab) -> Vec<f64> {
    let counted = (0..REPLICAS).map(|replica| requests(lab, replica));
    counted
        .map(|counted| counted.expect("every replica answers"))
        .collect()
}

/// Requests that a replica has counted; `None` where there is no such replica yet.
fn requests(lab: &Lab, replica: usize) -> Option<f64> {
    let page = "http://127.0.0.1:15020/metrics";
    let pod = format!("shop/waypoint-{replica}");
    let ran = lab.exec_root(&pod, &["karst-echo", "client", page]);
    let lines = ran
        .stdout
        .lines()
        .filter(|line| line.contains("istio_requests_total{"));
    let counted = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    ran.ok().then(|| counted.sum())
}
