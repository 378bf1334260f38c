//! How long a big mesh takes to load, and how much memory it holds: 10,000 services, 100,000 pods.
//!
//! Run with `cargo run --release -p karst-index --example scale`.
#![expect(clippy::print_stdout, reason = "a measurement that prints")]

use std::{fs, time::Instant};

use karst_index::{Event, Index, IndexConfig};
use karst_k8s_api::{Kind, Object};
use serde_json::{Value, json};

const SERVICES: usize = 10_000;
const PODS_PER_SERVICE: usize = 10;
const NAMESPACES: usize = 200;

fn main() {
    let mut events = namespaces_and_nodes();
    for number in 0..SERVICES {
        events.push(service(number));
        events.extend((0..PODS_PER_SERVICE).map(|replica| pod(number, replica)));
    }
    let count = events.len();
    let before = resident_megabytes();
    let mut index = Index::new(IndexConfig::default());
    let start = Instant::now();
    let delta = index.handle_all(events);
    println!(
        "load: {count} objects in {:?}; {:?}",
        start.elapsed(),
        index.stats()
    );
    drop(delta);
    println!(
        "resident: {before} MB with the objects, {} MB with the index instead",
        resident_megabytes()
    );
    let start = Instant::now();
    for replica in 0..1000 {
        let delta = index.handle(pod(replica, 3));
        assert!(delta.is_empty(), "the same object again changes nothing");
    }
    println!(
        "unchanged pod: {:?} each (with making it)",
        start.elapsed() / 1000
    );
    let start = Instant::now();
    let delta = index.handle(namespace(0, "none"));
    println!(
        "un-label a namespace: {:?}, {} nodes told",
        start.elapsed(),
        delta.node_workloads.len()
    );
}

fn apply(kind: Kind, object: Value) -> Event {
    Event::Apply(Object::deserialize(kind, object).expect("written above"))
}

fn namespace(number: usize, mode: &str) -> Event {
    let labels = json!({"istio.io/dataplane-mode": mode});
    apply(
        Kind::Namespace,
        json!({"metadata": {"name": format!("ns{number}"), "labels": labels}}),
    )
}

fn namespaces_and_nodes() -> Vec<Event> {
    let node = |n: usize| json!({"metadata": {"name": format!("n{n}"), "labels": {"topology.kubernetes.io/zone": format!("z{}", n % 3)}}});
    let nodes = (0..1000).map(|number| apply(Kind::Node, node(number)));
    (0..NAMESPACES)
        .map(|number| namespace(number, "ambient"))
        .chain(nodes)
        .collect()
}

fn service(number: usize) -> Event {
    apply(
        Kind::Service,
        json!({
            "metadata": {"name": format!("s{number}"), "namespace": format!("ns{}", number % NAMESPACES)},
            "spec": {"clusterIP": format!("10.96.{}.{}", number / 256, number % 256), "selector": {"app": format!("s{number}")},
                     "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        }),
    )
}

fn pod(number: usize, replica: usize) -> Event {
    let position = number * PODS_PER_SERVICE + replica;
    let labels = json!({"app": format!("s{number}"), "version": "v1", "app.kubernetes.io/part-of": "scale", "pod-template-hash": "abc"});
    apply(
        Kind::Pod,
        json!({
            "metadata": {"name": format!("s{number}-abc-{replica}"), "namespace": format!("ns{}", number % NAMESPACES),
                         "uid": format!("uid-{position}"), "labels": labels,
                         "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("s{number}-abc"), "uid": "r", "controller": true}]},
            "spec": {"nodeName": format!("n{}", position % 1000), "serviceAccountName": format!("s{number}"),
                     "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}],
                                     "readinessProbe": {"httpGet": {"port": "http"}}}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.{}.{}.{}", position >> 16, (position >> 8) & 255, position & 255)}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }),
    )
}

fn resident_megabytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or_default()
        / 1024
}
