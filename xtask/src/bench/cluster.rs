//! `bench cluster`: what enrolment, policy and start of a pod take on a real cluster (P13, P14, P16), and the data path
//! between real pods on two nodes (P1, P4, P6, P15).
//!
//! ```text
//!   examples/bench: the same pods as `bench l4`, in namespaces `meshed` and `plain`, on the cluster's nodes
//!   changes ──kubectl proxy──► API server; what follows is watched in the pods' namespaces and on the node's link
//! ```

mod api;
mod changes;
mod link;
mod pods;

use anyhow::{Context as _, Result};

use super::{
    Args, COMPARISONS, Comparison, MESHED, Output, PLAIN, Pair, Sample, Site, allow_port_reuse,
    cpu::CpuTime, measure, per, report, report::Row, start_iperf,
};
use crate::{
    cluster::Cluster,
    setup::{self, Group},
    shell,
};
use pods::Pods;

const ROWS: [&str; 3] = ["P1", "P4", "P6"];
const HTTP_PORT: u16 = 8080;

/// HTTP on top of the rows that the lab measures too.
const HTTP: Comparison = Comparison {
    id: "P15",
    what: "HTTP/1.1, 1 KB, 16 connections, two nodes",
    unit: "requests/s",
    karst: MESHED,
    measure: http,
};

pub(super) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Group::Build, Group::Load, Group::Cluster])?;
    let cluster = Cluster::find(args.id)?;
    let pods = Pods::start(&cluster)?;
    let mut rows = changes::rows(&cluster, &pods, args.rounds)?;
    rows.extend(between(&pods, args)?);
    rows.sort_by_key(Row::number);
    pods.remove()?;
    match args.output {
        Output::Json => report::print(&rows),
        Output::Table => report::write("cluster", &rows, args.rounds, args.seconds),
    }
}

fn between(pods: &Pods, args: &Args) -> Result<Vec<Row>> {
    for pod in [PLAIN.client, PLAIN.server] {
        allow_port_reuse(pods, pod)?;
    }
    let servers = [MESHED.server, PLAIN.server].map(|pod| start_iperf(pods, pod));
    let rows = COMPARISONS
        .iter()
        .filter(|comparison| ROWS.contains(&comparison.id))
        .chain([&HTTP])
        .map(|comparison| measure(pods, comparison, args))
        .collect();
    for server in servers {
        let mut server = server?;
        server.kill()?;
        server.wait()?;
    }
    rows
}

/// wrk for some seconds; the value is requests per second.
fn http(site: &dyn Site, pair: Pair, seconds: u64) -> Result<Sample> {
    let target = std::net::SocketAddr::new(site.address(pair.server)?, HTTP_PORT);
    let url = format!("http://{target}/?bytes=1024");
    let time = format!("{seconds}s");
    let words = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        "16",
        "--duration",
        &time,
        &url,
    ];
    let before = CpuTime::now()?;
    let printed = shell::capture(&mut site.inside(pair.client, &words)?)?;
    let spent = CpuTime::now()?.since(before);
    let rate = printed
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
        .with_context(|| format!("wrk names no rate: {printed}"))?;
    let rate: f64 = rate.trim().parse()?;
    Ok(Sample {
        value: rate,
        cpu_us_per_op: per(spent, rate * seconds as f64),
    })
}
