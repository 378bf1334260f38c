//! Telemetry on a cluster, with OpenTelemetry's collector and Prometheus: what arrives is what was sent, to the request and
//! to the byte; traces are whole; dashboards have data; a collector that is not there is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use karst_test_cluster::{
    Cluster, Namespace,
    cluster::run,
    eventually,
    observability::{Observability, attribute, below},
    orders::{Orders, status},
    until,
};
use serde_json::Value;

const NAMESPACE: &str = "recorded";

/// Requests, and traces among them that the client begins.
const REQUESTS: u64 = 2000;
const TRACES: u64 = 1000;
/// Connections, and bytes of each.
const CONNECTIONS: u64 = 7;
const BYTES: u64 = 123_457;
/// Within which a wrong endpoint is a condition.
const TOLD: Duration = Duration::from_secs(10);

const MESH: &str = "
extensionProviders:
- name: otel
  opentelemetry: {service: collector.observability.svc.cluster.local, port: 4317}
- name: prom
  opentelemetry: {service: prometheus.observability.svc.cluster.local, port: 9090, http: {path: /api/v1/otlp/v1/traces, timeout: 10s}}
- name: dead
  opentelemetry: {service: collector.observability.svc.cluster.local, port: 4319}
defaultProviders:
  tracing: [otel]
  metrics: [prometheus, otel, prom]
  accessLogging: [otel]
";

/// Every request traced, metrics pushed often.
const EVERYTHING: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: everything, namespace: karst-system}
spec:
  tracing: [{randomSamplingPercentage: 100}]
  metrics: [{reportingInterval: 2s}]
";

const PIPE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: pipe, labels: {app: pipe}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, --port=8080, --mode, 'echo:9000']
      readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: pipe, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: pipe}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, labels: {istio.io/use-waypoint: none}}
spec: {selector: {app: nobody}, ports: [{name: tcp, port: 80}]}
";

