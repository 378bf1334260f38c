//! A namespace with running pods is labelled: they are in the mesh, none restarts, pages are served, and nothing of them
//! can be read between the nodes.

use karst_test_cluster::{Capture, Cluster, Shop, capture};

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
    let captures = ["n1", "n2"].map(|node| Capture::start(cluster, node, "tcp or udp"));
    for _ in 0..5 {
        shop.expect_page(word);
    }
    captures
        .map(Capture::stop)
        .iter()
        .any(|packets| capture::contains(packets, word))
}

#[test]
fn policy_by_service_account_holds() {
    let cluster = Cluster::get();
    let shop = Shop::open("policy-shop");
    let reach = |port: &str| {
        let target = format!("{port}.{}", shop.namespace.name());
        let customer = format!("{}/customer", shop.namespace.name());
        let said = cluster.exec(&customer, &["karst-echo", "tcp", &target]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    shop.namespace.label();
    shop.namespace.wait_enrolled();
    // The order service may use the databases, and the front end the order service.
    shop.expect_page("allowed");
    // The customer may use neither.
    let denied = reach("redis:6379");
    assert!(
        denied.contains("reset"),
        "the customer reached Redis: {denied}"
    );
}
