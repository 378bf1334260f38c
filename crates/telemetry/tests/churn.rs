//! Workloads that come, connect once and go: whoever scrapes an agent reads a page of a bounded size, and every connection
//! and byte stays in its sums.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use karst_telemetry::metrics::{
    Registry,
    tcp::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels, TcpMetrics},
};

/// Workloads in all, and as many as are there at once.
const WORKLOADS: u64 = 10_000;
const AT_ONCE: u64 = 50;
/// What a page may have.
const SERIES_MAX: usize = 5_000;
const BYTES_MAX: usize = 2_000_000;

fn labels(number: u64) -> TcpLabels {
    let peer = |name: String| Peer {
        namespace: "jobs".into(),
        workload: name.clone().into(),
        canonical_service: name.into(),
        ..Peer::default()
    };
    TcpLabels {
        reporter: Reporter::Source,
        source: peer(format!("job-{number}")),
        destination: peer("database".to_owned()),
        service: ServiceLabels::default(),
        response_flags: ResponseFlags::None,
        security: Security::MutualTls,
    }
}

fn sum(page: &str, metric: &str) -> u64 {
    let lines = page.lines().filter(|line| {
        let rest = line.strip_prefix(metric);
        rest.is_some_and(|rest| rest.starts_with('{'))
    });
    lines
        .map(|line| line.rsplit_once("} ").unwrap().1.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn ten_thousand_short_lived_workloads_leave_a_small_page_and_exact_sums() {
    let registry = Registry::new();
    let metrics = TcpMetrics::register(&registry);
    let (mut longest, mut most) = (0, 0);
    let mut bytes = 0;
    for first in (0..WORKLOADS).step_by(usize::try_from(AT_ONCE).unwrap()) {
        for number in first..first + AT_ONCE {
            let handles = metrics.handles(&labels(number));
            handles.opened.inc();
            handles.received.inc_by(number);
            handles.sent.inc_by(3);
            handles.closed.inc();
            bytes += number;
        }
        // The next ones come, these go.
        metrics.retire(&|(_, name)| **name == *"database");
        metrics.sweep();
        let page = registry.encode();
        let series = page.lines().filter(|line| !line.starts_with('#')).count();
        (longest, most) = (longest.max(page.len()), most.max(series));
        assert!(series < SERIES_MAX, "{series} series after {first}");
        assert!(page.len() < BYTES_MAX, "{} bytes after {first}", page.len());
    }
    let page = registry.encode();
    assert_eq!(sum(&page, "istio_tcp_connections_opened_total"), WORKLOADS);
    assert_eq!(sum(&page, "istio_tcp_connections_closed_total"), WORKLOADS);
    assert_eq!(sum(&page, "istio_tcp_received_bytes_total"), bytes);
    assert_eq!(sum(&page, "istio_tcp_sent_bytes_total"), 3 * WORKLOADS);
    eprintln!("at most {most} series, {longest} bytes");
}
