//! Subcommands and who carries them out.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use karst_lab::{LabName, daemon};

use crate::{
    check::{self, CheckArgs, Verdict},
    cluster::{Cluster, ClusterArgs},
    enroll::{self, Direction, EnrollArgs},
    install::{self, InstallArgs, Purpose},
    lab::{self, LabCommand},
    show::{self, Kinds, ShowArgs, StatusArgs},
    split::{self, SplitArgs},
    uninstall::{self, UninstallArgs},
    version,
    waypoint::{self, WaypointCommand},
    why::{self, DescribeArgs, WhyArgs},
};

#[derive(Parser)]
#[command(name = "karst", version, about = "Karst: an ambient service mesh")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install Karst in a cluster and wait until it works
    Install {
        #[command(flatten)]
        args: InstallArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Change an installation to this version, or to other values
    Upgrade {
        #[command(flatten)]
        args: InstallArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Take Karst away, off the nodes first
    Uninstall {
        #[command(flatten)]
        args: UninstallArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Look whether Karst can work in a cluster, and does; each finding names the setting to change
    Check {
        #[command(flatten)]
        args: CheckArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Bring running pods of a namespace into the mesh, without a restart, and say what happened
    Enroll {
        #[command(flatten)]
        args: EnrollArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Take the pods of a namespace out of the mesh, without a restart
    Unenroll {
        #[command(flatten)]
        args: EnrollArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show every node's agent: version, pods, whether its configuration is current, shortest certificate
    Status {
        #[command(flatten)]
        args: StatusArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show workloads, and whether they are in the mesh
    Workloads {
        #[command(flatten)]
        args: ShowArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show services and their endpoints
    Services {
        #[command(flatten)]
        args: ShowArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show authorization policies as the agents have them
    Policies {
        #[command(flatten)]
        args: ShowArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show the certificates on the nodes
    Certificates {
        #[command(flatten)]
        args: ShowArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show live connections into enrolled pods
    Connections {
        #[command(flatten)]
        args: ShowArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// A namespace's waypoint: give it one, look at it, take it away
    Waypoint {
        #[command(subcommand)]
        command: WaypointCommand,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show, set and watch which share of a route's requests each version gets
    Split {
        #[command(flatten)]
        args: SplitArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Say what would happen to a connection or a request, and why; or what was denied or failed lately (--last).
    /// Ends with 0 if it would be allowed, 2 if the question is not clear, 3 denied, 4 fails, 5 it depends
    Why {
        #[command(flatten)]
        args: WhyArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show what touches an object: what it applies to, and what applies to it
    Describe {
        #[command(flatten)]
        args: DescribeArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show the versions of this program, of the controller and of the agents
    Version {
        /// This program's only; no cluster is asked
        #[arg(long)]
        client: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
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
        #[arg(long)]
        ipv6_only: bool,
    },
    /// The first steps of a lab pod's container
    #[command(hide = true)]
    LabPodInit { spec: PathBuf },
}

/// Carries out a command line.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Lab(command) => lab::run(command),
        Command::Install { args, cluster } => installation(&args, &cluster, Purpose::Install),
        Command::Upgrade { args, cluster } => installation(&args, &cluster, Purpose::Upgrade),
        Command::Uninstall { args, cluster } => on_cluster(async move {
            uninstall::run(&Cluster::connect(&cluster).await?, &args).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Check { args, cluster } => on_cluster(async move {
            let worst = check::run(&Cluster::connect(&cluster).await?, &args).await?;
            Ok(match worst {
                Verdict::Failure => ExitCode::FAILURE,
                Verdict::Fine | Verdict::Warning => ExitCode::SUCCESS,
            })
        }),
        Command::Enroll { args, cluster } => enrollment(&args, &cluster, Direction::Enroll),
        Command::Unenroll { args, cluster } => enrollment(&args, &cluster, Direction::Unenroll),
        Command::Status { args, cluster } => on_cluster(async move {
            show::status(&Cluster::connect(&cluster).await?, &args).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Workloads { args, cluster } => shown(Kinds::Workloads, &args, &cluster),
        Command::Services { args, cluster } => shown(Kinds::Services, &args, &cluster),
        Command::Policies { args, cluster } => shown(Kinds::Policies, &args, &cluster),
        Command::Certificates { args, cluster } => shown(Kinds::Certificates, &args, &cluster),
        Command::Connections { args, cluster } => shown(Kinds::Connections, &args, &cluster),
        Command::Waypoint { command, cluster } => on_cluster(async move {
            waypoint::run(&Cluster::connect(&cluster).await?, &command).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Split { args, cluster } => on_cluster(async move {
            split::run(&Cluster::connect(&cluster).await?, &args).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Why { args, cluster } => match why::offline(&args)? {
            Some(code) => Ok(code),
            None => {
                on_cluster(
                    async move { why::live(&Cluster::connect(&cluster).await?, &args).await },
                )
            }
        },
        Command::Describe { args, cluster } => match why::describe_offline(&args)? {
            Some(code) => Ok(code),
            None => on_cluster(async move {
                why::describe_live(&Cluster::connect(&cluster).await?, &args).await
            }),
        },
        Command::Version { client, cluster } => {
            version::client();
            if client {
                return Ok(ExitCode::SUCCESS);
            }
            on_cluster(async move {
                version::cluster(&Cluster::connect(&cluster).await?).await?;
                Ok(ExitCode::SUCCESS)
            })
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "karst", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::LabDaemon {
            lab,
            mtu,
            no_mesh,
            ipv6_only,
        } => {
            tracing_subscriber::fmt()
                .with_writer(io::stderr)
                .with_ansi(false)
                .init();
            daemon::run(
                &lab,
                daemon::Options {
                    mesh: !no_mesh,
                    mtu,
                    families: lab::families(ipv6_only),
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

fn installation(
    args: &InstallArgs,
    cluster: &ClusterArgs,
    purpose: Purpose,
) -> anyhow::Result<ExitCode> {
    if args.prints_only() {
        install::print(args, &cluster.namespace)?;
        return Ok(ExitCode::SUCCESS);
    }
    on_cluster(async move {
        install::run(&Cluster::connect(cluster).await?, args, purpose).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn enrollment(
    args: &EnrollArgs,
    cluster: &ClusterArgs,
    direction: Direction,
) -> anyhow::Result<ExitCode> {
    on_cluster(async move {
        enroll::run(&Cluster::connect(cluster).await?, args, direction).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn shown(kinds: Kinds, args: &ShowArgs, cluster: &ClusterArgs) -> anyhow::Result<ExitCode> {
    on_cluster(async move {
        show::run(&Cluster::connect(cluster).await?, kinds, args).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Carries out what needs the API server.
fn on_cluster(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(Box::pin(work))
}
