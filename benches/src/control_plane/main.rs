//! The figures of the control plane (P30 to P32 of `docs/performance.md`): a whole controller, real gRPC clients in the
//! place of agents. Run by `cargo xtask bench control-plane`; prints one JSON object per row.
//!
//! ```text
//!   fill    objects ──► index ──► encoded resources          time and memory, no socket
//!   agents  karst-controller (child) ◄──TLS, delta xDS── N clients
//!             change a policy ──► all have it                P30
//!             kill, start again ──► all are in step          P32
//! ```
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod agent;
mod change;
mod controller;
mod fill;
mod objects;
mod process;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The controller's own, so that memory is measured as there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the control plane.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// P31: time and memory to take in a large mesh.
    Fill(fill::Args),
    /// P30, P32: how fast agents hear of a change, and how they come back to a controller that was away.
    Agents(AgentsArgs),
}

/// What `agents` is asked for.
#[derive(clap::Args)]
struct AgentsArgs {
    /// The controller's binary.
    #[arg(long)]
    controller: PathBuf,
    /// How many agents, one per node.
    #[arg(long)]
    agents: usize,
    /// Workloads in the mesh, spread over the nodes.
    #[arg(long, default_value_t = 1000)]
    workloads: usize,
    /// Changes that are timed.
    #[arg(long, default_value_t = 50)]
    changes: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    karst_identity::tls::install_provider();
    let rows = match Cli::parse().command {
        Command::Fill(args) => vec![fill::run(&args)?],
        Command::Agents(args) => change::run(&args).await?,
    };
    for row in rows {
        println!("{row}");
    }
    Ok(())
}
