//! What a waypoint does when endpoints fail, fill up or are far, on the cluster and with every answer counted; with objects
//! as a user of Istio writes them.

use std::time::{Duration, Instant};

use karst_test_cluster::{
    Cluster,
    cluster::run,
    eventually,
    orders::{Orders, SUBSETS, echo, service, status},
    until,
};
use serde_json::Value;

/// So many answers of a report have this status.
fn answers(report: &Value, status: &str) -> u64 {
    report["statuses"][status].as_u64().unwrap_or(0)
}

fn by(report: &Value, pod: &str) -> u64 {
    report["answered_by"][pod].as_u64().unwrap_or(0)
}

fn all(report: &Value) -> u64 {
    report["requests"].as_u64().unwrap_or(0) + report["failures"].as_u64().unwrap_or(0)
}

/// Until every waypoint says that it follows the object.
fn followed(kind: &str, name: &str, namespace: &str) {
    eventually(&format!("{kind} {name} is followed"), || {
        let object = Cluster::get().object(&[kind, name, "-n", namespace]);
        let conditions = object["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|one| {
            (one["type"] == "WaypointAccepted" || one["type"] == "Programmed")
                && one["status"] == "True"
        })
    });
}

const EJECTION: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 120s, maxEjectionPercent: 50}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
    - route: [{destination: {host: orders}}]
      retries: {attempts: 3, perTryTimeout: 5s, retryOn: '5xx,connect-failure,reset'}
";

const BREAKER: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: narrow}
spec:
  host: narrow
  trafficPolicy:
    connectionPool: {http: {http2MaxRequests: 10}}
";

#[test]
fn a_broken_version_is_ejected_and_a_breaker_holds() {
    let cluster = Cluster::get();
    let orders = Orders::open("ejects");
    let more: String = [("v3", "n1"), ("v4", "n2"), ("v5", "n2")]
        .map(|(name, node)| echo(name, node, &format!("app: orders, version: {name}")))
        .concat();
    orders.namespace.apply(&more);
    orders.namespace.apply(&service(
        "direct",
        "istio.io/use-waypoint: none",
        "app: orders",
    ));
    orders.namespace.apply(&echo("narrow", "n2", "app: narrow"));
    orders
        .namespace
        .apply(&service("narrow", "", "app: narrow"));
    orders.wait_for(&["v3", "v4", "v5", "narrow"]);
    orders.namespace.apply(EJECTION);
    orders.namespace.apply(BREAKER);
    followed("destinationrule", "orders", "ejects");
    followed("virtualservice", "orders", "ejects");
    eventually("all five get requests", || {
        let look = ["http://orders/", "--connections", "4", "--count", "100"];
        let report = orders.requests(&look).report();
        (1..=5).all(|number| by(&report, &format!("v{number}")) > 0)
    });

    // The version breaks in the middle of the load.
    let load = ["http://orders/", "--connections", "16", "--duration", "600"];
    let load = orders.requests(&[&load[..], &["--pause-ms", "5"]].concat());
    let (before, _) = orders.seen("v5");
    until("the load runs", || {
        (orders.seen("v5").0 > before).then_some(())
    });
    orders.tell("v5", 503);
    let direct = ["http://direct/", "--connections", "400", "--count", "4000"];
    let direct = orders.requests(&direct).report();
    let (after_direct, _) = orders.seen("v5");
    let longer = ["http://orders/", "--connections", "8", "--count", "10000"];
    let longer = orders
        .requests(&[&longer[..], &["--duration", "120"]].concat())
        .report();
    let load = load.stop(cluster);
    let (end, _) = orders.seen("v5");
    println!("ejection: direct {direct}\n by the waypoint {load}\n and {longer}");
    let wrong = |report: &Value| {
        let good = answers(report, "200");
        100.0 * (all(report) - good) as f64 / all(report).max(1) as f64
    };
    println!(
        "ejection: wrong answers {:.2} % directly, {:.4} % and {:.4} % by the waypoint; the broken pod got {} requests more",
        wrong(&direct),
        wrong(&load),
        wrong(&longer),
        end - after_direct
    );
    // The control: one of five answers wrongly, as often as chance chooses it.
    assert!((8.0..35.0).contains(&wrong(&direct)), "{direct}");
    assert!(all(&load) + all(&longer) > 10_000);
    assert!(wrong(&load) < 0.1 && wrong(&longer) < 0.1);
    assert_eq!(end, after_direct, "who is ejected gets nothing");

    // Forty clients want more than ten may have.
    let busy = [
        "http://narrow/?delay=100",
        "--connections",
        "40",
        "--pause-ms",
        "20",
        "--duration",
        "10",
        "--slow-ms",
        "100",
    ];
    let report = orders.requests(&busy).report();
    let (requests, at_once) = orders.seen("narrow");
    println!("breaker: {at_once} at once of {requests}: {report}");
    assert_eq!(at_once, 10, "exactly what is allowed: {report}");
    assert_eq!(
        answers(&report, "200") + answers(&report, "503"),
        all(&report)
    );
    assert!(answers(&report, "503") > 100, "{report}");
    assert!(
        report["p50_us"].as_u64().is_some_and(|us| us < 50_000),
        "refusals are fast: {report}"
    );
    assert!(orders.waypoint_log().contains("UO"));
}

