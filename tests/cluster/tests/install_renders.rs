//! `karst install` renders the chart by itself: what comes out is what Helm makes of it, whatever the values.

use std::collections::BTreeMap;

use karst_test_cluster::{Cluster, cluster::run};
use serde_json::Value;

/// Sets of values, each touching other branches of the templates.
const VALUES: &[&[&str]] = &[
    &[],
    &[
        "controller.replicas=3",
        "hub=registry.example/mesh",
        "tag=v1",
    ],
    &[
        "meshConfig.trustDomain=x.example",
        "rootNamespace=istio-system",
    ],
    &[
        "controller.podAnnotations.a=b",
        "agent.podAnnotations.c=d",
        "network=n1",
    ],
    &[
        "webhook.failurePolicy=Ignore",
        "logging.format=json",
        "agent.cni.binDir=/home/kubernetes/bin",
    ],
];

#[test]
fn helm_and_karst_render_the_same_objects() {
    let cluster = Cluster::get();
    for values in VALUES {
        let words: Vec<String> = values
            .iter()
            .chain(&["namespace.create=true"])
            .flat_map(|value| ["--set".to_owned(), (*value).to_owned()])
            .collect();
        let ours = run(cluster
            .karst()
            .args(["install", "--print", "--skip-crds"])
            .args(&words));
        let mut helm = cluster.helm();
        helm.args(["template", "karst", "manifests/chart", "-n", "karst-system"]);
        let helms = run(helm.args(&words));
        assert_eq!(
            objects(&ours.stdout),
            objects(&helms.stdout),
            "with {values:?}"
        );
    }
}

/// Objects by kind and name. MeshConfig is text in a ConfigMap: compared for what it says.
fn objects(yaml: &[u8]) -> BTreeMap<String, Value> {
    let text = std::str::from_utf8(yaml).expect("text");
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let objects = documents.into_iter().filter(Value::is_object);
    objects
        .map(|mut object| {
            if let Some(mesh) = object.pointer("/data/mesh").and_then(Value::as_str) {
                object["data"]["mesh"] = serde_saphyr::from_str(mesh).expect("YAML");
            }
            let meta = &object["metadata"];
            (
                format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"]),
                object,
            )
        })
        .collect()
}
