//! What real agents and a real waypoint record: their metrics are what was sent, to the request and to the byte; each
//! request is a line of the access log; a collector gets all of it; and one that is away costs nobody anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use karst_test_node::{Lab, Recording, eventually, recording::selectors, script::Script, until};
use serde_json::Value;

const FIXTURE: &str = "tests/fixtures/telemetry";
const REQUESTS: u64 = 300;
const CONNECTIONS: u64 = 9;
const BYTES: u64 = 70_001;

/// A collector: takes what is posted, and answers lines of `PATH TEXT` with how often the text was posted there.
const COLLECTOR: &str = r#"
import sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
got = {}
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        got.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("0.0.0.0", 4318), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    path, text = line.split()
    print(sum(body.count(text.encode()) for body in got.get(path, [])), flush=True)
"#;

/// The fixture, with everybody in the mesh and the waypoint in the path.
fn up() -> Lab {
    let lab = Lab::start(FIXTURE);
    let wanted = ["shop/client", "shop/orders-v1", "shop/pipe"];
    for node in ["a", "b"] {
        eventually(&format!("agent of {node} knows {wanted:?}"), || {
            let seen = lab.enrolled_as_seen_by(node);
            seen.is_some_and(|seen| seen == wanted)
        });
    }
    eventually("requests go through the waypoint", || {
        request(&lab, "1", "/warm");
        waypoint_counts(&lab, "istio_requests_total", "orders") > 0
    });
    lab
}

fn request(lab: &Lab, count: &str, path: &str) -> String {
    let url = format!("http://orders.shop{path}");
    let words = [
        "karst-echo",
        "client",
        &url,
        "--timeout",
        "5",
        "--count",
        count,
    ];
    lab.exec("shop/client", &words).stdout
}

/// The sum of a metric over the label sets with these texts, in what `/metrics` says.
fn sum(page: &str, metric: &str, with: &[&str]) -> u64 {
    let lines = page.lines().filter(|line| {
        line.strip_prefix(metric)
            .is_some_and(|rest| rest.starts_with('{'))
            && with.iter().all(|text| line.contains(text))
    });
    let values = lines.filter_map(|line| line.rsplit_once("} ")?.1.split(' ').next());
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}

fn waypoint_page(lab: &Lab) -> String {
    let words = [
        "curl",
        "-s",
        "--max-time",
        "5",
        "http://127.0.0.1:15020/metrics",
    ];
    lab.exec("shop/waypoint-0", &words).stdout
}

fn waypoint_counts(lab: &Lab, metric: &str, service: &str) -> u64 {
    let label = format!("destination_service_name=\"{service}\"");
    sum(&waypoint_page(lab), metric, &[&label])
}

/// Requests that were counted before, the last of those that nobody waits for among them.
fn quiet_count(lab: &Lab) -> u64 {
    let mut before = None;
    until("no request is on its way", || {
        let now = Some(waypoint_counts(lab, "istio_requests_total", "orders"));
        (std::mem::replace(&mut before, now) == now).then_some(now)?
    })
}

fn agent_page(lab: &Lab, node: &str) -> String {
    let words = [
        "curl",
        "-s",
        "--max-time",
        "5",
        "http://127.0.0.1:15020/metrics",
    ];
    lab.exec_node(node, &words).stdout
}

