//! Who asks, through a waypoint: the trace of the client reaches the application as it was sent, the client's identity the
//! logs of the server's node and the policy; what a client writes into its request of who it is changes neither.

use karst_test_cluster::{
    Cluster,
    cluster::run,
    eventually,
    orders::{Orders, status},
    pods::shell,
};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const FORGED: &str = "spiffe://cluster.local/ns/identity/sa/boss";
const CLIENT: &str = "spiffe://cluster.local/ns/identity/sa/default";

/// Only `boss` deletes.
const OBJECTS: &str = "
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: boss}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-the-boss-deletes}
spec:
  targetRefs: [{group: \"\", kind: Service, name: orders}]
  action: DENY
  rules:
    - from: [{source: {notServiceAccounts: [boss]}}]
      to: [{operation: {methods: [DELETE]}}]
";

#[test]
fn trace_and_identity_pass_a_waypoint_and_forged_ones_do_not() {
    let cluster = Cluster::get();
    let orders = Orders::open("identity");
    orders.namespace.apply(OBJECTS);
    let boss = shell("boss", "n1").replace("spec:\n", "spec:\n  serviceAccountName: boss\n");
    orders.namespace.apply(&boss);
    orders.wait_for(&["boss"]);

    // The application gets the trace, and what belongs to it.
    let (traceparent, tracestate) = (format!("traceparent:{TRACE}"), "tracestate:vendor=opaque");
    let seen = orders.call("http://orders/", &["-H", &traceparent, "-H", tracestate]);
    for expected in [
        format!("RequestHeader=Traceparent:{TRACE}\n"),
        "RequestHeader=Tracestate:vendor=opaque\n".to_owned(),
    ] {
        assert!(seen.contains(&expected), "{expected:?} missing in {seen}");
    }

    // What the client says of itself is not believed.
    let forged = [
        format!("karst-client:{FORGED};10.9.9.9:1"),
        format!("x-forwarded-client-cert:By={FORGED};URI={FORGED}"),
        "forwarded:for=10.9.9.9".to_owned(),
        "baggage:k8s.namespace.name=identity,service.name=boss".to_owned(),
    ];
    let words: Vec<&str> = forged.iter().flat_map(|line| ["-H", line]).collect();
    let delete = [&["--method", "DELETE"], &words[..]].concat();
    eventually("the client may not delete, whatever it says", || {
        status(&orders.call("http://orders/", &delete)) == Some("403")
    });
    let said = cluster.exec(
        "identity/boss",
        &[
            "karst-echo",
            "client",
            "--method",
            "DELETE",
            "http://orders/",
        ],
    );
    assert_eq!(
        status(&String::from_utf8_lossy(&said.stdout)),
        Some("200"),
        "the boss may"
    );
    let both = |orders: &Orders| {
        let asked = ["v1", "v2"].map(|version| {
            let url = format!("http://orders-{version}/");
            let answered = orders.call(&url, &words);
            status(&answered) == Some("200")
        });
        asked.iter().all(|answered| *answered)
    };
    assert!(
        both(&orders),
        "forged headers are no reason to refuse a GET"
    );

    // A connection is logged when it ends: with its pod.
    run(cluster
        .kubectl()
        .args(["-n", "identity", "delete", "pods", "v1", "v2", "--now"]));
    let behind = |log: &str, identity: &str| {
        let mut lines = log.lines();
        lines.any(|line| {
            let (_, client) = line.split_once("client.identity").unwrap_or_default();
            let client = client.trim_start_matches(['=', '"']);
            let ours = line.contains("inbound") && line.contains("ns/identity/sa/waypoint");
            ours && client.starts_with(identity)
        })
    };
    eventually(
        "the server's agent names the client behind the waypoint",
        || behind(&cluster.agent_logs(), CLIENT),
    );
    let log = cluster.agent_logs();
    let invented = log
        .lines()
        .filter(|line| line.contains("client.addr=10.9.9.9"));
    assert_eq!(invented.collect::<Vec<_>>(), [""; 0]);
}
