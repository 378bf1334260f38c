//! Two hundred WebSockets and fifty gRPC streams through a waypoint outlive five hundred changes of its configuration.

use karst_test_cluster::{Cluster, orders::Orders};
use serde_json::{Value, json};

/// Changes in all, and of one call of kubectl.
const CHANGES: usize = 500;
const BATCH: usize = 25;

#[test]
fn streams_outlive_five_hundred_changes() {
    let cluster = Cluster::get();
    let orders = Orders::open("streams");
    orders.route(50, 50);
    let pause = ["--pause-ms", "500", "--duration", "600"];
    let sockets = ["ws://orders/", "--connections", "200"];
    let streams = ["stream://orders/", "--connections", "5", "--at-once", "10"];
    let sockets = orders.requests(&[&sockets[..], &pause].concat());
    let streams = orders.requests(&[&streams[..], &pause].concat());

    for batch in 0..CHANGES / BATCH {
        let items: Vec<_> = (0..BATCH).map(|number| changed(batch, number)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        cluster.apply_in("streams", &list.to_string());
    }
    // The last change has arrived.
    let last = format!("x-change:{}", CHANGES / BATCH - 1);
    karst_test_cluster::eventually("the last change holds", || {
        orders
            .call("http://orders/by-7", &["-H", &last])
            .contains("Hostname=v2")
    });
    for (load, count) in [(sockets, 200), (streams, 5)] {
        let report = load.stop(cluster);
        println!("through {CHANGES} changes: {report}");
        assert_eq!(report["failures"], 0, "{report}");
        assert_eq!(report["connections"], count, "{report}");
    }
}

/// The first is a policy, all others are routes of the service.
fn changed(batch: usize, number: usize) -> Value {
    if number == 0 {
        return json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "never"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                "action": "DENY",
                "rules": [{"to": [{"operation": {"paths": [format!("/forbidden-{batch}")]}}]}],
            },
        });
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": format!("by-{number}")},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "orders", "port": 80}],
            "rules": [{
                "matches": [{
                    "path": {"type": "Exact", "value": format!("/by-{number}")},
                    "headers": [{"name": "x-change", "value": batch.to_string()}],
                }],
                "backendRefs": [{"name": "orders-v2", "port": 80}],
            }],
        },
    })
}
