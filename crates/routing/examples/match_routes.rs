//! P23: how long it takes to find the rule of a request among 1, 100 and 10,000.
//!
//! `cargo run --release -p karst-routing --example match_routes -- --output json` prints one line for each number of
//! routes. `cargo xtask bench l7` runs it.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for the terminal, over inputs of its own"
)]

use std::{
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Version, header};
use karst_model::{
    name::ServiceKey,
    route::{
        Attachment, Clients, HeaderMatch, HostMatch, HttpMatch, HttpRule, PathMatch, Route,
        RouteKey, RouteKind, RouteRules, ValueMatch,
    },
};
use karst_routing::{
    request::{Request, Scheme, Seen},
    table::{Routes, Table},
};

const SIZES: [usize; 3] = [1, 100, 10_000];
/// Rules of one route object, as the Gateway API allows.
const RULES_PER_ROUTE: usize = 16;
/// Matches timed together, so that the clock costs nothing.
const BATCH: usize = 200;
const BATCHES: usize = 2_000;

/// What tells the rules apart.
#[derive(Clone, Copy, Debug)]
enum Mix {
    /// `/api/v1/resource-N`, as a prefix.
    Prefix,
    /// The same, exactly.
    Exact,
    /// Host names.
    Host,
    /// One path, a value of one header.
    Header,
    /// `/api/v1/resource-N/[0-9]+`.
    Regex,
}

impl Mix {
    const ALL: [Self; 5] = [
        Self::Prefix,
        Self::Exact,
        Self::Host,
        Self::Header,
        Self::Regex,
    ];

    fn rule(self, number: usize) -> HttpRule {
        let path = format!("/api/v1/resource-{number}");
        let mut m = HttpMatch::default();
        match self {
            Self::Prefix => m.path = Some(PathMatch::Prefix(path.into())),
            Self::Exact => m.path = Some(PathMatch::Exact(path.into())),
            Self::Host => m.hosts = vec![HostMatch::Exact(format!("h{number}.example.com").into())],
            Self::Header => {
                m.path = Some(PathMatch::Prefix("/api".into()));
                m.headers = vec![HeaderMatch {
                    name: "x-user".into(),
                    value: ValueMatch::Exact(format!("user-{number}").into()),
                }];
            }
            Self::Regex => m.path = Some(PathMatch::Regex(format!("{path}/[0-9]+").into())),
        }
        HttpRule {
            matches: vec![m],
            ..HttpRule::default()
        }
    }

    fn request(self, number: usize) -> Request {
        let path = match self {
            Self::Regex => format!("/api/v1/resource-{number}/17?page=2"),
            Self::Exact => format!("/api/v1/resource-{number}?page=2"),
            Self::Prefix | Self::Host | Self::Header => {
                format!("/api/v1/resource-{number}/items/17?page=2")
            }
        };
        let (parts, ()) = http::Request::builder()
            .uri(path)
            .version(Version::HTTP_11)
            .header(header::HOST, format!("h{number}.example.com"))
            .header("user-agent", "match_routes")
            .header("accept", "*/*")
            .header("x-user", format!("user-{number}"))
            .body(())
            .unwrap()
            .into_parts();
        let seen = Seen {
            scheme: Scheme::Http,
            port: 80,
        };
        Request::new(parts, seen).unwrap()
    }
}

fn service() -> ServiceKey {
    "shop/orders.shop.svc.cluster.local".parse().unwrap()
}

fn routes(mix: Mix, size: usize) -> Vec<Arc<Route>> {
    let numbers: Vec<usize> = (0..size).collect();
    numbers
        .chunks(RULES_PER_ROUTE)
        .enumerate()
        .map(|(index, numbers)| {
            Arc::new(Route {
                key: RouteKey {
                    kind: RouteKind::HttpRoute,
                    namespace: "shop".into(),
                    name: format!("route-{index}").into(),
                },
                created: 0,
                attachments: vec![Attachment {
                    service: service(),
                    port: None,
                    clients: Clients::All,
                }],
                rules: RouteRules::Http(numbers.iter().map(|number| mix.rule(*number)).collect()),
            })
        })
        .collect()
}

/// Compile time, and the median and 99th percentile of a match.
fn measure(mix: Mix, size: usize) -> (Duration, f64, f64) {
    let routes = routes(mix, size);
    let started = Instant::now();
    let table = Table::compile(&service(), 80, routes);
    let compiled = started.elapsed();
    assert_eq!(table.problems(), []);
    let Routes::Http(table) = table.routes(None) else {
        panic!("there are HTTP routes");
    };
    // Far apart, so that no two requests in a row use the same memory.
    let requests: Vec<Request> = (0..BATCH).map(|n| mix.request(n * 7919 % size)).collect();
    let mut times: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let started = Instant::now();
            for request in &requests {
                assert!(black_box(table.pick(black_box(request))).is_some());
            }
            started.elapsed().as_nanos() as f64 / BATCH as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (compiled, times[BATCHES / 2], times[BATCHES * 99 / 100])
}

fn main() {
    let json = env::args().any(|arg| arg == "json" || arg == "--output=json");
    for size in SIZES {
        let mut fields = Vec::new();
        for mix in Mix::ALL {
            let (compiled, p50, p99) = measure(mix, size);
            let (name, ms) = (
                format!("{mix:?}").to_lowercase(),
                compiled.as_secs_f64() * 1e3,
            );
            if !json {
                println!(
                    "{size:>6} routes by {name:>6}: {p50:4.0} ns (p99 {p99:4.0}), compiled in {ms:.1} ms"
                );
            }
            // The usual mix stands for all.
            if fields.is_empty() {
                fields.push(format!("\"ns_p50\":{p50:.0}"));
            }
            fields.push(format!(
                "\"{name}_ns\":{p50:.0},\"{name}_compile_ms\":{ms:.1}"
            ));
        }
        if json {
            println!("{{\"routes\":{size},{}}}", fields.join(","));
        }
    }
}
