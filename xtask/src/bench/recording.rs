//! What recording a connection costs: P6 with metrics and access log, as without configuration, beside P6 with both switched
//! off by the Telemetry API, in turns.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{Args, MESHED, Sample, connects, median, report::Row};
use crate::lab::Lab;

const FILE: &str = "recording.yaml";
const OFF: &str = "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata:
  name: silent
  namespace: meshed
spec:
  metrics:
    - providers: [{name: prometheus}]
      overrides: [{disabled: true}]
  accessLogging:
    - disabled: true
";
/// Until agents record as an object says: nothing outside tells when they do, and the measurement is longer.
const SETTLE: Duration = Duration::from_secs(1);

/// P12.
pub(super) fn connections(lab: &Lab, args: &Args) -> Result<Row> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds.max(1) {
        with.push(measure(lab, args).context("P12 recorded")?);
        lab.add(FILE, OFF)?;
        without.push(measure(lab, args).context("P12 not recorded")?);
        lab.remove(FILE)?;
    }
    Ok(Row::against(
        "P12",
        "CPU of the machine for P6, recorded beside not",
        "us CPU",
        median(with).value,
        "nothing",
        median(without).value,
    ))
}

/// CPU of one connection, as the value.
fn measure(lab: &Lab, args: &Args) -> Result<Sample> {
    thread::sleep(SETTLE);
    let sample = connects(lab, MESHED, args.seconds)?;
    Ok(Sample {
        value: sample.cpu_us_per_op,
        ..sample
    })
}
