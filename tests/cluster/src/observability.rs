//! OpenTelemetry's collector and Prometheus in a namespace outside the mesh, and the mesh configuration that names them.

use serde_json::{Value, json};

use crate::{
    Cluster, Namespace,
    wait::{eventually, until},
};

/// Where both are.
const NAMESPACE: &str = "observability";
/// Where Karst, and with it the mesh configuration, is.
const SYSTEM: &str = "karst-system";

const COLLECTOR: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: collector}
data:
  config.yaml: |
    receivers:
      otlp:
        protocols:
          grpc: {endpoint: '0.0.0.0:4317'}
          http: {endpoint: '0.0.0.0:4318'}
    exporters:
      file: {path: /tmp/all.json}
    service:
      telemetry: {metrics: {level: none}}
      pipelines:
        traces: {receivers: [otlp], exporters: [file]}
        logs: {receivers: [otlp], exporters: [file]}
        metrics: {receivers: [otlp], exporters: [file]}
---
apiVersion: v1
kind: Service
metadata: {name: collector}
spec:
  selector: {app: collector}
  ports: [{name: grpc, port: 4317}, {name: http, port: 4318}, {name: wrong, port: 4319}]
---
apiVersion: v1
kind: Pod
metadata: {name: collector, labels: {app: collector}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: otelcol
      image: karst.test/otelcol:1
      command: [/otelcol, --config=/etc/collector/config.yaml]
      readinessProbe: {tcpSocket: {port: 4317}, periodSeconds: 1}
      volumeMounts: [{name: config, mountPath: /etc/collector}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: config, configMap: {name: collector}}, {name: tmp, emptyDir: {}}]
";

const PROMETHEUS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: prometheus, namespace: observability}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-prometheus}
rules: [{apiGroups: [''], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: test-prometheus}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: observability}]
---
apiVersion: v1
kind: Service
metadata: {name: prometheus, namespace: observability}
spec: {selector: {app: prometheus}, ports: [{name: http, port: 9090}]}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: observability, labels: {app: prometheus}}
spec:
  serviceAccountName: prometheus
  terminationGracePeriodSeconds: 1
  containers:
    - name: prometheus
      image: karst.test/prometheus:1
      command:
        - /prometheus
        - --config.file=/etc/prometheus/prometheus.yaml
        - --storage.tsdb.path=/tmp/tsdb
        - --web.enable-otlp-receiver
      readinessProbe: {httpGet: {path: /-/ready, port: 9090}, periodSeconds: 1}
      volumeMounts: [{name: config, mountPath: /etc/prometheus}, {name: tmp, mountPath: /tmp}]
  volumes: [{name: config, configMap: {name: prometheus}}, {name: tmp, emptyDir: {}}]
";

/// By the annotations that the pods of Karst have, as most installations do it.
const SCRAPING: &str = "
global: {scrape_interval: 1s, evaluation_interval: 5s}
rule_files: [/etc/prometheus/recording.yaml, /etc/prometheus/alerts.yaml]
scrape_configs:
  - job_name: karst
    kubernetes_sd_configs: [{role: pod}]
    relabel_configs:
      - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape]
        action: keep
        regex: \"true\"
      - source_labels: [__meta_kubernetes_pod_ip, __meta_kubernetes_pod_annotation_prometheus_io_port]
        separator: ':'
        target_label: __address__
      - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path]
        regex: (.+)
        target_label: __metrics_path__
      - source_labels: [__meta_kubernetes_namespace]
        target_label: namespace
      - source_labels: [__meta_kubernetes_pod_name]
        target_label: pod
";

/// Both, until dropped.
pub struct Observability {
    /// Where they are.
    pub namespace: Namespace,
}

impl Drop for Observability {
    fn drop(&mut self) {
        let cluster = Cluster::get();
        for words in [
            vec!["-n", SYSTEM, "delete", "configmap", "istio"],
            vec![
                "delete",
                "clusterrole,clusterrolebinding",
                "test-prometheus",
            ],
        ] {
            let mut delete = cluster.kubectl();
            let _ = delete.args(words).arg("--ignore-not-found").output();
        }
    }
}

