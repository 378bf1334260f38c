//! What every cluster has besides its parts: DNS, and the Gateway API's resource definitions.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{build, kubectl, plan::Plan};
use crate::shell;

/// How long CoreDNS may take until its pod is ready.
const DNS_READY: Duration = Duration::from_secs(90);

/// Applies both, and waits until DNS answers.
pub(super) fn apply(plan: &Plan) -> Result<()> {
    dns(plan)?;
    gateway_api(plan)?;
    let timeout = format!("--timeout={}s", DNS_READY.as_secs());
    let status = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
    ];
    shell::capture(kubectl(plan).args(status).arg(timeout))
        .map(drop)
        .context("CoreDNS does not start: see `cargo xtask cluster kubectl -- describe pods -n kube-system`")
}

fn dns(plan: &Plan) -> Result<()> {
    let file = build::sources().join("coredns.yaml");
    let yaml = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut apply = kubectl(plan);
    apply.args(["apply", "-f", "-"]);
    feed(&mut apply, &yaml.replace("@DNS@", &plan.dns().to_string()))
}

/// Runs a command with this text as its input.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", shell::line(command)))?;
    let mut input = child.stdin.take().context("its input is piped")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let status = child.wait()?;
    anyhow::ensure!(
        status.success(),
        "{} failed: {status}",
        shell::line(command)
    );
    Ok(())
}

fn gateway_api(plan: &Plan) -> Result<()> {
    let newest = "httproutes.gateway.networking.k8s.io";
    if shell::succeeds(kubectl(plan).args(["get", "crd", newest])) {
        return Ok(());
    }
    let folder = build::gateway_api()?;
    let mut apply = kubectl(plan);
    apply.args(["apply", "--server-side", "-k"]).arg(folder);
    shell::capture(&mut apply).map(drop)
}
