//! `bench l7`: what an HTTP request costs in a waypoint, beside nginx, HAProxy and Envoy doing the same work in the same
//! interleaved run (P20, P22, P24), what a request costs on its way
//! through the mesh (P21), what choosing a route costs (P23), what each feature adds to a request (P25), and what recording does
//! (P26).
//!
//! ```text
//!   wrk, h2load ──► proxy (one thread) ──► nginx that answers 1 KB        all on loopback
//!   for each round: for each proxy: load, CPU of the proxy's own processes, memory ──► medians ──► ratios
//! ```
//!
//! The waypoint serves plain connections here (the example `plain_proxy` of its package): its comparators know no tunnel.
//! What the tunnels cost is P21, measured between the pods of a lab.

mod features;
mod load;
mod proxies;
mod recording;
mod tunnelled;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::{
    load::Kind,
    proxies::{Proxy, Running},
};
use super::{Args, Output, report, report::Row};
use crate::{
    release,
    setup::{self, Group},
    shell,
};

/// CPU of the proxy for one request, in microseconds, of each round.
type Figures = BTreeMap<(Kind, Proxy), Vec<f64>>;

pub(super) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[
        Group::Build,
        Group::Ebpf,
        Group::Demo,
        Group::Load,
        Group::Readers,
        Group::Http2Load,
        Group::Interop,
        Group::Lab,
    ])?;
    if !args.no_build {
        release::run()?;
        release::example("karst-waypoint", "plain_proxy")?;
    }
    let mut rows = tunnelled::rows(args)?;
    rows.extend(matching()?);
    rows.extend(proxied(args)?);
    rows.sort_by_key(Row::number);
    match args.output {
        Output::Json => report::print(&rows),
        Output::Table => report::write_beside("l7", &rows, args.rounds, args.seconds),
    }
}

/// P20, P22, P24, P25, P26.
fn proxied(args: &Args) -> Result<Vec<Row>> {
    let backend = proxies::backend()?;
    let running: Vec<Running> = Proxy::ALL
        .into_iter()
        .map(|proxy| proxies::start(proxy, &backend))
        .collect::<Result<_>>()?;
    let idle: BTreeMap<_, _> = running
        .iter()
        .map(|running| Ok((running.proxy, running.memory_mb()?)))
        .collect::<Result<_>>()?;
    let mut figures = Figures::new();
    for _ in 0..args.rounds.max(1) {
        for kind in Kind::ALL {
            for running in running.iter().filter(|running| kind.fits(running.proxy)) {
                let figure = measure(kind, running, args.seconds)
                    .with_context(|| format!("{} with {}", kind.id(), running.proxy.name()))?;
                figures
                    .entry((kind, running.proxy))
                    .or_default()
                    .push(figure);
            }
        }
    }
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        rows.extend(against_others(kind, &figures));
    }
    rows.extend(memory(&idle));
    drop(running);
    rows.extend(features::rows(&backend, args.rounds, args.seconds)?);
    rows.extend(recording::rows(&backend, args.rounds, args.seconds)?);
    Ok(rows)
}

fn measure(kind: Kind, running: &Running, seconds: u64) -> Result<f64> {
    let before = running.cpu()?;
    let requests = load::run(kind, running, seconds)?;
    let spent = running.cpu()?.saturating_sub(before);
    Ok(spent.as_secs_f64() * 1e6 / requests.max(1.0))
}

fn against_others(kind: Kind, figures: &Figures) -> Vec<Row> {
    let median = |proxy| {
        let mut of = figures.get(&(kind, proxy))?.clone();
        of.sort_by(f64::total_cmp);
        of.get(of.len() / 2).copied()
    };
    let Some(ours) = median(Proxy::Karst) else {
        return Vec::new();
    };
    Proxy::ALL
        .into_iter()
        .filter(|proxy| *proxy != Proxy::Karst)
        .filter_map(|proxy| {
            let theirs = median(proxy)?;
            Some(Row::against(
                kind.id(),
                kind.what(),
                "us CPU",
                ours,
                proxy.name(),
                theirs,
            ))
        })
        .collect()
}

fn memory(idle: &BTreeMap<Proxy, f64>) -> Vec<Row> {
    let Some(ours) = idle.get(&Proxy::Karst) else {
        return Vec::new();
    };
    idle.iter()
        .filter(|(proxy, _)| **proxy != Proxy::Karst)
        .map(|(proxy, theirs)| {
            Row::against(
                "P24",
                "memory of an idle proxy",
                "MB",
                *ours,
                proxy.name(),
                *theirs,
            )
        })
        .collect()
}

/// P23: from the example of `karst-routing`, which prints `{"routes":N,"ns_p50":…}` per line.
fn matching() -> Result<Vec<Row>> {
    let mut example = shell::cargo();
    example.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "karst-routing",
        "--example",
        "match_routes",
    ]);
    let printed = shell::capture(example.args(["--", "--output", "json"]))?;
    printed.lines().map(matching_row).collect()
}

fn matching_row(line: &str) -> Result<Row> {
    let result: Value = serde_json::from_str(line).context("reading the example's result")?;
    let nanoseconds = result["ns_p50"]
        .as_f64()
        .context("the example names no ns_p50")?;
    let what = match result["routes"].as_u64() {
        Some(1) => "route match, 1 route, p50",
        Some(100) => "route match, 100 routes, p50",
        Some(10_000) => "route match, 10,000 routes, p50",
        other => anyhow::bail!("the example measured {other:?} routes"),
    };
    Ok(Row::alone("P23", what, "us", nanoseconds / 1000.0))
}
