//! `bench control-plane`: P30 to P32. The work is done by `karst-bench-control-plane` of the package `karst-benches`,
//! which may link the product; this runs it and keeps the table.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Args, Output, report};
use crate::{release, shell};

/// Agents and workloads of each run.
const RUNS: [(u32, u32); 5] = [
    (10, 1000),
    (100, 1000),
    (1000, 1000),
    (10, 10_000),
    (100, 10_000),
];

pub(super) fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        release::run()?;
        release::tool("karst-benches")?;
    }
    let mut rows = measured(&["fill"])?;
    let controller = release::folder().join("karst-controller");
    for (agents, workloads) in RUNS {
        rows.extend(measured(&[
            "agents",
            "--controller",
            &controller.to_string_lossy(),
            "--agents",
            &agents.to_string(),
            "--workloads",
            &workloads.to_string(),
        ])?);
    }
    rows.sort_by_key(|row| row["id"].to_string());
    match args.output {
        Output::Json => report::print_lines(rows.iter().map(Value::to_string)),
        Output::Table => report::replace("control-plane", &table(&rows)),
    }
}

fn measured(words: &[&str]) -> Result<Vec<Value>> {
    let program = release::folder().join("karst-bench-control-plane");
    let printed = shell::capture(std::process::Command::new(program).args(words))?;
    printed
        .lines()
        .map(|line| {
            serde_json::from_str(line).context("reading a row of the control plane's bench")
        })
        .collect()
}

fn table(rows: &[Value]) -> String {
    let mut text = format!(
        "{}\n\n| id | work | Karst | p99 | controller's memory, MB | further |\n|---|---|---|---|---|---|\n",
        report::provenance()
    );
    for row in rows {
        let number = |name: &str| {
            row[name]
                .as_f64()
                .map_or_else(|| "-".to_owned(), report::significant)
        };
        let memory = ["memory_mb", "controller_memory_mb"]
            .map(number)
            .into_iter()
            .find(|text| text != "-");
        let further = [
            (
                "controller_cpu_ms_per_change",
                "ms of controller CPU a change",
            ),
            ("resent_percent", "% of the resources resent"),
        ]
        .into_iter()
        .find(|(name, _)| row[*name].is_f64())
        .map_or_else(
            || "-".to_owned(),
            |(name, unit)| format!("{} {unit}", number(name)),
        );
        text += &format!(
            "| {} | {} | {} {} | {} | {} | {further} |\n",
            row["id"].as_str().unwrap_or("-"),
            row["what"].as_str().unwrap_or("-"),
            number("karst"),
            row["unit"].as_str().unwrap_or(""),
            number("p99"),
            memory.unwrap_or_else(|| "-".to_owned()),
        );
    }
    text
}
