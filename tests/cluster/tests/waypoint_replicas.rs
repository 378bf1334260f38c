//! A waypoint that gets more replicas under clients that are connected already: within fifteen seconds each replica does
//! about as much as the others.

use std::{
    thread,
    time::{Duration, Instant},
};

use karst_test_cluster::{Cluster, cluster::run, eventually, orders::Orders};
use serde_json::Value;

const REPLICAS: usize = 4;
/// How long after the last replica was ready the share must hold.
const WITHIN: Duration = Duration::from_secs(15);
/// How long requests are counted then.
const COUNTED: Duration = Duration::from_secs(10);

#[test]
fn ten_grpc_clients_of_one_connection_each_are_shared_by_four_replicas() {
    let cluster = Cluster::get();
    let orders = Orders::open("share");
    let load = ["grpc://orders/", "--connections", "10", "--pause-ms", "20"];
    let load = orders.requests(&[&load[..], &["--duration", "300"]].concat());
    let one = orders.counted();
    eventually("the load runs", || orders.counted() > one + 100);
    let scale = [
        "-n",
        "share",
        "annotate",
        "--overwrite",
        "gateway",
        "waypoint",
        "karst.dev/replicas=4",
    ];
    run(cluster.kubectl().args(scale));
    eventually("all replicas are ready", || {
        orders.replicas().len() == REPLICAS
    });
    let ready = Instant::now();
    let replicas = orders.replicas();
    // One after the other, which takes its time: each with its own clock.
    let all = || -> Vec<(u64, Instant)> {
        let counted = replicas.iter().map(|replica| orders.counted_by(replica));
        counted.map(|count| (count, Instant::now())).collect()
    };
    thread::sleep(WITHIN);
    let before = all();
    thread::sleep(COUNTED);
    let rate = |((was, since), (is, until)): (&(u64, Instant), (u64, Instant))| {
        (is - was) as f64 / (until - *since).as_secs_f64()
    };
    let served: Vec<f64> = before.iter().zip(all()).map(rate).collect();
    let report = load.stop(cluster);
    let most = served.iter().copied().fold(0.0, f64::max);
    let least = served.iter().copied().fold(f64::MAX, f64::min);
    let ratio = most / least;
    println!(
        "{:?} after scale-out, requests a second in {COUNTED:?}: {served:.0?}, busiest over idlest {ratio:.2}; {report}",
        ready.elapsed()
    );
    assert!(ratio < 1.5, "{served:?}");
    // The client here sends nothing again; gRPC's libraries do so with what a GOAWAY without an error left over.
    let kinds = report["failures_by_kind"].as_object().expect("a map");
    let left_over = |kind: &String| kind.ends_with("not a result of an error");
    assert!(kinds.keys().all(left_over), "{report}");
    assert!(failures(&report) <= 10, "{report}");
}

fn failures(report: &Value) -> u64 {
    report["failures"].as_u64().expect("a count")
}
