//! `conformance prometheus`: promtool takes the rules and alerts, each alert fires when it should and is silent when it
//! should be, and every expression of the dashboards is one. Then the same on series that were recorded of running programs,
//! for which it makes a lab and must be root.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{cluster, release, shell};

pub(super) fn run() -> Result<()> {
    let (_prometheus, promtool) = cluster::build::prometheus()?;
    let rules = shell::root().join("manifests/prometheus");
    let tool = |words: &[&str]| {
        let mut command = Command::new(&promtool);
        shell::run(command.current_dir(&rules).args(words))
    };
    tool(&["check", "rules", "recording.yaml", "alerts.yaml"])?;
    tool(&["test", "rules", "tests.yaml"])?;
    let file = shell::root().join("target/dashboards.rules.yaml");
    fs::write(
        &file,
        panels(&shell::root().join("manifests/dashboards"))?.to_string(),
    )?;
    tool(&["check", "rules", "--lint=none", &file.to_string_lossy()])?;
    recorded(&promtool)
}

/// The node test that records what agents, a waypoint and a controller say, and has promtool look at it.
fn recorded(promtool: &Path) -> Result<()> {
    if release::given().is_none() {
        release::ebpf()?;
        shell::run(shell::cargo().args(["build", "--workspace", "--bins"]))?;
    }
    let mut test = shell::cargo();
    test.args([
        "test",
        "--package",
        "karst-test-node",
        "--test",
        "telemetry",
    ])
    .args(["--", "--ignored", "--exact", "--nocapture"])
    .arg("rules_and_alerts_hold_on_what_running_programs_write")
    .env("KARST_PROMTOOL", promtool);
    shell::run(&mut test)
}

/// Every panel's expression as a recording rule, with values for the dashboard's variables.
fn panels(folder: &Path) -> Result<Value> {
    let mut rules = Vec::new();
    for entry in fs::read_dir(folder)? {
        let text = fs::read_to_string(entry?.path())?;
        let board: Value = serde_json::from_str(&text)?;
        let panels = board["panels"].as_array().context("no panels")?.iter();
        let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        for target in targets {
            let expression = target["expr"].as_str().context("no expression")?;
            let expression = expression.replace("$__rate_interval", "1m");
            rules.push(json!({"record": format!("panel:{}", rules.len()), "expr": expression}));
        }
    }
    Ok(json!({"groups": [{"name": "panels", "rules": rules}]}))
}
