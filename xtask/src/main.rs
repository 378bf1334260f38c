//! The only entrance to the project's tools: `cargo xtask VERB`.
//!
//! Light by intent: it shells out to cargo, the system's tools and the built binaries, and never links the product.
//!
//! ```text
//!   setup ◄── called by each verb for what that verb needs
//!   check = fmt, clippy, deny, tidy        test = check, build, unit, simulation, peer, node, fuzz, cluster
//!   demo, bench, soak ──► release ──► ebpf
//! ```

#![expect(
    clippy::print_stdout,
    reason = "a command-line tool reports on standard output"
)]

mod bench;
mod check;
mod cluster;
mod conformance;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod lab;
mod load;
mod pcap;
mod release;
mod setup;
mod shell;
mod soak;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's tools.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing on this machine, saying what and why.
    Setup(setup::Args),
    /// Format, lints, licences and the project's own rules.
    Check,
    /// The project's own rules alone.
    Tidy,
    /// Everything that must hold before a change lands, or one rung of it.
    Test(test::Args),
    /// Start a mesh on this machine and prove what it promises.
    Demo(demo::Args),
    /// Measure against plain TCP and write the table of docs/performance.md.
    Bench(bench::Args),
    /// What takes longer than two minutes; its results are committed.
    Soak(soak::Args),
    /// Feed hostile input to every parser of peer bytes.
    Fuzz(fuzz::Args),
    /// Load for the benchmarks, run inside a pod.
    #[command(hide = true)]
    Load(load::Args),
    /// A real Kubernetes on this machine.
    Cluster(cluster::Args),
    /// The Gateway API's own suite against Karst on a real cluster.
    Conformance(conformance::Args),
    /// Small container images of the binaries.
    Image(image::Args),
    /// Build the kernel programs.
    Ebpf,
    /// Build the kernel programs and every binary into target/release.
    Release,
}

fn main() -> ExitCode {
    match run(Args::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    std::env::set_current_dir(shell::root())?;
    match verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Check => check::run(),
        Verb::Tidy => tidy::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Load(args) => load::run(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Conformance(args) => conformance::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Ebpf => release::ebpf(),
        Verb::Release => release::run(),
    }
}
