//! Subcommands and who carries them out.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use karst_lab::{LabName, daemon};

use crate::lab::{self, LabCommand};

#[derive(Parser)]
#[command(name = "karst", version, about = "Karst: an ambient service mesh")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Nodes and pods out of network namespaces on this machine, from Kubernetes YAML
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// The lab's background process; `karst lab up` starts it
    #[command(hide = true)]
    LabDaemon {
        lab: LabName,
        #[arg(long)]
        mtu: u32,
        #[arg(long)]
        no_mesh: bool,
    },
    /// The first steps of a lab pod's container
    #[command(hide = true)]
    LabPodInit { spec: PathBuf },
}

/// Carries out a command line.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Lab(command) => lab::run(command),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "karst", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::LabDaemon { lab, mtu, no_mesh } => {
            tracing_subscriber::fmt()
                .with_writer(io::stderr)
                .with_ansi(false)
                .init();
            daemon::run(
                &lab,
                daemon::Options {
                    mesh: !no_mesh,
                    mtu,
                },
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Command::LabPodInit { spec } => match karst_lab::pod_init::become_container(&spec) {
            Err(error) => Err(anyhow::anyhow!(error)),
            Ok(never) => match never {},
        },
    }
}
