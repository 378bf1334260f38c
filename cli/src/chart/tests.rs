//! The chart as it is: everything renders, and what users get wrong is told.

use std::{collections::BTreeSet, fs};

use super::*;

fn rendered(set: &[&str]) -> Vec<Value> {
    let args = ValueArgs {
        set: set.iter().map(|&text| text.to_owned()).collect(),
        values: Vec::new(),
    };
    let values = values(args.over(json!({})).unwrap()).unwrap();
    objects("karst-system", &values).unwrap()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn every_template_renders_with_the_chart_s_own_values() {
    let objects = rendered(&["namespace.create=true"]);
    let kinds: Vec<&str> = objects
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    assert_eq!(kinds.first(), Some(&"Namespace"));
    for object in &objects {
        let place = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(object["apiVersion"].is_string(), "{place}");
        assert!(object["metadata"]["name"].is_string(), "{place}");
    }
    let agent = find(&objects, "DaemonSet", "karst-agent");
    assert_eq!(
        agent["spec"]["template"]["spec"]["containers"][0]["image"],
        json!(format!("karst.test/agent:{VERSION}"))
    );
}

#[test]
fn values_arrive_where_they_are_said_to() {
    let objects = rendered(&[
        "hub=registry.example/mesh",
        "tag=v9",
        "controller.replicas=3",
        "rootNamespace=istio-system",
        "agent.cni.binDir=/home/kubernetes/bin",
        "controller.podAnnotations.team=a",
        "meshConfig.trustDomain=x.example",
    ]);
    let controller = find(&objects, "Deployment", "karst-controller");
    assert_eq!(controller["spec"]["replicas"], 3);
    let template = &controller["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["team"], "a");
    assert_eq!(
        template["spec"]["containers"][0]["image"],
        "registry.example/mesh/controller:v9"
    );
    let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "ROOT_NAMESPACE", "value": "istio-system"})));
    let mesh = find(&objects, "ConfigMap", "istio");
    assert_eq!(mesh["metadata"]["namespace"], "istio-system");
    let mesh: Value = serde_saphyr::from_str(mesh["data"]["mesh"].as_str().unwrap()).unwrap();
    assert_eq!(mesh, json!({"trustDomain": "x.example"}));
    let agent = find(&objects, "DaemonSet", "karst-agent").to_string();
    assert!(agent.contains("/home/kubernetes/bin"));
}

#[test]
fn rules_and_dashboards_are_those_of_the_sources() {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/");
    let read = |path: &str| fs::read_to_string(format!("{manifests}{path}")).unwrap();
    let kinds = |set: &[&str], kind: &str| {
        let objects = rendered(set).into_iter();
        objects.filter(|object| object["kind"] == kind).count()
    };
    assert_eq!(kinds(&[], "PrometheusRule"), 0);
    assert_eq!(
        kinds(
            &["telemetry.prometheusRules.enabled=true"],
            "PrometheusRule"
        ),
        2
    );
    let objects = rendered(&[
        "telemetry.prometheusRules.enabled=true",
        "telemetry.prometheusRules.labels.release=prom",
        "telemetry.dashboards.enabled=true",
        "telemetry.dashboards.namespace=monitoring",
    ]);
    for file in ["recording", "alerts"] {
        let rule = find(&objects, "PrometheusRule", &format!("karst-{file}"));
        assert_eq!(rule["metadata"]["labels"]["release"], "prom");
        assert_eq!(rule["metadata"]["namespace"], "karst-system");
        let source: Value =
            serde_saphyr::from_str(&read(&format!("prometheus/{file}.yaml"))).unwrap();
        assert_eq!(rule["spec"], source, "{file}");
    }
    let alerts = find(&objects, "PrometheusRule", "karst-alerts").to_string();
    assert!(alerts.contains("A certificate on {{ $labels.instance }} ends"));
    let map = find(&objects, "ConfigMap", "karst-dashboards");
    assert_eq!(map["metadata"]["namespace"], "monitoring");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let boards = fs::read_dir(format!("{manifests}dashboards")).unwrap();
    let mut names = BTreeSet::new();
    for board in boards {
        let name = board.unwrap().file_name().into_string().unwrap();
        let shown = map["data"][format!("karst-{name}")].as_str();
        assert_eq!(shown, Some(&*read(&format!("dashboards/{name}"))), "{name}");
        names.insert(name);
    }
    assert_eq!(map["data"].as_object().unwrap().len(), names.len());
}

#[test]
fn names_of_objects_are_unique() {
    let objects = rendered(&[
        "namespace.create=true",
        "meshConfig.trustDomain=x",
        "telemetry.prometheusRules.enabled=true",
        "telemetry.dashboards.enabled=true",
    ]);
    let names: Vec<String> = objects
        .iter()
        .map(|object| {
            let meta = &object["metadata"];
            format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"])
        })
        .collect();
    let unique: BTreeSet<&String> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
}

#[test]
fn wrong_values_are_told_together() {
    let args = ValueArgs {
        set: [
            "controler.replicas=2",
            "controller.replicas=none",
            "webhook.failurePolicy=Maybe",
            "hub=",
            "telemetry.dashboards.labels.grafana_dashboard=1",
        ]
        .map(str::to_owned)
        .into(),
        values: Vec::new(),
    };
    let Err(ChartError::Values(mistakes)) = values(args.over(json!({})).unwrap()) else {
        panic!("values were taken");
    };
    assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
}

#[test]
fn assignments_are_read_as_helm_reads_them() {
    assert_eq!(assigned("a.b=1").unwrap(), json!({"a": {"b": 1}}));
    assert_eq!(assigned("a=1.0").unwrap(), json!({"a": "1.0"}));
    assert_eq!(assigned("a=true").unwrap(), json!({"a": true}));
    assert_eq!(assigned("a=x=y").unwrap(), json!({"a": "x=y"}));
    assert!(assigned("a").is_err());
    assert!(assigned("a..b=1").is_err());
}

#[test]
fn the_chart_has_the_program_s_version_and_a_schema_for_every_value() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/chart/Chart.yaml");
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(chart).unwrap()).unwrap();
    assert_eq!(chart["version"], VERSION);
    assert_eq!(chart["appVersion"], VERSION);
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert_eq!(schema::mistakes(&schema, &defaults()), Vec::<String>::new());
    assert!(defaults()["controller"]["replicas"].is_i64());
}

#[test]
fn secrets_are_read_where_they_are_named_and_nowhere_else() {
    let given = json!({"credentials": [{"namespace": "shop", "name": "web-client"}]});
    let of = |values: Value| -> Vec<Value> {
        let all = objects("karst-system", &super::values(values).unwrap()).unwrap();
        let named = |one: &Value| one["metadata"]["name"] == "karst-credential-web-client";
        all.into_iter().filter(named).collect()
    };
    assert_eq!(of(json!({})), Vec::<Value>::new(), "none by default");
    let [role, binding] = &of(given)[..] else {
        panic!("not a role and its binding");
    };
    assert_eq!(role["metadata"]["namespace"], "shop");
    assert_eq!(
        role["rules"],
        json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["web-client"], "verbs": ["list", "watch"]}])
    );
    assert_eq!(binding["metadata"]["namespace"], "shop");
    assert_eq!(binding["subjects"][0]["namespace"], "karst-system");
    let wrong = json!({"credentials": [{"namespace": "shop"}]});
    assert!(
        values(wrong).is_err(),
        "all Secrets of a namespace cannot be said"
    );
}
