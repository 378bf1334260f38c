//! `bench`: what Karst costs. `bench l4` is here: the mesh against plain TCP, in one interleaved run, with the CPU that each operation costs.
//!
//! ```text
//!   examples/bench: namespace `meshed` (enrolled) and `plain` (not), a client on node a, a server on node b in each
//!   for each round: for each row: plain, then meshed ──► medians ──► ratio ──► docs/performance.md, JSON
//! ```
//!
//! CPU is that of the whole machine (all of /proc/stat but idle), so that work which the kernel does for a flow is not
//! lost; the machine must be quiet otherwise. Every id is defined in `docs/performance.md`.

mod cluster;
mod control_plane;
mod cpu;
mod l7;
mod recording;
mod report;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use self::{cpu::CpuTime, report::Row};
use crate::{
    cluster::ID_VARIABLE,
    lab::{Lab, Pod},
    load, release,
    setup::{self, Group},
    shell,
};

const EXAMPLE: &str = "examples/bench";
const ECHO_PORT: u16 = 9000;
const IPERF_PORT: u16 = 5201;
/// How long iperf3 may take until it listens.
const IPERF_START: Duration = Duration::from_secs(10);

/// What `bench` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmarks.
    name: Name,
    /// Rounds; the median of each row is reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// `table` updates docs/performance.md; `json` prints one object per row and changes nothing.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Use target/release as it is; `cluster` measures what is installed there, and never builds.
    #[arg(long)]
    no_build: bool,
    /// The cluster that `cluster` measures on.
    #[arg(long, default_value_t = 0, env = ID_VARIABLE)]
    id: u8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// P1, P3, P4, P6, P10, P11, P12.
    L4,
    /// P20 to P26.
    L7,
    /// P13 to P16, and P1, P4, P6 between real pods.
    Cluster,
    /// P30, P31, P32.
    ControlPlane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Writes the table.
    Table,
    /// Prints JSON.
    Json,
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// In the row's unit.
    value: f64,
    /// Microseconds of CPU of the whole machine for one operation (for throughput: one megabyte).
    cpu_us_per_op: f64,
}

/// A client and a server on two nodes.
#[derive(Clone, Copy)]
struct Pair {
    client: Pod,
    server: Pod,
}

const fn pair(namespace: &'static str) -> Pair {
    Pair {
        client: Pod {
            namespace,
            name: "client",
        },
        server: Pod {
            namespace,
            name: "server",
        },
    }
}

const MESHED: Pair = pair("meshed");
const PLAIN: Pair = pair("plain");
/// From inside the mesh to a server outside: the agent must not be on this path.
const LEAVING: Pair = Pair {
    client: MESHED.client,
    server: PLAIN.server,
};

/// Where the pods are.
trait Site {
    /// A command that runs in the pod's network namespace.
    fn inside(&self, pod: Pod, command: &[&str]) -> Result<Command>;

    fn address(&self, pod: Pod) -> Result<IpAddr>;
}

impl Site for Lab {
    fn inside(&self, pod: Pod, command: &[&str]) -> Result<Command> {
        Self::inside(self, pod, command)
    }

    fn address(&self, pod: Pod) -> Result<IpAddr> {
        Self::address(self, pod).map(IpAddr::V4)
    }
}

/// A row that compares two pairs.
struct Comparison {
    id: &'static str,
    what: &'static str,
    unit: &'static str,
    karst: Pair,
    measure: fn(&dyn Site, Pair, u64) -> Result<Sample>,
}