fn waypoint_log(lab: &Lab) -> String {
    let path = format!(
        "/run/karst/lab/{}/logs/shop.waypoint-0.waypoint.log",
        lab.name()
    );
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn what_is_recorded_is_what_was_sent() {
    let lab = up();
    let mut collector = Script::start(&lab, "plain/otel", COLLECTOR, &[]);
    assert_eq!(collector.line(), "ready");

    // Requests: each a count, a line, a span and a log record.
    let before = quiet_count(&lab);
    let said = request(&lab, &REQUESTS.to_string(), "/seen?secret=1");
    assert_eq!(said.matches("StatusCode=200").count() as u64, REQUESTS);
    let after = before + REQUESTS;
    eventually("each request is counted", || {
        waypoint_counts(&lab, "istio_requests_total", "orders") == after
    });
    eventually("each request is a line", || {
        waypoint_log(&lab).matches("GET /seen").count() as u64 == REQUESTS
    });
    for (path, text) in [("/v1/traces", "/seen"), ("/v1/logs", "/seen")] {
        let mut got = 0;
        eventually(&format!("{REQUESTS} of {text} at {path}"), || {
            got = collector
                .ask(&format!("{path} {text}"))
                .parse()
                .unwrap_or(0);
            got >= REQUESTS
        });
        eprintln!("{path}: {got}");
    }
    assert_eq!(collector.ask("/v1/traces secret=1"), "0");
    eventually("metrics are pushed", || {
        collector.ask("/v1/metrics istio_requests_total") != "0"
    });

    // Connections: each byte, at both ends. What was given up before there was a collector is not asked about.
    let dropped = |node: &str| {
        let page = agent_page(&lab, node);
        sum(&page, "karst_telemetry_dropped_total", &[])
    };
    let dropped_before = ["a", "b"].map(dropped);
    for number in 0..CONNECTIONS {
        let size = (BYTES + number).to_string();
        let words = ["karst-echo", "tcp", "pipe.shop:9000", "--send", &size];
        let said = lab.exec("shop/client", &words).success();
        let said: Value = serde_json::from_str(&said).expect("karst-echo prints JSON");
        assert_eq!(said["received"], BYTES + number, "{said}");
    }
    let bytes: u64 = (0..CONNECTIONS).map(|number| BYTES + number).sum();
    for (node, reporter) in [("a", "source"), ("b", "destination")] {
        let reporter = format!("reporter=\"{reporter}\"");
        let with = [reporter.as_str(), "destination_service_name=\"pipe\""];
        let mut seen = [0; 3];
        eventually(&format!("{bytes} bytes at {node}"), || {
            let page = agent_page(&lab, node);
            seen = [
                "istio_tcp_connections_closed_total",
                "istio_tcp_received_bytes_total",
                "istio_tcp_sent_bytes_total",
            ]
            .map(|metric| sum(&page, metric, &with));
            seen == [CONNECTIONS, bytes, bytes]
        });
        eprintln!("{node}: {seen:?}");
    }
    assert_eq!(["a", "b"].map(dropped), dropped_before);
}

/// Requests that a policy denies.
const TROUBLE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  action: DENY
  rules: [{to: [{operation: {paths: [/closed]}}]}]
";

/// Requests that nobody answers: their service has no pod.
const NOBODY: &str = "
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec:
  selector: {app: nobody}
  ports: [{name: http, port: 80}]
";

/// Programs whose pages are recorded.
fn pages(lab: &Lab) -> Vec<(&'static str, String)> {
    vec![
        ("a", agent_page(lab, "a")),
        ("b", agent_page(lab, "b")),
        ("waypoint", waypoint_page(lab)),
        ("controller", lab.controller_page("/metrics")),
    ]
}

fn ask(lab: &Lab, url: &str, count: &str) {
    let client = [
        "karst-echo",
        "client",
        "--timeout",
        "5",
        "--count",
        count,
        url,
    ];
    let _some_fail = lab.exec("shop/client", &client);
}

/// A minute of every kind of traffic, a few of which nobody answers.
fn usual(lab: &Lab) {
    ask(lab, "http://orders.shop/usual", "20");
    ask(lab, "http://empty.shop/", "1");
    let address = lab.address("shop", "pipe");
    for port in ["9000", "9999"] {
        let to = format!("{address}:{port}");
        let _one_fails = lab.exec("shop/client", &["karst-echo", "tcp", &to, "--send", "1000"]);
    }
}

/// Nothing leads without Kubernetes, and there is no chain of CNI plugins.
const WITHOUT_CLUSTER: [&str; 2] = ["KarstControllerAbsent", "KarstCniOutOfChain"];

fn agent_pid(lab: &Lab, node: &str) -> String {
    let status = lab.status();
    let nodes = status["nodes"].as_array().expect("nodes").clone();
    let found = nodes.iter().find(|one| one["name"] == node);
    found.expect("the node")["agent"]["pid"].to_string()
}

/// A pod of the mesh that the controller is told of and no node runs, so that its agent finds nothing to capture. Away when
/// dropped.
struct Never(PathBuf);

impl Never {
    fn tell(lab: &Lab) -> Self {
        let folder = PathBuf::from(format!("/run/karst/lab/{}/objects", lab.name()));
        let pipe = fs::read_to_string(folder.join("pod.shop.pipe.yaml")).expect("the pod is there");
        let mut pod: Value = serde_json::from_str(&pipe).expect("the lab writes JSON");
        pod["metadata"]["name"] = "never".into();
        pod["metadata"]["uid"] = "78150703-f6a0-4301-b6af-000000000000".into();
        pod["metadata"]["labels"] = Value::Null;
        pod["status"]["podIP"] = "10.244.1.99".into();
        pod["status"]["podIPs"] = serde_json::json!([{"ip": "10.244.1.99"}]);
        let file = folder.join("pod.shop.never.yaml");
        fs::write(&file, pod.to_string()).expect("a writable folder");
        Self(file)
    }
}

impl Drop for Never {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("the file is there");
    }
}