impl Observability {
    /// Starts both and waits until they are ready.
    pub fn open() -> Self {
        let cluster = Cluster::get();
        let namespace = Namespace::new(NAMESPACE);
        namespace.apply(COLLECTOR);
        let rules = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/prometheus/");
            std::fs::read_to_string(format!("{folder}{name}")).expect("the rules are there")
        };
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "prometheus", "namespace": NAMESPACE},
            "data": {
                "prometheus.yaml": SCRAPING,
                "recording.yaml": rules("recording.yaml"),
                "alerts.yaml": rules("alerts.yaml"),
            },
        });
        cluster.apply(&config.to_string());
        cluster.apply(PROMETHEUS);
        cluster.wait_ready(NAMESPACE);
        Self { namespace }
    }

    /// The mesh configuration, which goes with this.
    pub fn configure(&self, mesh: &str) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": SYSTEM},
            "data": {"mesh": mesh},
        });
        Cluster::get().apply(&map.to_string());
    }

    /// Everything that the collector got, one message each.
    pub fn collected(&self) -> Vec<Value> {
        let said = Cluster::get().exec("observability/collector", &["cat", "/tmp/all.json"]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        // The last line may be in the making.
        text.lines()
            .map_while(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What Prometheus answers at a path of its API; none where it does not.
    fn api(path: &str) -> Option<Value> {
        let path =
            format!("/api/v1/namespaces/{NAMESPACE}/pods/prometheus:9090/proxy/api/v1/{path}");
        let mut get = Cluster::get().kubectl();
        let said = get.args(["get", "--raw", &path]).output().ok()?;
        let answer: Value = serde_json::from_slice(&said.stdout).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The series that an expression gives now.
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let found = Self::api(&format!("query?query={}", encoded(expression)));
        let found = found.unwrap_or_else(|| panic!("Prometheus refuses {expression}"));
        found["result"].as_array().cloned().unwrap_or_default()
    }

    /// The one number that an expression gives now.
    pub fn number(&self, expression: &str) -> Option<f64> {
        let found = self.query(expression);
        found.first()?["value"][1].as_str()?.parse().ok()
    }

    /// The rules that Prometheus evaluates, alerts among them.
    pub fn rules(&self) -> Vec<Value> {
        let groups = until("the rules are evaluated", || {
            let groups = Self::api("rules")?["groups"].as_array()?.clone();
            let rules = groups.iter().flat_map(|group| group["rules"].as_array());
            let mut all = rules.flatten();
            all.all(|rule| rule["health"] != "unknown")
                .then_some(groups)
        });
        let rules = groups.iter().flat_map(|group| group["rules"].as_array());
        rules.flatten().cloned().collect()
    }

    /// Waits until every pod of Karst is scraped.
    pub fn wait_scraped(&self, at_least: usize) {
        eventually("Prometheus scrapes the pods of Karst", || {
            let up = self.query("up{job=\"karst\"} == 1");
            up.len() >= at_least
        });
    }
}

/// As a parameter of a query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The values below three names, one within the other, as OTLP nests them.
pub fn below(messages: &[Value], names: [&str; 3]) -> Vec<Value> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let outer = messages.iter().flat_map(|one| list(one, names[0]));
    outer
        .flat_map(|one| list(&one, names[1]))
        .flat_map(|one| list(&one, names[2]))
        .collect()
}

/// An attribute of a span, a log record or a data point.
pub fn attribute(of: &Value, name: &str) -> Option<String> {
    let all = of["attributes"].as_array()?;
    let value = &all.iter().find(|one| one["key"] == name)?["value"];
    let text = value["stringValue"].as_str();
    text.or_else(|| value["intValue"].as_str())
        .map(str::to_owned)
}
