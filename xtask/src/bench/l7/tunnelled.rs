//! P21: an HTTP request from pod to pod through the mesh, with a waypoint before the service: what it costs the waypoint, what
//! it costs the two agents, and how many go through a second beside the same requests between two pods outside of the mesh.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    super::{Args, MESHED, PLAIN, Sample, cpu::ProcessStat, median, per, report::Row},
    load,
};
use crate::lab::{Lab, Pod};

const EXAMPLE: &str = "examples/bench-waypoint";
/// The service of the example, and the port of its pods.
const SERVICE: &str = "10.96.77.1:80";
const POD_PORT: u16 = 8080;
/// The lab makes the Gateway's waypoint a pod of this name.
const WAYPOINT: Pod = Pod {
    namespace: "gates",
    name: "waypoint-0",
};

/// What one measurement gave.
struct Figures {
    /// Requests a second.
    meshed: f64,
    direct: f64,
    /// Microseconds of CPU for one request.
    waypoint: f64,
    agents: f64,
}

/// P21.
pub(super) fn rows(args: &Args) -> Result<Vec<Row>> {
    let lab = Lab::up("benchl7", EXAMPLE)?;
    lab.wait_enrolled(MESHED.client.namespace, true)?;
    let figures: Vec<Figures> = (0..args.rounds.max(1))
        .map(|_| measure(&lab, args.seconds).context("P21"))
        .collect::<Result<_>>()?;
    let left = lab.down()?;
    if !left.is_empty() {
        bail!("the lab left behind: {}", left.join(", "));
    }
    let of = |which: fn(&Figures) -> f64| {
        let samples = figures.iter().map(|figures| Sample {
            value: which(figures),
            cpu_us_per_op: 0.0,
        });
        median(samples.collect()).value
    };
    Ok(vec![
        Row::alone(
            "P21",
            "HBONE in, L7, HBONE out: CPU of the waypoint a request",
            "us CPU",
            of(|all| all.waypoint),
        ),
        Row::alone(
            "P21",
            "the same: CPU of both agents a request",
            "us CPU",
            of(|all| all.agents),
        ),
        Row::timed(
            "P21",
            "the same: requests answered, beside no mesh",
            "1/s",
            of(|all| all.meshed),
            of(|all| all.direct),
        ),
    ])
}

fn measure(lab: &Lab, seconds: u64) -> Result<Figures> {
    let requests = |client, target: &str| {
        let url = format!("http://{target}/?bytes=1024");
        load::wrk_to(&mut lab.inside(client, &["wrk"])?, &url, seconds)
    };
    let server = format!("{}:{POD_PORT}", lab.address(PLAIN.server)?);
    let direct = requests(PLAIN.client, &server)?;
    let (waypoint, agents) = (pids_of_waypoint(lab)?, lab.agents()?);
    let before = (cpu(&waypoint)?, cpu(&agents)?);
    let meshed = requests(MESHED.client, SERVICE)?;
    let spent = |pids: &[u64], before: Duration| {
        Ok::<_, anyhow::Error>(per(cpu(pids)?.saturating_sub(before), meshed))
    };
    Ok(Figures {
        meshed: meshed / seconds as f64,
        direct: direct / seconds as f64,
        waypoint: spent(&waypoint, before.0)?,
        agents: spent(&agents, before.1)?,
    })
}

fn pids_of_waypoint(lab: &Lab) -> Result<Vec<u64>> {
    let processes = lab.processes(WAYPOINT)?;
    Ok(processes.into_iter().map(|(pid, _)| pid).collect())
}

/// CPU that the processes have spent.
fn cpu(pids: &[u64]) -> Result<Duration> {
    ensure!(!pids.is_empty(), "there is no such process");
    pids.iter()
        .map(|pid| {
            let stat = ProcessStat::of(*pid);
            Ok(stat
                .with_context(|| format!("process {pid} has ended"))?
                .cpu())
        })
        .sum()
}
