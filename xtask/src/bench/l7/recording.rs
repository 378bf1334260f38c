//! What recording costs per request: the waypoint that records nothing beside one that records as without configuration,
//! one that sends all of it to OpenTelemetry's collector with the usual share of traces, and one that traces every request.
//! Interleaved in one run, at a rate that a collector on the same machine can follow: what it drops would cost too little.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{
    load,
    proxies::{self, Backend, Running},
};
use crate::{bench::report::Row, cluster};

/// How the example is told to record, and what that is.
const RECORDED: [(&str, &str); 3] = [
    ("usual", "metrics"),
    (
        "sampled",
        "metrics, access logs and 1 % of traces to a collector",
    ),
    (
        "everything",
        "metrics, access logs and every trace to a collector",
    ),
];
/// What everything is compared with.
const NOTHING: &str = "nothing";

/// P26.
pub(super) fn rows(backend: &Backend, rounds: usize, seconds: u64) -> Result<Vec<Row>> {
    let collector = proxies::collector(&cluster::build::otelcol()?)?;
    let names = std::iter::once(NOTHING).chain(RECORDED.map(|(name, _)| name));
    let running: Vec<(&str, Running)> = names
        .map(|name| Ok((name, proxies::start_recording(name, &collector, backend)?)))
        .collect::<Result<_>>()?;
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds.max(1) {
        for (name, running) in &running {
            let before = running.cpu()?;
            let requests =
                load::at_a_rate(running, seconds).with_context(|| format!("recording {name}"))?;
            let spent = running.cpu()?.saturating_sub(before);
            let figure = spent.as_secs_f64() * 1e6 / requests.max(1.0);
            figures.entry(name).or_default().push(figure);
        }
    }
    let median = |name: &str| {
        let mut of = figures.get(name)?.clone();
        of.sort_by(f64::total_cmp);
        of.get(of.len() / 2).copied()
    };
    let nothing = median(NOTHING).context("nothing was measured")?;
    let rows = RECORDED.iter().filter_map(|(name, what)| {
        let with = median(name)?;
        Some(Row::against("P26", what, "us CPU", with, NOTHING, nothing))
    });
    Ok(rows.collect())
}
