//! `conformance otel`: OpenTelemetry's own collector takes what a waypoint sends, over gRPC and over HTTP: one linked span
//! for each request, access logs, and metrics that are exactly what was sent.

use std::process::Command;

use anyhow::Result;

use crate::{cluster, shell};

pub(super) fn run() -> Result<()> {
    let collector = cluster::build::otelcol()?;
    let mut command = Command::new("cargo");
    command
        .args(["test", "-p", "karst-waypoint", "--test", "peer"])
        .args(["--", "--ignored", "--exact"])
        .arg("telemetry::opentelemetrys_collector_gets_everything")
        .env("KARST_OTELCOL", collector);
    shell::run(&mut command)
}
