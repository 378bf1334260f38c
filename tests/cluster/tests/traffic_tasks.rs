//! Istio's tasks of traffic management on the cluster, each written from its description, in the order of its pages:
//! request routing, fault injection, traffic shifting, request timeouts, circuit breaking, mirroring. Two versions of a
//! service are subsets of it. Locality failover is in `traffic_resilience`; tokens, external authorization and TLS
//! origination are in `traffic_tokens`.

use std::time::{Duration, Instant};

use karst_test_cluster::{
    eventually,
    orders::{Orders, SUBSETS, status},
    until,
};
use serde_json::Value;

fn rules(http: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: orders}}
spec:
  hosts: [orders]
  http:
{http}
"
    )
}

const V1: &str = "    - route:
        - destination: {host: orders, subset: v1}
";

const JASON: &str = "    - match:
        - headers: {end-user: {exact: jason}}
";

/// So many answers of a pod to 200 requests.
fn share(orders: &Orders, pod: &str, more: &[&str]) -> u64 {
    let words = ["http://orders/", "--connections", "2", "--count", "200"];
    let report = orders.requests(&[&words[..], more].concat()).report();
    match report["statuses"]["200"] == 200 {
        true => report["answered_by"][pod].as_u64().unwrap_or(0),
        false => u64::MAX,
    }
}

#[test]
fn istios_tasks_of_traffic_management() {
    let orders = Orders::open("tasks");
    let apply = |yaml: &str| orders.namespace.apply(yaml);
    let jason = ["-H", "end-user:jason"];
    apply(SUBSETS);

    // Request routing: everybody to v1; then one user to v2.
    apply(&rules(V1));
    eventually("everybody gets v1", || share(&orders, "v1", &[]) == 200);
    let to_v2 =
        format!("{JASON}      route:\n        - destination: {{host: orders, subset: v2}}\n{V1}");
    apply(&rules(&to_v2));
    eventually("jason gets v2", || share(&orders, "v2", &jason) == 200);
    assert_eq!(share(&orders, "v1", &[]), 200, "nobody else does");

    // Fault injection: a delay for one user, then an abort.
    let delay = "      fault: {delay: {percentage: {value: 100.0}, fixedDelay: 2s}}\n";
    let to_v1 = "      route:\n        - destination: {host: orders, subset: v1}\n";
    apply(&rules(&format!("{JASON}{delay}{to_v1}{V1}")));
    eventually("jason waits", || {
        let began = Instant::now();
        let said = orders.call("http://orders/", &jason);
        status(&said) == Some("200") && began.elapsed() >= Duration::from_secs(2)
    });
    let words = ["http://orders/", "--count", "20", "--slow-ms", "1900"];
    let report = orders.requests(&words).report();
    assert_eq!(report["slow"], 0, "nobody else waits: {report}");
    let abort = "      fault: {abort: {percentage: {value: 100.0}, httpStatus: 500}}\n";
    apply(&rules(&format!("{JASON}{abort}{to_v1}{V1}")));
    eventually("jason gets an error", || {
        status(&orders.call("http://orders/", &jason)) == Some("500")
    });
    assert_eq!(share(&orders, "v1", &[]), 200, "nobody else does");

    // Traffic shifting: half and half, then all.
    let shares = |v1: u32, v2: u32| {
        rules(&format!(
            "    - route:
        - {{destination: {{host: orders, subset: v1}}, weight: {v1}}}
        - {{destination: {{host: orders, subset: v2}}, weight: {v2}}}
"
        ))
    };
    apply(&shares(50, 50));
    eventually("half and half", || {
        (70..=130).contains(&share(&orders, "v2", &[]))
    });
    apply(&shares(0, 100));
    eventually("all to v2", || share(&orders, "v2", &[]) == 200);

    // Request timeouts: half a second for an application that takes two.
    let slow = "http://orders/?delay=2000";
    assert_eq!(status(&orders.call(slow, &[])), Some("200"));
    apply(&rules(
        &V1.replace("    - route", "    - timeout: 0.5s\n      route"),
    ));
    eventually("what takes longer gets a 504", || {
        status(&orders.call(slow, &[])) == Some("504")
    });
    let report = orders.requests(&[slow, "--count", "5"]).report();
    assert_eq!(report["statuses"]["504"], 5, "{report}");
    let slowest = report["max_us"].as_u64().expect("microseconds");
    assert!(slowest < 1_900_000, "at its time: {report}");

    circuit_breaking(&orders);
    mirroring(&orders);
}

/// One connection, one request that waits: a second client trips the breaker now and then, a third most of the time.
fn circuit_breaking(orders: &Orders) {
    let broken = format!(
        "{SUBSETS}  trafficPolicy:
    connectionPool:
      tcp: {{maxConnections: 1}}
      http: {{http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}
    outlierDetection: {{consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}}
"
    );
    orders.namespace.apply(&rules(V1));
    let load = |connections: &str| -> Value {
        let words = ["http://orders/?delay=20", "--count", "100"];
        let more = ["--connections", connections];
        orders.requests(&[&words[..], &more].concat()).report()
    };
    let failed = |report: &Value| report["statuses"]["503"].as_u64().unwrap_or(0);
    eventually("without a breaker all is well", || failed(&load("4")) == 0);
    orders.namespace.apply(&broken);
    eventually("four clients trip it", || failed(&load("4")) > 10);
    let one = load("1");
    assert_eq!(failed(&one), 0, "one client does not: {one}");
    orders.namespace.apply(SUBSETS);
    eventually("all is as before", || failed(&load("4")) == 0);
}

/// All to v1, and a copy of each to v2.
fn mirroring(orders: &Orders) {
    let mirrored = format!(
        "{V1}      mirror: {{host: orders, subset: v2}}\n      mirrorPercentage: {{value: 100.0}}\n"
    );
    orders.namespace.apply(&rules(&mirrored));
    let (before, _) = orders.seen("v2");
    eventually("copies arrive", || {
        orders.call("http://orders/", &[]);
        orders.seen("v2").0 > before
    });
    let (before, _) = orders.seen("v2");
    assert_eq!(share(orders, "v1", &[]), 200);
    let copies = until("all copies arrived", || {
        let copies = orders.seen("v2").0 - before;
        (copies >= 200).then_some(copies)
    });
    assert!((200..=201).contains(&copies), "{copies}");
}
