//! What recording costs on the path of a connection and of a request: nanoseconds of one call, the fastest of ten rounds.
//!
//! `cargo run --release -p karst-telemetry --example record`

#![expect(clippy::print_stdout, reason = "it prints its figures")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use karst_telemetry::{
    metrics::{
        Registry,
        http::{HttpLabels, HttpMetrics, RequestFlag, RequestProtocol},
        tcp::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels, TcpMetrics},
    },
    trace::{Context, Parent},
};

const CALLS: u32 = 1_000_000;

fn measure(name: &str, mut work: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        (0..CALLS).for_each(|_| work());
        best = best.min(start.elapsed());
    }
    println!(
        "{name:48} {:7.1} ns",
        best.as_nanos() as f64 / f64::from(CALLS)
    );
}

fn main() {
    let registry = Registry::new();
    let peer = |name: &str| Peer {
        workload: name.into(),
        namespace: "shop".into(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}").into(),
        ..Peer::default()
    };
    let tcp = TcpMetrics::register(&registry);
    let connection = TcpLabels {
        reporter: Reporter::Source,
        source: peer("web"),
        destination: peer("orders"),
        service: ServiceLabels::default(),
        response_flags: ResponseFlags::None,
        security: Security::MutualTls,
    };
    let handles = tcp.handles(&connection);
    measure("bytes of a connection", || {
        handles.received.inc_by(black_box(1400));
    });
    measure("a connection: opened, closed, bytes both ways", || {
        handles.opened.inc();
        handles.received.inc_by(black_box(1400));
        handles.sent.inc_by(black_box(1400));
        handles.closed.inc();
    });
    measure("the label set of a new connection", || {
        black_box(tcp.handles(&connection));
    });
    let http = HttpMetrics::register(&registry);
    let request = http.handles(&HttpLabels {
        reporter: Reporter::Waypoint,
        source: Arc::new(peer("web")),
        destination: Arc::new(peer("orders")),
        service: Arc::default(),
        protocol: RequestProtocol::Http,
        response_code: 200,
        grpc_status: None,
        flag: RequestFlag::None,
        security: Security::MutualTls,
    });
    measure("a request: count and three histograms", || {
        request.count(Duration::from_micros(black_box(700)), 100, black_box(2000));
    });
    let header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    measure("the decision about a request's trace", || {
        let parent = Parent::read(black_box(header));
        black_box(Context::start(parent, 100, || 7));
    });
}
