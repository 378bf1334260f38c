//! How long a decision about a request takes among 1, 100 and 10,000 policies:
//! `cargo run --release -p karst-policy --example decide_requests`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for the terminal, over inputs of its own"
)]

use std::{hint::black_box, sync::Arc, time::Instant};

use http::{Version, header};
use karst_model::{
    policy::{Match, StringMatch},
    waypoint_policy::{
        PathPattern, PolicyTarget, RequestAction, RequestClause, RequestMatch, RequestRule,
        WaypointPolicy,
    },
};
use karst_policy::{
    Connection,
    request::{Asked, RequestPolicies},
};
use karst_routing::request::{Request, Scheme, Seen};

const SIZES: [usize; 3] = [1, 100, 10_000];
const BATCH: usize = 1_000;
const BATCHES: usize = 200;

/// Each policy lets one account use one path.
fn policy(number: usize) -> Arc<WaypointPolicy> {
    let from = RequestMatch {
        connection: Match {
            principals: vec![StringMatch::Exact(
                format!("cluster.local/ns/shop/sa/client-{number}").into(),
            )],
            ..Match::default()
        },
        ..RequestMatch::default()
    };
    let to = RequestMatch {
        methods: vec![StringMatch::Exact("GET".into())],
        paths: vec![PathPattern::Text(StringMatch::Prefix(
            format!("/api/{number}/").into(),
        ))],
        ..RequestMatch::default()
    };
    let clause = |m| RequestClause { matches: vec![m] };
    Arc::new(WaypointPolicy {
        key: format!("shop/p-{number}").parse().unwrap(),
        targets: vec![PolicyTarget::GatewayClass("istio-waypoint".into())],
        action: RequestAction::Allow,
        provider: None,
        dry_run: false,
        rules: vec![RequestRule {
            clauses: vec![clause(from), clause(to)],
        }],
    })
}

fn asked(number: usize) -> (Request, Connection) {
    let (parts, ()) = http::Request::builder()
        .uri(format!("/api/{number}/items?page=2"))
        .version(Version::HTTP_11)
        .header(header::HOST, "orders:80")
        .body(())
        .unwrap()
        .into_parts();
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    let connection = Connection {
        source: Some(
            format!("spiffe://cluster.local/ns/shop/sa/client-{number}")
                .parse()
                .unwrap(),
        ),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    (Request::new(parts, seen).unwrap(), connection)
}

fn main() {
    for size in SIZES {
        let started = Instant::now();
        let policies = RequestPolicies::compile((0..size).map(policy), &[]);
        let compiled = started.elapsed();
        let requests: Vec<_> = (0..BATCH).map(|n| asked(n * 7919 % size)).collect();
        let mut times: Vec<f64> = (0..BATCHES)
            .map(|_| {
                let started = Instant::now();
                for (request, connection) in &requests {
                    let asked = Asked {
                        request,
                        connection,
                        remote_ip: connection.source_ip,
                        sni: None,
                    };
                    assert!(black_box(policies.decide(black_box(&asked))).is_allowed());
                }
                started.elapsed().as_nanos() as f64 / BATCH as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{size:>6} policies: {:4.0} ns, compiled in {:.1} ms",
            times[BATCHES / 2],
            compiled.as_secs_f64() * 1e3
        );
    }
}
