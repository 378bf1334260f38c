//! What real agents and a real waypoint record: their metrics are what was sent, to the request and to the byte; each
//! request is a line of the access log; a collector gets all of it; and one that is away costs nobody anything.

use std::{
    fs,
    time::{Duration, Instant},
};

use karst_test_node::{Lab, eventually, script::Script, until};
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
            let mut seen = lab.enrolled_as_seen_by(node);
            seen.sort();
            seen == wanted
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
    let before = waypoint_counts(&lab, "istio_requests_total", "orders");
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

    // Connections: each byte, at both ends.
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
        assert_eq!(
            sum(
                &agent_page(&lab, node),
                "karst_telemetry_dropped_total",
                &[]
            ),
            0
        );
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
    while begun.elapsed() < length {
        let said = request(&lab, "1000", "/unheard");
        let answered = said.matches("StatusCode=200").count() as u64;
        assert_eq!(answered, 1000, "after {sent} requests");
        sent += answered;
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