const ZONES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting:
        enabled: true
        failover:
          - {from: east, to: west}
          - {from: west, to: east}
    outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
    - route: [{destination: {host: orders}}]
      retries: {attempts: 3, retryOn: '5xx,connect-failure,reset'}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: warm}
spec:
  host: warm
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
      warmup: {duration: 15s, minimumPercent: 10}
";

/// Nodes in two regions, until it is dropped: whoever has ejection prefers what is near.
struct Places;

impl Places {
    fn name() -> Self {
        for (node, region) in [("n1", "east"), ("n2", "west")] {
            let (region, zone) = (format!("{REGION}={region}"), format!("{ZONE}={region}-a"));
            let mut label = Cluster::get().kubectl();
            run(label.args(["label", "--overwrite", "node", node, &region, &zone]));
        }
        Self
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let gone = [REGION, ZONE].map(|label| format!("{label}-"));
        let mut label = Cluster::get().kubectl();
        let _ = label
            .args(["label", "nodes", "n1", "n2"])
            .args(gone)
            .output();
    }
}

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

#[test]
fn traffic_fails_over_to_another_region_and_back_and_new_endpoints_warm_up() {
    let cluster = Cluster::get();
    let _places = Places::name();
    let orders = Orders::open("zones");
    orders.namespace.apply(&echo("w1", "n1", "app: warm"));
    orders.namespace.apply(&service("warm", "", "app: warm"));
    orders.namespace.apply(ZONES);
    orders.wait_for(&["w1"]);
    let replica = orders.replicas().remove(0);
    let replica = cluster.object(&["pod", &replica, "-n", "zones"]);
    // v1 is on n2, v2 on n1.
    let (near, far) = match replica["spec"]["nodeName"].as_str() {
        Some("n1") => ("v2", "v1"),
        _ => ("v1", "v2"),
    };
    let only = |pod: &str| {
        let look = ["http://orders/", "--connections", "2", "--count", "60"];
        let report = orders.requests(&look).report();
        by(&report, pod) == 60 && answers(&report, "200") == 60
    };
    eventually("the near one gets all", || only(near));

    let load = ["http://orders/", "--connections", "4", "--duration", "600"];
    let load = orders.requests(&[&load[..], &["--pause-ms", "5"]].concat());
    orders.tell(near, 503);
    let began = Instant::now();
    eventually("the far one gets all", || only(far));
    let over = began.elapsed();
    orders.tell(near, 200);
    let began = Instant::now();
    eventually("the near one gets all again", || only(near));
    let back = began.elapsed();
    let report = load.stop(cluster);
    println!("locality: over after {over:?}, back after {back:?}: {report}");
    assert!(over < Duration::from_secs(3), "{over:?}");
    assert_eq!(answers(&report, "200"), all(&report), "{report}");
    assert_eq!(report["failures"], 0, "{report}");
    assert!(
        report["p99_us"].as_u64().is_some_and(|us| us < 500_000),
        "no spike: {report}"
    );

    // Slow start: the second endpoint gets its share by and by.
    orders.namespace.apply(&echo("w2", "n1", "app: warm"));
    let mut shares = Vec::new();
    until("the new one has its share", || {
        let look = ["http://warm/", "--connections", "4", "--duration", "1"];
        let report = orders.requests(&look).report();
        let share = 100.0 * by(&report, "w2") as f64 / all(&report).max(1) as f64;
        if share > 0.0 {
            shares.push(share.round());
        }
        (share > 45.0).then_some(())
    });
    println!("slow start, a second each: {shares:?}");
    assert!(shares.len() >= 4, "{shares:?}");
    assert!(shares[0] < 30.0, "{shares:?}");
}

const FAULTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
    - match: [{uri: {prefix: /abort}}]
      fault: {abort: {percentage: {value: 30}, httpStatus: 555}}
      route: [{destination: {host: orders, subset: v1}}]
    - match: [{uri: {prefix: /delay}}]
      fault: {delay: {percentage: {value: 10}, fixedDelay: 1s}}
      route: [{destination: {host: orders, subset: v1}}]
    - match: [{uri: {prefix: /mirror}}]
      route: [{destination: {host: orders, subset: v1}}]
      mirror: {host: orders, subset: v2}
      mirrorPercentage: {value: 50}
    - route: [{destination: {host: orders, subset: v1}}]
      timeout: 3s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders-v1}
spec:
  hosts: [orders-v1]
  http:
    - route: [{destination: {host: orders-v1}}]
      timeout: 20s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders-v2}
spec:
  hosts: [orders-v2]
  http:
    - route: [{destination: {host: orders-v2}}]
      timeout: 20s
";

#[test]
fn faults_hit_their_share_mirrors_are_not_noticed_and_deadlines_shrink() {
    let orders = Orders::open("faults");
    orders.namespace.apply(SUBSETS);
    orders.namespace.apply(FAULTS);
    eventually("some are aborted", || {
        let look = ["http://orders/abort", "--count", "100"];
        answers(&orders.requests(&look).report(), "555") > 10
    });
    let count = |url: &str, connections: &str, more: &[&str]| {
        let words = [url, "--connections", connections, "--duration", "240"];
        orders.requests(&[&words[..], more].concat()).report()
    };
    let report = count("http://orders/abort", "16", &["--count", "20000"]);
    let share = 100.0 * answers(&report, "555") as f64 / 20_000.0;
    println!("aborts: {share:.2} % of 20,000 where 30 % are asked: {report}");
    assert_eq!(
        answers(&report, "200") + answers(&report, "555"),
        20_000,
        "{report}"
    );
    // Six standard deviations: by chance in one of 500 million runs.
    assert!((share - 30.0).abs() <= 2.0, "{share}");

    let more = ["--count", "20000", "--slow-ms", "1000"];
    let report = count("http://orders/delay", "96", &more);
    let share = 100.0 * report["slow"].as_f64().expect("a number") / 20_000.0;
    println!("delays: {share:.2} % of 20,000 where 10 % are asked: {report}");
    assert_eq!(answers(&report, "200"), 20_000, "{report}");
    assert!((share - 10.0).abs() <= 1.0, "{share}");

    // What gets copies is broken, and nobody notices.
    orders.tell("v2", 503);
    let (before, _) = orders.seen("v2");
    let report = count("http://orders/mirror", "8", &["--count", "5000"]);
    assert_eq!(by(&report, "v1"), 5_000, "{report}");
    assert_eq!(answers(&report, "200"), 5_000, "{report}");
    let copies = until("the copies have arrived", || {
        let copies = orders.seen("v2").0 - before;
        (copies >= 2_300).then_some(copies)
    });
    println!("mirror: {copies} copies of 5,000 where 50 % are asked");
    assert!(copies <= 2_700, "{copies}");
    orders.tell("v2", 200);

    // Each of a chain of three has less time than the one before.
    let chain = "http://orders/via/orders-v1/via/orders-v2/end?delay=200";
    let said = orders.call(chain, &[]);
    let deadlines: Vec<u64> = said
        .lines()
        .filter_map(|line| {
            let (_, rest) = line
                .split_once("Deadline=")
                .or_else(|| line.split_once("X-Envoy-Expected-Rq-Timeout-Ms:"))?;
            rest.trim().parse().ok()
        })
        .collect();
    println!("deadlines along the chain: {deadlines:?} ms");
    let [first, second, third] = deadlines[..] else {
        panic!("three hops, three deadlines: {said}");
    };
    assert!(first <= 3_000, "{said}");
    // The application hands on what it was given: what a hop takes itself is seen by the hops before it.
    assert!(second < first && third < second, "{said}");
    let began = Instant::now();
    let slow = "http://orders/via/orders-v1/via/orders-v2/end?delay=2000";
    let said = orders.call(slow, &[]);
    println!(
        "a chain that takes 6 s, of which 3 s are allowed: {:?}",
        began.elapsed()
    );
    assert_eq!(status(&said), Some("504"), "{said}");
}
