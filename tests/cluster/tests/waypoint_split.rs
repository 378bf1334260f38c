//! `karst split` on the cluster: what it shows is the route's, what it watches is the traffic's, and both are the same
//! within a few points.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use karst_test_cluster::{Cluster, cluster::run, eventually, orders::Orders};

/// What a watched share may differ from its weight.
const POINTS: f64 = 4.0;
/// Requests that a look must have seen: with fewer, chance alone goes beyond.
const ENOUGH: u64 = 500;
/// Looks that must agree, of so many in a row.
const LOOKS: usize = 3;
const LOOKS_MAX: usize = 8;

#[test]
fn split_shows_the_weights_and_watches_the_shares() {
    let cluster = Cluster::get();
    let orders = Orders::open("split");
    orders.route(80, 20);
    let load = ["http://orders/", "--connections", "8", "--duration", "300"];
    let load = orders.requests(&load);
    let split = |weights: &[&str]| {
        let mut split = cluster.karst();
        let words = ["split", "split/orders", "--rule", "everybody"];
        let said = run(split.args(words).args(weights));
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    for (v1, v2, set) in [
        (80, 20, &[][..]),
        (30, 70, &["orders-v1=30", "orders-v2=70"][..]),
    ] {
        let shown = split(set);
        println!("{shown}");
        for (version, weight) in [("orders-v1", v1), ("orders-v2", v2)] {
            let line = format!("{version:<24} weight {weight:>7}  {weight:>3}.0 %");
            assert!(shown.contains(&line), "{line:?} missing in {shown}");
        }
        eventually(&format!("{v1}/{v2} holds"), || {
            let seen = watched(cluster);
            println!("{v1}/{v2}: {seen:?}");
            let near = |share: f64| (share - f64::from(v2)).abs() <= POINTS;
            seen.len() == LOOKS && seen.iter().all(|share| near(*share))
        });
    }
    let report = load.stop(cluster);
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(report["statuses"]["200"], report["requests"], "{report}");
}

/// The shares of the second version, in percent, of [`LOOKS`] looks that have seen enough; fewer where the traffic is thin.
fn watched(cluster: &Cluster) -> Vec<f64> {
    let mut watch = cluster.karst();
    watch.args(["split", "split/orders", "--watch"]);
    let mut child = watch.stdout(Stdio::piped()).spawn().expect("karst starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let shares = lines
        .map_while(Result::ok)
        .filter(|line| line.contains(" requests "))
        .take(LOOKS_MAX)
        .filter_map(|line| share(&line))
        .take(LOOKS)
        .collect();
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    shares
}

/// Of `    4 s     1234 requests  orders-v1 80.1 %  orders-v2 19.9 %`, where enough was seen.
fn share(line: &str) -> Option<f64> {
    let (seen, shares) = line.split_once(" requests ")?;
    let count: u64 = seen.rsplit(' ').next()?.parse().ok()?;
    assert!(shares.contains("orders-v1 "), "{line}");
    let (_, share) = shares.split_once("orders-v2 ")?;
    let share = share.split(' ').next()?.parse().ok()?;
    (count >= ENOUGH).then_some(share)
}
