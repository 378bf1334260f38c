//! `karst install` renders the chart by itself: what comes out is what Helm makes of it, whatever the values.

use std::collections::BTreeMap;

use karst_test_cluster::{Cluster, cluster::run, eventually};
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
    &[
        "telemetry.prometheusRules.enabled=true",
        "telemetry.prometheusRules.labels.release=prom",
        "telemetry.dashboards.enabled=true",
        "telemetry.dashboards.namespace=monitoring",
        "telemetry.dashboards.annotations.grafana_folder=Karst",
    ],
];

/// The operator's definition, as much of it as our rules need.
const OPERATOR: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: prometheusrules.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PrometheusRule, listKind: PrometheusRuleList, plural: prometheusrules, singular: prometheusrule}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// Goes with its definition, and all its objects with it.
struct Operator;

impl Drop for Operator {
    fn drop(&mut self) {
        let words = ["delete", "crd", "prometheusrules.monitoring.coreos.com"];
        let _gone = Cluster::get().kubectl().args(words).output();
    }
}

/// Without the operator nothing is changed and the cause is said; with it the API server takes rules and dashboards.
#[test]
fn rules_need_the_operator_and_are_taken() {
    let cluster = Cluster::get();
    let install = || {
        let mut karst = cluster.karst();
        karst.args(["install", "--dry-run", "--skip-crds"]).args([
            "--set",
            "telemetry.prometheusRules.enabled=true",
            "--set",
            "telemetry.dashboards.enabled=true",
        ]);
        let said = karst.output().expect("karst starts");
        let text = [said.stdout, said.stderr].concat();
        (
            said.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (went_well, said) = install();
    assert!(
        !went_well && said.contains("prometheusrules.monitoring.coreos.com"),
        "{said}"
    );
    cluster.apply(OPERATOR);
    let _operator = Operator;
    let mut said = String::new();
    eventually("the API server takes rules and dashboards", || {
        let (went_well, now) = install();
        said = now;
        eprintln!("{said}");
        went_well
    });
    for object in [
        "PrometheusRule karst-system/karst-alerts",
        "ConfigMap karst-system/karst-dashboards",
    ] {
        assert!(said.contains(&format!("{object}: accepted")), "{said}");
    }
}

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
