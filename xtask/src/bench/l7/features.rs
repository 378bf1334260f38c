//! What each feature costs per request: the waypoint with one of them against the waypoint with the plain route, under the
//! load of P20, interleaved in one run.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{
    load::{self, Kind},
    proxies::{self, Backend, Running},
};
use crate::bench::report::Row;

/// The plain route, which everything is compared with.
const PLAIN: &str = "route";

/// Features by the name that the example knows them by, and what they are.
const FEATURES: [(&str, &str); 7] = [
    (
        "rate-limit",
        "two rate limits, by address and for all, a request",
    ),
    ("headers", "three header changes, a request"),
    ("retry", "a retry policy that is not needed, a request"),
    ("fault", "a fault for 0 % of requests, a request"),
    ("breaker", "outlier ejection and circuit breaker, a request"),
    ("hash", "a Maglev hash by client address, a request"),
    ("session", "a new session in a header, a request"),
];

/// P25.
pub(super) fn rows(backend: &Backend, rounds: usize, seconds: u64) -> Result<Vec<Row>> {
    let names = std::iter::once(PLAIN).chain(FEATURES.map(|(name, _)| name));
    let running: Vec<(&str, Running)> = names
        .map(|name| Ok((name, proxies::start_with(name, backend)?)))
        .collect::<Result<_>>()?;
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds.max(1) {
        for (name, running) in &running {
            let before = running.cpu()?;
            let requests = load::run(Kind::Http1, running, seconds)
                .with_context(|| format!("feature {name}"))?;
            let spent = running.cpu()?.saturating_sub(before);
            let figure = spent.as_secs_f64() * 1e6 / requests.max(1.0);
            figures.entry(name).or_default().push(figure);
        }
    }
    // Of each round its own difference: what the machine does beside weighs on both.
    let plain = figures.get(PLAIN).cloned().unwrap_or_default();
    let cost = |name: &str| {
        let of = figures.get(name)?.iter().zip(&plain);
        let mut differences: Vec<f64> = of.map(|(with, without)| with - without).collect();
        differences.sort_by(f64::total_cmp);
        differences.get(differences.len() / 2).copied()
    };
    let rows = FEATURES.iter().filter_map(|(name, what)| {
        let cost = cost(name)?.max(0.0);
        Some(Row::alone("P25", what, "us CPU", cost))
    });
    Ok(rows.collect())
}