const COMPARISONS: &[Comparison] = &[
    Comparison {
        id: "P1",
        what: "one stream, two nodes",
        unit: "Gbit/s",
        karst: MESHED,
        measure: |site, pair, seconds| stream(site, pair, seconds, 1),
    },
    Comparison {
        id: "P3",
        what: "16 streams, two nodes",
        unit: "Gbit/s",
        karst: MESHED,
        measure: |site, pair, seconds| stream(site, pair, seconds, 16),
    },
    Comparison {
        id: "P4",
        what: "64 B request-response, two nodes, p50",
        unit: "us",
        karst: MESHED,
        measure: request_response,
    },
    Comparison {
        id: "P6",
        what: "connect-request-close, two nodes",
        unit: "1/s",
        karst: MESHED,
        measure: connects,
    },
    Comparison {
        id: "P11",
        what: "one stream from the mesh to a pod outside",
        unit: "Gbit/s",
        karst: LEAVING,
        measure: |site, pair, seconds| stream(site, pair, seconds, 1),
    },
];

/// `cargo xtask bench NAME`.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.name {
        Name::L4 => l4(args),
        Name::L7 => l7::run(args),
        Name::Cluster => cluster::run(args),
        Name::ControlPlane => control_plane::run(args),
    }
}

fn l4(args: &Args) -> Result<()> {
    setup::ensure(&[
        Group::Build,
        Group::Ebpf,
        Group::Lab,
        Group::Load,
        Group::Demo,
    ])?;
    if !args.no_build {
        release::run()?;
    }
    let mut rows = compare(args)?;
    rows.push(decision()?);
    rows.sort_by_key(Row::number);
    match args.output {
        Output::Json => report::print(&rows),
        Output::Table => report::write("l4", &rows, args.rounds, args.seconds),
    }
}

fn compare(args: &Args) -> Result<Vec<Row>> {
    let lab = Lab::up("bench", EXAMPLE)?;
    lab.wait_enrolled(MESHED.client.namespace, true)?;
    for pod in [PLAIN.client, PLAIN.server] {
        allow_port_reuse(&lab, pod)?;
    }
    let servers = [
        start_iperf(&lab, MESHED.server)?,
        start_iperf(&lab, PLAIN.server)?,
    ];
    let rows = COMPARISONS
        .iter()
        .map(|comparison| measure(&lab, comparison, args))
        .collect::<Result<Vec<Row>>>()
        .and_then(|mut rows| {
            rows.push(recording::connections(&lab, args)?);
            Ok(rows)
        });
    for mut server in servers {
        server.kill()?;
        server.wait()?;
    }
    let left = lab.down()?;
    if !left.is_empty() {
        bail!("the lab left behind: {}", left.join(", "));
    }
    rows
}

/// What capture allows in the pods of the mesh (docs/design/0005): without it the direct connects would run out of ports.
fn allow_port_reuse(site: &dyn Site, pod: Pod) -> Result<()> {
    let write = "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";
    shell::capture(&mut site.inside(pod, &["sh", "-c", write])?).map(drop)
}

/// iperf3's server is started once in each pod; it serves one client at a time, as the rounds are.
fn start_iperf(site: &dyn Site, server: Pod) -> Result<std::process::Child> {
    let port = IPERF_PORT.to_string();
    let mut command = site.inside(server, &["iperf3", "--server", "--port", &port])?;
    let command = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null());
    let mut started = command.spawn().context("starting iperf3")?;
    let port = format!("sport = :{IPERF_PORT}");
    let mut listening = site.inside(server, &["ss", "-Hltn", &port])?;
    let listens = || {
        let said = shell::capture(&mut listening).ok()?;
        (!said.is_empty()).then_some(())
    };
    let heard = shell::wait_for("iperf3 listens", IPERF_START, listens);
    if heard.is_err() {
        started.kill()?;
        started.wait()?;
    }
    heard.map(|()| started)
}

fn measure(site: &dyn Site, comparison: &Comparison, args: &Args) -> Result<Row> {
    let (mut direct, mut karst) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds.max(1) {
        direct.push(
            (comparison.measure)(site, PLAIN, args.seconds)
                .with_context(|| format!("{} direct", comparison.id))?,
        );
        karst.push(
            (comparison.measure)(site, comparison.karst, args.seconds)
                .with_context(|| format!("{} karst", comparison.id))?,
        );
    }
    Ok(Row::compared(
        comparison.id,
        comparison.what,
        comparison.unit,
        median(karst),
        median(direct),
    ))
}

fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.value.total_cmp(&b.value));
    samples[samples.len() / 2]
}

/// iperf3 from client to server; the value is what the server received.
fn stream(site: &dyn Site, pair: Pair, seconds: u64, streams: u32) -> Result<Sample> {
    let address = site.address(pair.server)?.to_string();
    let (port, seconds, streams) = (
        IPERF_PORT.to_string(),
        seconds.to_string(),
        streams.to_string(),
    );
    let words = [
        "iperf3",
        "--client",
        &address,
        "--port",
        &port,
        "--time",
        &seconds,
        "--parallel",
        &streams,
        "--json",
    ];
    let before = CpuTime::now()?;
    let printed = shell::capture(&mut site.inside(pair.client, &words)?)?;
    let spent = CpuTime::now()?.since(before);
    let result: Value = serde_json::from_str(&printed).context("reading iperf3's result")?;
    let received = &result["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 reports no rate: {}", result["error"]))?;
    let bytes = received["bytes"]
        .as_f64()
        .context("iperf3 reports no bytes")?;
    Ok(Sample {
        value: bits / 1e9,
        cpu_us_per_op: per(spent, bytes / 1e6),
    })
}

fn request_response(site: &dyn Site, pair: Pair, seconds: u64) -> Result<Sample> {
    let (outcome, spent) = run_load(site, pair, "request-response", seconds)?;
    Ok(Sample {
        value: outcome.p50_us,
        cpu_us_per_op: per(spent, outcome.operations as f64),
    })
}

fn connects(site: &dyn Site, pair: Pair, seconds: u64) -> Result<Sample> {
    let (outcome, spent) = run_load(site, pair, "connect", seconds)?;
    let rate = outcome.operations as f64 / outcome.seconds;
    Ok(Sample {
        value: rate,
        cpu_us_per_op: per(spent, outcome.operations as f64),
    })
}

fn run_load(
    site: &dyn Site,
    pair: Pair,
    kind: &str,
    seconds: u64,
) -> Result<(load::Outcome, Duration)> {
    let target = SocketAddr::new(site.address(pair.server)?, ECHO_PORT).to_string();
    let this = std::env::current_exe().context("finding this program")?;
    let words = [
        &*this.to_string_lossy(),
        "load",
        kind,
        &target,
        "--seconds",
        &seconds.to_string(),
    ];
    let before = CpuTime::now()?;
    let printed = shell::capture(&mut site.inside(pair.client, &words)?)?;
    let spent = CpuTime::now()?.since(before);
    Ok((
        serde_json::from_str(&printed).context("reading the load's outcome")?,
        spent,
    ))
}

fn per(spent: Duration, operations: f64) -> f64 {
    spent.as_secs_f64() * 1e6 / operations.max(1.0)
}

/// P10: a decision among 10,000 policies, from the example of `karst-policy`.
fn decision() -> Result<Row> {
    let mut example = shell::cargo();
    example.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "karst-policy",
        "--example",
        "decide_10k",
    ]);
    let printed = shell::capture(example.args(["--", "--output", "json"]))?;
    let result: Value =
        serde_json::from_str(printed.trim()).context("reading the example's result")?;
    let nanoseconds = result["ns_p50"]
        .as_f64()
        .context("the example names no ns_p50")?;
    Ok(Row::alone(
        "P10",
        "authorization decision, 10,000 policies, p50",
        "us",
        nanoseconds / 1000.0,
    ))
}

/// The machine, for the head of the table.
fn machine() -> String {
    let said = |program: &str, args: &[&str]| {
        shell::capture(Command::new(program).args(args)).unwrap_or_default()
    };
    format!(
        "{} CPUs, Linux {}",
        said("nproc", &[]).trim(),
        said("uname", &["-r"]).trim()
    )
}
