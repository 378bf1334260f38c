//! A namespace with running pods is labelled: they are in the mesh, none restarts, pages are served, and nothing of them
//! can be read between the nodes.

use karst_test_cluster::{Cluster, Shop};
use karst_test_node::capture::{Capture, contains};

#[test]
fn running_pods_enter_and_leave_the_mesh() {
    let cluster = Cluster::get();
    let shop = Shop::open("enroll-shop");
    let before = cluster.lives(shop.namespace.name());

    assert!(
        is_readable(cluster, &shop, "marker-before"),
        "without the mesh the capture must find the page's address, else it proves nothing"
    );

    shop.namespace.label();
    shop.namespace.wait_enrolled();
    assert!(
        !is_readable(cluster, &shop, "marker-within"),
        "the page's address was read between the nodes"
    );
    assert_eq!(
        cluster.lives(shop.namespace.name()),
        before,
        "pods restarted"
    );

    shop.namespace.unlabel();
    shop.namespace.wait_released();
    assert!(
        is_readable(cluster, &shop, "marker-after"),
        "outside the mesh again, traffic is as it was"
    );
    assert_eq!(
        cluster.lives(shop.namespace.name()),
        before,
        "pods restarted"
    );
}

/// Whether a page's address can be read on the links of both nodes, or of either.
fn is_readable(cluster: &Cluster, shop: &Shop, word: &str) -> bool {
    let captures = ["n1", "n2"].map(|node| cluster.capture(node, "tcp or udp"));
    for _ in 0..5 {
        shop.expect_page(word);
    }
    captures
        .map(Capture::stop)
        .iter()
        .any(|packets| contains(packets, word))
}

#[test]
fn policy_by_service_account_holds() {
    let shop = Shop::open("policy-shop");
    assert!(
        answer_of_redis(&shop) > 0,
        "without the mesh anybody reaches Redis"
    );
    shop.namespace.label();
    shop.namespace.wait_enrolled();
    // The order service may use the databases, and the front end the order service.
    shop.expect_page("allowed");
    assert_eq!(answer_of_redis(&shop), 0, "the customer reached Redis");
}

/// How many bytes Redis answers the customer.
fn answer_of_redis(shop: &Shop) -> u64 {
    let name = shop.namespace.name();
    let target = format!("redis.{name}:6379");
    let command = ["karst-echo", "tcp", &target, "--text", "PING\r\n"];
    let said = Cluster::get().exec(&format!("{name}/customer"), &command);
    let report: serde_json::Value = serde_json::from_slice(&said.stdout).expect("a report");
    report["received"].as_u64().expect("a number of bytes")
}

#[test]
fn a_node_that_loses_power_brings_its_pods_back_into_the_mesh() {
    let cluster = Cluster::get();
    let shop = Shop::open("reboot-shop");
    let name = shop.namespace.name();
    shop.namespace.label();
    shop.namespace.wait_enrolled();
    let captures = ["n1", "n2"].map(|node| cluster.capture(node, "tcp or udp"));
    // On the node that stays: calls the other one's order service all the time, whatever comes of it.
    let calls = format!(
        "while :; do timeout 2 wget -q -O /dev/null http://orders.{name}:8080/marker-reboot && echo answered; sleep 0.1; done"
    );
    let mut caller = cluster.spawn(&format!("{name}/deploy/front"), &["sh", "-c", &calls]);
    cluster.reboot("n2");
    shop.namespace.wait_enrolled();
    shop.wait_for_page("marker-reboot");
    let over = caller.try_wait().expect("a child");
    assert!(over.is_none(), "the calls go on until here");
    caller.kill().expect("it runs");
    let said = caller.wait_with_output().expect("it has ended").stdout;
    let answered = String::from_utf8_lossy(&said).lines().count();
    assert!(answered > 10, "control: {answered} calls were answered");
    let readable = captures
        .map(Capture::stop)
        .iter()
        .any(|packets| contains(packets, "marker-reboot"));
    assert!(!readable, "a call was read between the nodes");
}
