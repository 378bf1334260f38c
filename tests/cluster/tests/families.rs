//! Both address families between pods of two nodes: by pod and by service, nothing can be read on the wire, and policy by
//! identity holds whichever the client chooses. Where the cluster has IPv4 alone, for that.

use std::net::{IpAddr, SocketAddr};

use karst_test_cluster::{Cluster, Pair, eventually};
use karst_test_node::capture::contains;

#[test]
fn each_family_is_tunnelled_and_under_policy() {
    let cluster = Cluster::get();
    let pair = Pair::outside("families");
    let targets = targets(cluster);
    println!("{targets:?}");
    let say = |number: usize, target: &SocketAddr, when: &str| {
        let word = format!("{when}-{number}-marker");
        let target = target.to_string();
        let words = ["karst-echo", "tcp", &target, "--text", &word, "--show"];
        let said = cluster.exec("families/client", &words);
        let echoed = String::from_utf8_lossy(&said.stdout).contains(&word);
        (word, echoed)
    };

    // kube-proxy may not have heard of the endpoint yet.
    eventually("every target is reached", || {
        let mut all = targets.iter();
        all.all(|target| pair.reaches_at("client", &target.to_string()))
    });
    let capture = cluster.capture("n1", "tcp");
    for (number, target) in targets.iter().enumerate() {
        let (_, echoed) = say(number, target, "plain");
        assert!(echoed, "{target} does not echo outside the mesh");
    }
    // Everybody reaches a server that nobody protects.
    assert!(pair.reaches("stranger"));
    pair.enter();
    let mut words = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let (word, echoed) = say(number, target, "meshed");
        assert!(echoed, "{target} does not echo in the mesh");
        words.push(word);
        let refused = !pair.reaches_at("stranger", &target.to_string());
        assert!(refused, "{target} lets the stranger in");
    }
    let captured = capture.stop();
    for (number, target) in targets.iter().enumerate() {
        let word = format!("plain-{number}-marker");
        assert!(contains(&captured, &word), "control: {target} in clear");
    }
    for word in &words {
        assert!(!contains(&captured, word), "{word} can be read");
    }
    pair.namespace.unlabel();
    pair.namespace.wait_released();
    eventually("the stranger is let in again", || pair.reaches("stranger"));
}

/// The server's addresses and those of its service, of each family.
fn targets(cluster: &Cluster) -> Vec<SocketAddr> {
    let pod = cluster.object(&["pod", "server", "-n", "families"]);
    let service = cluster.object(&["service", "server", "-n", "families"]);
    let of_pod = pod["status"]["podIPs"].as_array().expect("addresses");
    let of_service = service["spec"]["clusterIPs"].as_array().expect("addresses");
    let all = of_pod.iter().map(|one| &one["ip"]).chain(of_service);
    let targets: Vec<SocketAddr> = all
        .map(|address| address.as_str().expect("text"))
        .map(|address| SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 9000))
        .collect();
    assert_eq!(of_pod.len(), of_service.len(), "{targets:?}");
    targets
}
