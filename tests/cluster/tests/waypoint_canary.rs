//! A canary on the cluster: 90/10, 50/50, 100 under load, by the user's command, which shows the shares as they are.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use karst_test_cluster::{Cluster, cluster::run, eventually, orders::Orders};
use serde_json::Value;

/// Weights, and the requests at each: with fewer, chance alone would go beyond a point now and then.
const STEPS: [(u32, u32, &str); 3] = [(90, 10, "10000"), (50, 50, "30000"), (0, 100, "10000")];
/// What a share may differ from its weight.
const POINTS: f64 = 1.0;

#[test]
#[ignore = "soak: fifty thousand requests"]
fn soak_a_canary_moves_under_load_with_no_error_and_shares_within_a_point() {
    let cluster = Cluster::get();
    let orders = Orders::open("canary");
    orders.route(100, 0);
    eventually("the route holds", || {
        (0..10).all(|_| orders.call("http://orders/", &[]).contains("Hostname=v1"))
    });
    // Requests that go on through every change.
    let load = [
        "http://orders/",
        "--connections",
        "4",
        "--pause-ms",
        "20",
        "--duration",
        "900",
    ];
    let load = orders.requests(&load);
    let split = |weights: &[&str]| {
        let mut split = cluster.karst();
        run(split
            .args(["split", "canary/orders", "--rule", "everybody"])
            .args(weights));
    };
    for (v1, v2, requests) in STEPS {
        split(&[&format!("orders-v1={v1}"), &format!("orders-v2={v2}")]);
        eventually(&format!("{v1}/{v2} holds"), || {
            let look = ["http://orders/", "--connections", "2", "--count", "200"];
            let share = share_of_v2(&orders.requests(&look).report());
            (share - f64::from(v2)).abs() < 15.0
        });
        let counted = ["http://orders/", "--connections", "8", "--count", requests];
        let counted = orders.requests(&[&counted[..], &["--duration", "120"]].concat());
        if v2 == 50 {
            let watched = watched(cluster);
            assert!(
                watched.contains("orders-v1") && watched.contains("orders-v2"),
                "{watched}"
            );
        }
        let report = counted.report();
        let share = share_of_v2(&report);
        println!("canary {v1}/{v2}: v2 got {share:.2} %: {report}");
        assert_eq!(report["failures"], 0, "{report}");
        assert_eq!(
            report["statuses"]["200"],
            requests.parse::<u64>().expect("a number")
        );
        assert!(
            (share - f64::from(v2)).abs() <= POINTS,
            "{v1}/{v2}: {share} %"
        );
    }
    split(&["orders-v1=100", "orders-v2=0"]);
    eventually("the route is as it was", || {
        (0..10).all(|_| orders.call("http://orders/", &[]).contains("Hostname=v1"))
    });
    let tester = ["http://orders/", "--count", "500", "-H", "x-user:tester"];
    let tested = orders.requests(&tester).report();
    assert_eq!(tested["answered_by"]["v2"], 500, "{tested}");
    let whole = load.stop(cluster);
    println!("through all changes: {whole}");
    assert_eq!(whole["failures"], 0, "{whole}");
    assert_eq!(whole["statuses"]["200"], whole["requests"], "{whole}");
}

fn share_of_v2(report: &Value) -> f64 {
    let count = |name: &str| report["answered_by"][name].as_f64().unwrap_or(0.0);
    100.0 * count("v2") / (count("v1") + count("v2")).max(1.0)
}

/// The first line of `karst split --watch` that has seen requests.
fn watched(cluster: &Cluster) -> String {
    let mut watch = cluster.karst();
    watch.args(["split", "canary/orders", "--watch"]);
    let mut child = watch.stdout(Stdio::piped()).spawn().expect("karst starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = lines
        .map_while(Result::ok)
        .filter(|line| line.contains(" requests "));
    let found = seen
        .by_ref()
        .take(8)
        .find(|line| !line.contains(" 0 requests") && line.contains(" 5") | line.contains(" 4"));
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    found.expect("eight looks and no request seen")
}