/// What makes series that only trouble makes.
const TROUBLE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed}
spec:
  selector: {matchLabels: {app: pipe}}
  action: DENY
  rules: [{to: [{operation: {ports: ['8080']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, annotations: {istio.io/dry-run: 'true'}}
spec:
  selector: {matchLabels: {app: pipe}}
  action: DENY
  rules: [{to: [{operation: {ports: ['9000']}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 80}]
  rules:
    - matches: [{path: {value: /nowhere}}]
      backendRefs: [{name: empty, port: 80}]
    - backendRefs: [{name: orders, port: 80}]
";

#[test]
fn what_arrives_is_what_was_sent() {
    let cluster = Cluster::get();
    let observability = Observability::open();
    observability.configure(MESH);
    cluster.apply(EVERYTHING);
    let _everything = Applied("telemetry/everything");
    let orders = Orders::open(NAMESPACE);
    orders.namespace.apply(PIPE);
    cluster.wait_ready(NAMESPACE);
    eventually("pipe is in the mesh", || {
        let pods = cluster.workloads(NAMESPACE).unwrap_or_default();
        let mut pipe = pods.iter().filter(|one| one["name"] == "pipe");
        pipe.any(|one| one["protocol"] == "HBONE")
    });
    observability.wait_scraped(5);

    requests(&observability, &orders);
    traces(&observability, &orders);
    bytes(&observability, &orders);
    trouble(&orders);
    dashboards(&observability);
    rules(&observability);
    dead_collector(&orders.namespace);
}

/// An object of the system's namespace that goes with the test.
struct Applied(&'static str);

impl Drop for Applied {
    fn drop(&mut self) {
        let mut delete = Cluster::get().kubectl();
        let _gone = delete
            .args(["-n", "karst-system", "delete", self.0])
            .output();
    }
}

/// Counts of each source, by its name.
fn requests_counted(observability: &Observability, orders: &Orders) -> BTreeMap<&'static str, u64> {
    let scraped = |which: &str| {
        let labels = format!(
            "destination_service_namespace=\"{NAMESPACE}\",destination_service_name=\"orders\""
        );
        let sum = format!("sum(istio_requests_total{{{which},{labels}}})");
        observability.number(&sum).unwrap_or(0.0) as u64
    };
    let messages = observability.collected();
    [
        ("waypoint", orders.counted()),
        ("scraped", scraped("job=\"karst\"")),
        ("received", scraped("job!=\"karst\"")),
        (
            "collected",
            collected(&messages, "istio_requests_total", |point| {
                attribute(point, "destination_service_name").as_deref() == Some("orders")
                    && attribute(point, "destination_service_namespace").as_deref()
                        == Some(NAMESPACE)
            }),
        ),
    ]
    .into()
}

/// The latest sum of a counter in what the collector got.
fn collected(messages: &[Value], name: &str, which: impl Fn(&Value) -> bool) -> u64 {
    let mut latest: BTreeMap<String, u64> = BTreeMap::new();
    for message in messages {
        let resources = message["resourceMetrics"].as_array().cloned();
        for resource in resources.into_iter().flatten() {
            let who = resource["resource"].to_string();
            let metrics = resource["scopeMetrics"].as_array().cloned();
            let metrics = metrics.into_iter().flatten();
            let metrics = metrics.flat_map(|scope| scope["metrics"].as_array().cloned());
            for metric in metrics.flatten().filter(|metric| metric["name"] == name) {
                let points = metric["sum"]["dataPoints"].as_array().cloned();
                for point in points.into_iter().flatten().filter(|point| which(point)) {
                    let value = point["asInt"].as_str().and_then(|text| text.parse().ok());
                    let key = format!("{who}{}", point["attributes"]);
                    latest.insert(key, value.unwrap_or(0));
                }
            }
        }
    }
    latest.values().sum()
}

fn requests(observability: &Observability, orders: &Orders) {
    let before = until("every source counts the same", || {
        let counted = requests_counted(observability, orders);
        let values: BTreeSet<&u64> = counted.values().collect();
        (values.len() == 1).then(|| counted["waypoint"])
    });
    let count = REQUESTS.to_string();
    let load = ["http://orders/", "--connections", "4", "--count", &count];
    let report = orders
        .requests(&[&load[..], &["--duration", "120"]].concat())
        .report();
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(report["statuses"]["200"], REQUESTS, "{report}");
    let mut counted = BTreeMap::new();
    eventually(&format!("every source counts {REQUESTS} more"), || {
        counted = requests_counted(observability, orders);
        eprintln!("before {before}, now {counted:?}");
        counted.values().all(|count| *count == before + REQUESTS)
    });
    eprintln!("requests: {REQUESTS} more in each of {counted:?}");
}

/// Traces that the client begins: a span of the waypoint for each, its parent the client's and it the application's.
fn traces(observability: &Observability, orders: &Orders) {
    let script = format!(
        "for n in $(seq {TRACES}); do karst-echo client \
         -H traceparent:00-$(printf %032x $((n + 4096)))-$(printf %016x $n)-01 http://orders/traced; done"
    );
    let said = Cluster::get().exec(&orders.pod("client"), &["sh", "-c", &script]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // What the application was told: trace and parent.
    let told: BTreeMap<String, String> = said
        .lines()
        .filter_map(|line| line.split_once("RequestHeader=Traceparent:"))
        .filter_map(|(_, header)| {
            let parts: Vec<&str> = header.trim().split('-').collect();
            Some(((*parts.get(1)?).to_owned(), (*parts.get(2)?).to_owned()))
        })
        .collect();
    assert_eq!(told.len() as u64, TRACES, "{said}");
    let spans = until("every trace is at the collector", || {
        let spans = below(
            &observability.collected(),
            ["resourceSpans", "scopeSpans", "spans"],
        );
        let ours = spans.into_iter().filter(|span| {
            let trace = span["traceId"].as_str().unwrap_or_default();
            told.contains_key(trace)
        });
        let ours: Vec<Value> = ours.collect();
        (ours.len() as u64 >= TRACES).then_some(ours)
    });
    assert_eq!(spans.len() as u64, TRACES);
    for number in 1..=TRACES {
        let trace = format!("{:032x}", number + 4096);
        let mut of = spans
            .iter()
            .filter(|span| span["traceId"] == trace.as_str());
        let span = of.next().unwrap_or_else(|| panic!("no span of {trace}"));
        assert_eq!(span["parentSpanId"], format!("{number:016x}"), "{span}");
        assert_eq!(
            span["spanId"].as_str(),
            told.get(&trace).map(String::as_str),
            "{span}"
        );
        let says = |name: &str| attribute(span, name).unwrap_or_default();
        assert_eq!(says("http.response.status_code"), "200", "{span}");
        assert_eq!(says("url.path"), "/traced", "{span}");
        assert_eq!(
            says("karst.waypoint"),
            format!("{NAMESPACE}/waypoint"),
            "{span}"
        );
        assert!(
            says("karst.source.principal").contains(&format!("/ns/{NAMESPACE}/")),
            "{span}"
        );
        assert!(
            ["v1", "v2"].contains(&&*says("karst.destination.workload")),
            "{span}"
        );
    }
    eprintln!("traces: {TRACES} whole");
}

/// Connections without a waypoint, at both agents: counted, and logged at the collector.
fn bytes(observability: &Observability, orders: &Orders) {
    let (mut sent, mut received) = (0, 0);
    for number in 0..CONNECTIONS {
        let size = (BYTES + number).to_string();
        let words = ["karst-echo", "tcp", "pipe:9000", "--send", &size];
        let said = run_in(&orders.pod("client"), &words);
        assert_eq!(said["sent"], BYTES + number, "{said}");
        sent += said["sent"].as_u64().unwrap_or_default();
        received += said["received"].as_u64().unwrap_or_default();
    }
    let expected = [sent, received, CONNECTIONS];
    assert_eq!(sent, received);
    let of_pipe = |point: &Value, reporter: &str| {
        attribute(point, "destination_service_name").as_deref() == Some("pipe")
            && attribute(point, "reporter").as_deref() == Some(reporter)
    };
    for reporter in ["source", "destination"] {
        let mut seen = Vec::new();
        let metrics = [
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
            "istio_tcp_connections_closed_total",
        ];
        eventually(&format!("{expected:?} at {reporter}"), || {
            let scraped = metrics.map(|metric| {
                let labels = format!(
                    "job=\"karst\",reporter=\"{reporter}\",destination_service_name=\"pipe\""
                );
                let sum = format!("sum({metric}{{{labels}}})");
                observability.number(&sum).unwrap_or(0.0) as u64
            });
            let messages = observability.collected();
            let pushed = metrics
                .map(|metric| collected(&messages, metric, |point| of_pipe(point, reporter)));
            seen = vec![scraped, pushed];
            eprintln!("{reporter}: {seen:?}");
            seen.iter().all(|one| *one == expected)
        });
        eprintln!("bytes at {reporter}: {seen:?}");
    }
    let logs = until("each connection is logged by both agents", || {
        let logs = below(
            &observability.collected(),
            ["resourceLogs", "scopeLogs", "logRecords"],
        );
        let of_pipe = logs.iter().filter(|log| {
            let text = log.to_string();
            text.contains("pipe") && text.contains("9000")
        });
        let count = of_pipe.count() as u64;
        (count >= 2 * CONNECTIONS).then_some(count)
    });
    assert_eq!(logs, 2 * CONNECTIONS);
}

fn run_in(pod: &str, words: &[&str]) -> Value {
    let said = Cluster::get().exec(pod, words);
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// Denials, failures and a dry run, for the series that only they make.
fn trouble(orders: &Orders) {
    orders.namespace.apply(TROUBLE);
    let address = address_of_pipe();
    eventually("8080 is denied", || {
        orders
            .call(&format!("http://{address}:8080/"), &[])
            .is_empty()
    });
    eventually("a route leads nowhere", || {
        let said = orders.call("http://orders/nowhere", &[]);
        status(&said).is_some_and(|status| status.starts_with('5'))
    });
}

/// Its own: the service has no port 8080.
fn address_of_pipe() -> String {
    let pod = Cluster::get().object(&["pod", "pipe", "-n", NAMESPACE]);
    let address = pod["status"]["podIP"].as_str();
    address.expect("an address").to_owned()
}

/// Trouble once more while Prometheus looks: a rate needs two looks at a series.
fn again() {
    let script = "karst-echo client --timeout 2 http://pipe:8080/; karst-echo client --timeout 2 http://empty/; \
                  karst-echo client http://orders/nowhere; karst-echo client http://orders/; \
                  karst-echo tcp pipe:9000 --send 10; karst-echo client --timeout 2 http://no.such.name.example/";
    let client = format!("{NAMESPACE}/client");
    let _some_fail = Cluster::get().exec(&client, &["sh", "-c", script]);
}

/// Panels of which a healthy mesh has no series.
const EMPTY_IF_WELL: [&str; 1] = ["control-plane: Watch failures"];

fn dashboards(observability: &Observability) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/dashboards");
    let mut panels: Vec<(String, String)> = Vec::new();
    for entry in fs::read_dir(folder).expect("the dashboards are there") {
        let path = entry.expect("a readable folder").path();
        let text = fs::read_to_string(&path).expect("a readable dashboard");
        let board: Value = serde_json::from_str(&text).expect("JSON");
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for panel in board["panels"].as_array().expect("panels") {
            let title = format!("{name}: {}", panel["title"].as_str().unwrap_or_default());
            let targets = panel["targets"].as_array().into_iter().flatten();
            let expressions = targets.filter_map(|target| target["expr"].as_str());
            panels.extend(expressions.map(|one| (title.clone(), filled(one))));
        }
    }
    let all = panels.len();
    panels.extend(ISTIO.map(|one| ("Istio".to_owned(), filled(one))));
    let mut empty = panels.clone();
    let started = Instant::now();
    while !empty.is_empty() && started.elapsed() < Duration::from_secs(60) {
        again();
        empty.retain(|(title, expression)| {
            let wanted = !EMPTY_IF_WELL.contains(&title.as_str());
            wanted && observability.query(expression).is_empty()
        });
    }
    eprintln!(
        "panels: {all} expressions, {} of Istio's, empty: {empty:#?}",
        ISTIO.len()
    );
    assert!(empty.is_empty(), "{empty:#?}");
}

/// An expression with values for the variables of its dashboard.
fn filled(expression: &str) -> String {
    let mut filled = expression.replace("$__rate_interval", "1m");
    for variable in ["$instance", "$namespace", "$service", "$workload"] {
        filled = filled.replace(variable, ".*");
    }
    filled
}

/// What Istio's dashboards ask, by names and labels.
const ISTIO: [&str; 13] = [
    "round(sum(irate(istio_requests_total{reporter=~\"source|waypoint\"}[1m])), 0.01)",
    "sum(rate(istio_requests_total{reporter=~\"source|waypoint\",response_code!~\"5.*\"}[1m])) / sum(rate(istio_requests_total{reporter=~\"source|waypoint\"}[1m]))",
    "sum(rate(istio_requests_total{reporter=~\"source|waypoint\",response_code=~\"5.*\"}[1m]))",
    "label_join(sum by (destination_workload, destination_workload_namespace, destination_service) (rate(istio_requests_total{reporter=~\"source|waypoint\"}[1m])), \"destination_workload_var\", \".\", \"destination_workload\", \"destination_workload_namespace\")",
    "label_join(histogram_quantile(0.99, sum by (le, destination_workload, destination_workload_namespace, destination_service) (rate(istio_request_duration_milliseconds_bucket{reporter=~\"source|waypoint\"}[1m]))), \"destination_workload_var\", \".\", \"destination_workload\", \"destination_workload_namespace\")",
    "sum by (destination_service) (rate(istio_tcp_received_bytes_total{reporter=~\"source|waypoint\"}[1m]))",
    "sum by (destination_service) (rate(istio_tcp_sent_bytes_total{reporter=~\"source|waypoint\"}[1m]))",
    "round(sum(irate(istio_requests_total{connection_security_policy=\"mutual_tls\",destination_service=~\".*\",reporter=~\"destination|waypoint\",source_workload=~\".*\",source_workload_namespace=~\".*\"}[1m])) by (source_workload, source_workload_namespace, response_code), 0.001)",
    "histogram_quantile(0.95, sum(rate(istio_request_bytes_bucket{reporter=~\"source|waypoint\",destination_service=~\".*\"}[1m])) by (source_workload, source_workload_namespace, le))",
    "histogram_quantile(0.95, sum(rate(istio_response_bytes_bucket{reporter=~\"source|waypoint\",destination_service=~\".*\"}[1m])) by (source_workload, source_workload_namespace, le))",
    "round(sum(rate(istio_tcp_sent_bytes_total{connection_security_policy=\"mutual_tls\",reporter=\"destination\",destination_workload_namespace=~\".*\",destination_workload=~\".*\"}[1m])) by (source_workload, source_workload_namespace), 0.001)",
    "sum(rate(istio_tcp_connections_opened_total{pod=~\".+\"}[1m])) by (pod)",
    "sum by (pod) (workload_manager_active_proxy_count{pod=~\".+\"})",
];

/// Prometheus evaluates all rules over what it has here, and no alert that tells of broken parts fires.
fn rules(observability: &Observability) {
    let rules = observability.rules();
    assert!(rules.len() > 20, "{rules:?}");
    let ill: Vec<&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
    assert!(ill.is_empty(), "{ill:#?}");
    let firing: Vec<&Value> = rules
        .iter()
        .filter(|rule| rule["type"] == "alerting" && rule["state"] == "firing")
        .map(|rule| &rule["name"])
        .collect();
    eprintln!("rules: {}, firing {firing:?}", rules.len());
    let firing: Vec<&str> = firing.iter().filter_map(|name| name.as_str()).collect();
    for broken in ["KarstControllerAbsent", "KarstCniOutOfChain"] {
        assert!(!firing.contains(&broken), "{firing:?}");
    }
    let recorded = rules.iter().filter(|rule| rule["type"] == "recording");
    let recorded: Vec<&str> = recorded.filter_map(|rule| rule["name"].as_str()).collect();
    assert!(recorded.len() >= 8, "{recorded:?}");
    eventually(&format!("every one of {recorded:?} has data"), || {
        again();
        let mut all = recorded.iter();
        all.all(|name| !observability.query(name).is_empty())
    });
    denials_rise(observability);
}

/// Denials, more than one a second over the five minutes that the alert looks at, begin it. It waits five minutes more.
fn denials_rise(observability: &Observability) {
    let state = || {
        let rules = observability.rules();
        let alert = rules
            .iter()
            .find(|rule| rule["name"] == "KarstDenialsRising");
        alert.expect("the alert")["state"].clone()
    };
    let address = address_of_pipe();
    let script = format!(
        "for n in $(seq 50); do karst-echo client --timeout 2 http://{address}:8080/; done"
    );
    let client = format!("{NAMESPACE}/client");
    eventually("denials begin their alert", || {
        let _all_fail = Cluster::get().exec(&client, &["sh", "-c", &script]);
        let denied = "sum(rate(karst_incidents_total{kind=\"denied\"}[5m]))";
        eprintln!("denied per second: {:?}", observability.number(denied));
        state() == "pending" || state() == "firing"
    });
}

/// A port of the collector where nobody listens: the object that names it says so in time.
fn dead_collector(namespace: &Namespace) {
    namespace.apply(
        "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: nowhere}
spec: {tracing: [{providers: [{name: dead}]}]}
",
    );
    let applied = Instant::now();
    let said = until("the condition is False", || {
        let object =
            Cluster::get().object(&["telemetry.telemetry.istio.io", "nowhere", "-n", NAMESPACE]);
        let conditions = object["status"]["conditions"].as_array()?.clone();
        conditions
            .into_iter()
            .find(|one| one["type"] == "Accepted" && one["status"] == "False")
    });
    eprintln!(
        "a dead collector is told after {:?}: {said}",
        applied.elapsed()
    );
    assert_eq!(said["reason"], "CollectorFailing", "{said}");
    assert!(applied.elapsed() < TOLD, "{said}");
    let mut delete = Cluster::get().kubectl();
    run(delete.args([
        "-n",
        NAMESPACE,
        "delete",
        "telemetry.telemetry.istio.io",
        "nowhere",
    ]));
}
