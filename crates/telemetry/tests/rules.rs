//! Each recording rule of `manifests/prometheus` finds its metrics, with the labels that it picks and sums by, on a page
//! that these metrics wrote: a renamed metric or label fails here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, time::Duration};

use karst_telemetry::{
    access_log::Direction,
    metrics::{
        Registry,
        http::{HttpLabels, HttpMetrics, RequestFlag, RequestProtocol},
        tcp::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels, TcpMetrics},
    },
    observed::{Incident, IncidentKind, Observed},
};
use regex::Regex;

/// A page on which everything was counted once: connections at both ends, one that failed, a request, an incident.
fn page() -> String {
    let registry = Registry::new();
    let tcp = TcpMetrics::register(&registry);
    for reporter in [Reporter::Source, Reporter::Destination] {
        let labels = TcpLabels {
            reporter,
            source: Peer::default(),
            destination: Peer::default(),
            service: ServiceLabels::default(),
            response_flags: ResponseFlags::None,
            security: Security::MutualTls,
        };
        let handles = tcp.handles(&labels);
        handles.opened.inc();
        handles.sent.inc_by(1);
        handles.received.inc_by(1);
        tcp.failed(&TcpLabels {
            response_flags: ResponseFlags::Connect,
            ..labels
        });
    }
    let labels = HttpLabels {
        reporter: Reporter::Waypoint,
        source: Peer::default().into(),
        destination: Peer::default().into(),
        service: ServiceLabels::default().into(),
        protocol: RequestProtocol::Http,
        response_code: 503,
        grpc_status: None,
        flag: RequestFlag::None,
        security: Security::MutualTls,
    };
    let http = HttpMetrics::register(&registry);
    http.handles(&labels).count(Duration::from_millis(1), 1, 1);
    let observed = Observed::register(&registry);
    observed.incident(Incident::new(
        IncidentKind::Denied,
        Direction::Inbound,
        "-",
        "no".to_owned(),
    ));
    registry.encode()
}

/// Names of the labels that a selector asks about.
fn asked(selector: &str) -> Vec<(String, String)> {
    let pairs = Regex::new(r#"(\w+)=(~?)"([^"]*)""#).unwrap();
    let found = pairs.captures_iter(selector).map(|pair| {
        let value = match &pair[2] {
            "~" => pair[3].to_owned(),
            _ => regex::escape(&pair[3]),
        };
        (pair[1].to_owned(), value)
    });
    found.collect()
}

#[test]
fn every_recording_rule_finds_what_it_asks_for() {
    let page = page();
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../manifests/prometheus/recording.yaml"
    );
    let text = fs::read_to_string(file).unwrap();
    let series = Regex::new(r"\b((?:istio|karst)_\w+)(\{[^}]*\})?\[").unwrap();
    let by = Regex::new(r"by \(([^)]*)\)").unwrap();
    let expressions = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let mut checked = 0;
    for expression in expressions {
        let sums = by.captures(expression).map(|found| found[1].to_owned());
        let sums = sums.unwrap_or_default();
        let labels = sums.split(", ").filter(|label| !label.is_empty());
        let labels: Vec<&str> = labels.collect();
        for found in series.captures_iter(expression) {
            let selector = asked(found.get(2).map_or("", |selector| selector.as_str()));
            let is_it = |line: &&str| {
                let named = line
                    .strip_prefix(&found[1])
                    .is_some_and(|rest| rest.starts_with('{'));
                let picked = selector.iter().all(|(label, value)| {
                    let pattern = format!(r#"[{{,]{label}="(?:{value})""#);
                    Regex::new(&pattern).unwrap().is_match(line)
                });
                let has = |label: &&str| {
                    line.contains(&format!("{{{label}=\""))
                        || line.contains(&format!(",{label}=\""))
                };
                named && picked && labels.iter().all(has)
            };
            assert!(
                page.lines().any(|line| is_it(&line)),
                "{} with {selector:?} and {labels:?}:\n{page}",
                &found[1]
            );
            checked += 1;
        }
    }
    assert!(checked >= 8, "{checked}");
}