/// Ends the program's stop when dropped.
struct Stopped(String);

impl Stopped {
    fn agent(lab: &Lab, node: &str) -> Self {
        let pid = agent_pid(lab, node);
        Self::signal(&pid, "-STOP");
        Self(pid)
    }

    fn signal(pid: &str, signal: &str) {
        let sent = Command::new("kill").args([signal, pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{signal} {pid}");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        Self::signal(&self.0, "-CONT");
    }
}

#[test]
#[ignore = "needs promtool: cargo xtask conformance prometheus"]
fn rules_and_alerts_hold_on_what_running_programs_write() {
    let promtool = std::env::var_os("KARST_PROMTOOL").expect("KARST_PROMTOOL names promtool");
    let lab = up();
    let collector = Script::start(&lab, "plain/otel", COLLECTOR, &[]);
    assert_eq!(collector.line(), "ready");
    lab.apply("empty.yaml", NOBODY);
    eventually("nobody answers for `empty`", || {
        ask(&lab, "http://empty.shop/", "1");
        waypoint_counts(&lab, "istio_requests_total", "empty") > 0
    });
    let mut recording = Recording::new();

    // All is well: every rule that records has data, and nothing fires.
    for _minute in 0..6 {
        usual(&lab);
        recording.look(&pages(&lab));
    }
    let recorded: Vec<String> = recording
        .rules()
        .iter()
        .filter(|rule| !rule.alerts)
        .map(|rule| rule.name.clone())
        .collect();
    assert!(recorded.len() >= 8, "{recorded:?}");
    for name in recorded {
        recording.expect(&format!("count({name}) > bool 0"), Some(1.0));
    }
    recording.hold(90);
    recording.expect_firing(&[], &WITHOUT_CLUSTER);
    alerts_find_their_series(&mut recording);

    // Denials and failures rise, and a pod that should be in the mesh is not.
    let never = Never::tell(&lab);
    apply_at_once(&lab, "trouble.yaml", TROUBLE);
    eventually("requests are denied", || {
        request(&lab, "1", "/closed").contains("StatusCode=403")
    });
    eventually("a pod is waited for", || {
        let page = agent_page(&lab, "b");
        let line = page
            .lines()
            .find(|line| line.starts_with("workload_manager_pending_proxy_count"));
        line.is_some_and(|line| line.ends_with(" 1"))
    });
    for _minute in 0..12 {
        request(&lab, "400", "/closed");
        ask(&lab, "http://empty.shop/", "400");
        recording.look(&pages(&lab));
    }
    let troubled = [
        "KarstDenialsRising",
        "KarstFailuresRising",
        "KarstPodsNotCaptured",
    ];
    recording.expect_firing(&troubled, &WITHOUT_CLUSTER);

    // It is over: nothing fires any more.
    drop(never);
    lab.remove("trouble.yaml");
    eventually("no pod is waited for", || {
        let page = agent_page(&lab, "b");
        let mut lines = page.lines();
        lines.any(|line| line == "workload_manager_pending_proxy_count 0")
    });
    recording.look(&pages(&lab));
    recording.hold(30);
    recording.expect_firing(&[], &WITHOUT_CLUSTER);

    // An agent that takes nothing any more.
    let stopped = Stopped::agent(&lab, "a");
    apply_at_once(&lab, "trouble.yaml", TROUBLE);
    let behind = || {
        let page = lab.controller_page("/metrics");
        let mut lines = page.lines();
        lines.any(|line| {
            line.strip_prefix("karst_agents_behind_changes ")
                .is_some_and(|value| value != "0")
        })
    };
    eventually("an agent is behind", behind);
    recording.look(&[("controller", lab.controller_page("/metrics"))]);
    recording.hold(4);
    recording.expect_firing(&["KarstAgentLagging"], &WITHOUT_CLUSTER);
    drop(stopped);
    lab.remove("trouble.yaml");
    eventually("no agent is behind", || !behind());

    // Nobody renews certificates for a day.
    recording.look(&pages(&lab));
    recording.hold(24 * 60 - 20 - recording.minute());
    recording.expect_firing(&["KarstCertificateNearExpiry"], &WITHOUT_CLUSTER);
    recording.hold(40);
    let ended = ["KarstCertificateNearExpiry", "KarstCertificateExpired"];
    recording.expect_firing(&ended, &WITHOUT_CLUSTER);
    recording.test(Path::new(&promtool));
}

/// Waits for nobody.
fn apply_at_once(lab: &Lab, file: &str, text: &str) {
    fs::write(format!("{}/{file}", lab.path()), text).expect("writable");
    lab.karst(&["apply", "--wait", "0", lab.path()]);
}

/// Every alert looks at something that programs really write, whether or not it fires here.
fn alerts_find_their_series(recording: &mut Recording) {
    let asked: Vec<String> = recording
        .rules()
        .iter()
        .filter(|rule| rule.alerts && !WITHOUT_CLUSTER.contains(&&*rule.name))
        .flat_map(|rule| selectors(&rule.expression))
        .map(str::to_owned)
        .collect();
    assert!(asked.len() >= 10, "{asked:?}");
    for selector in asked {
        recording.expect(&format!("count({selector}) > bool 0"), Some(1.0));
    }
}

/// Resident memory of the waypoint, in kilobytes.
fn memory(lab: &Lab) -> u64 {
    let pod = lab.pod("shop", "waypoint-0");
    let pids = pod["pids"].as_array().expect("the waypoint runs");
    let resident = |pid: u64| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let all = pids.iter().filter_map(|pid| resident(pid.as_u64()?));
    all.max().unwrap_or(0)
}

/// Memory may grow by this beyond what full queues take: as much as it moves without any load.
const GROWTH_KB: u64 = 24 * 1024;

/// Nobody listens where the collector should be: nobody fails, queues fill and stay as they are, losses are counted.
fn without_a_collector(length: Duration) {
    let lab = up();
    let begun = Instant::now();
    let mut sent = 0_u64;
    let mut filled = None;
    // Fewer than a hundred a second would never fill a queue, however long they went on.
    let words = [
        "karst-echo",
        "requests",
        "http://orders.shop/unheard",
        "--connections",
        "8",
        "--pause-ms",
        "10",
        "--count",
        "1000",
        "--duration",
        "600",
    ];
    while begun.elapsed() < length {
        let said = lab.exec("shop/client", &words).success();
        let said: Value = serde_json::from_str(&said).expect("karst-echo prints JSON");
        assert_eq!(said["statuses"]["200"], 1000, "after {sent}: {said}");
        assert_eq!(said["failures"], 0, "after {sent}: {said}");
        sent += 1000;
        let page = waypoint_page(&lab);
        let full = sum(
            &page,
            "karst_telemetry_dropped_total",
            &["reason=\"queue_full\""],
        );
        if filled.is_none() && full > 0 {
            filled = Some(memory(&lab));
        }
    }
    let filled = filled.unwrap_or_else(|| panic!("{sent} requests filled no queue"));
    let last = memory(&lab);
    eprintln!(
        "{sent} requests in {:?}: {filled} kB with full queues, {last} kB at the end",
        begun.elapsed()
    );
    assert!(last <= filled + GROWTH_KB, "{filled} kB, then {last} kB");
    let counted = waypoint_counts(&lab, "istio_requests_total", "orders");
    assert!(counted >= sent, "{counted} of {sent}");
    let told = until("the failure is told in the log", || {
        let log = waypoint_log(&lab);
        let line = log
            .lines()
            .find(|line| line.contains("a collector does not take"));
        line.map(str::to_owned)
    });
    eprintln!("{told}");
}

#[test]
fn two_minutes_without_a_collector_cost_nobody_anything() {
    without_a_collector(Duration::from_secs(120));
}

#[test]
#[ignore = "soak: ten minutes"]
fn soak_ten_minutes_without_a_collector_cost_nobody_anything() {
    without_a_collector(Duration::from_secs(600));
}
