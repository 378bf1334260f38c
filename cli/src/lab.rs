//! `karst lab ...`: arguments and what is printed; the work is in `karst-lab`.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use karst_lab::{
    LabName,
    client::{self, After, User},
    daemon::{Families, Options},
    down,
    status::{PodStatus, ProcessStatus, Status},
};

use crate::output::{self, Format};

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab from a directory of YAML and wait until its pods are ready
    Up {
        dir: PathBuf,
        #[command(flatten)]
        name: Name,
        /// Only nodes, pods, services and DNS: no controller, no agents, nothing enrolled
        #[arg(long)]
        no_mesh: bool,
        /// Of every link, in bytes
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
        /// Pods and services have IPv6 addresses alone
        #[arg(long)]
        ipv6_only: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Read the directory again and change what differs
    Apply {
        dir: PathBuf,
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show nodes, pods and services
    Status {
        #[command(flatten)]
        name: Name,
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Run a command in a pod, as the pod's user: karst lab exec shop/front-0 -- curl http://orders/
    Exec {
        /// NAMESPACE/POD, POD, or a Deployment's name; with --node, leave it out
        pod: Option<String>,
        #[command(flatten)]
        name: Name,
        /// Run in a node's network namespace instead
        #[arg(long, conflicts_with = "pod")]
        node: Option<String>,
        /// Run as root instead of as the pod's user
        #[arg(long)]
        root: bool,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print a pod's output; also: controller, daemon, agent/NODE
    Logs {
        of: String,
        #[command(flatten)]
        name: Name,
        /// Go on as more comes
        #[arg(long, short)]
        follow: bool,
    },
    /// List labs
    Ls,
    /// Take a lab away, with everything it made
    Down {
        #[command(flatten)]
        name: Name,
        /// All labs of this machine
        #[arg(long)]
        all: bool,
    },
    /// Kill -9 a node's agent; it is started again unless --hold
    KillAgent {
        node: String,
        #[command(flatten)]
        name: Name,
        #[arg(long)]
        hold: bool,
    },
    /// Restart a node's agent, or start one that is held dead
    RestartAgent {
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Kill -9 the controller; it is started again unless --hold
    KillController {
        #[command(flatten)]
        name: Name,
        #[arg(long)]
        hold: bool,
    },
    /// Restart the controller, or start it when it is held dead
    RestartController {
        #[command(flatten)]
        name: Name,
    },
}

#[derive(Args)]
pub(crate) struct Name {
    /// Which lab
    #[arg(long, default_value = "lab", env = "KARST_LAB")]
    name: LabName,
}

#[derive(Args)]
pub(crate) struct Wait {
    /// Seconds to wait for all pods to be ready; 0 does not wait
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// Carries out a `karst lab` command.
pub(crate) fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    match command {
        LabCommand::Up {
            dir,
            name,
            no_mesh,
            mtu,
            ipv6_only,
            wait,
        } => {
            let started = Instant::now();
            let options = Options {
                mesh: !no_mesh,
                mtu,
                families: families(ipv6_only),
            };
            let status = client::up(
                &name.name,
                &dir,
                options,
                Duration::from_secs(wait.wait),
                &mut output::progress,
            );
            let status = status.with_context(|| format!("lab {}", name.name))?;
            output::progress(&summary(&status, started));
            Ok(verdict(&status))
        }
        LabCommand::Apply { dir, name, wait } => {
            let started = Instant::now();
            let status = client::apply(
                &name.name,
                &dir,
                Duration::from_secs(wait.wait),
                &mut output::progress,
            )?;
            output::progress(&summary(&status, started));
            Ok(verdict(&status))
        }
        LabCommand::Status { name, output } => show(&client::status(&name.name)?, output),
        LabCommand::Exec {
            pod,
            name,
            node,
            root,
            command,
        } => exec(&name.name, pod, node, root, &command),
        LabCommand::Logs { of, name, follow } => logs(&name.name, &of, follow),
        LabCommand::Ls => {
            LabName::all().iter().for_each(output::line);
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Down { name, all } => {
            take_away(if all { LabName::all() } else { vec![name.name] })
        }
        LabCommand::KillAgent { node, name, hold } => {
            client::kill_agent(&name.name, &node, after(hold)).map(done)?
        }
        LabCommand::RestartAgent { node, name } => {
            client::restart_agent(&name.name, &node).map(done)?
        }
        LabCommand::KillController { name, hold } => {
            client::kill_controller(&name.name, after(hold)).map(done)?
        }
        LabCommand::RestartController { name } => {
            client::restart_controller(&name.name).map(done)?
        }
    }
}

pub(crate) fn families(ipv6_only: bool) -> Families {
    if ipv6_only {
        Families::Ipv6
    } else {
        Families::Dual
    }
}

fn done(_status: Status) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}

fn after(hold: bool) -> After {
    if hold {
        After::StayDead
    } else {
        After::StartAgain
    }
}

fn summary(status: &Status, started: Instant) -> String {
    let ready = status.pods.iter().filter(|pod| pod.ready).count();
    let (nodes, pods) = (status.nodes.len(), status.pods.len());
    format!(
        "lab {}: {nodes} nodes, {ready} of {pods} pods ready, after {:.1} s",
        status.name,
        started.elapsed().as_secs_f32()
    )
}

/// An object that cannot be used makes the command fail, although everything else went on.
fn verdict(status: &Status) -> ExitCode {
    if status
        .problems
        .iter()
        .any(|problem| problem.contains(": error: "))
    {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn show(status: &Status, format: Format) -> anyhow::Result<ExitCode> {
    if format == Format::Json {
        output::json(status)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mesh = if status.mesh {
        "with the mesh"
    } else {
        "without the mesh"
    };
    output::line(format_args!("lab {} ({mesh})", status.name));
    if let Some(controller) = &status.controller {
        output::line(format_args!("controller  {}", process(controller)));
    }
    let head = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let mut nodes = vec![head(&["NODE", "ADDRESSES", "AGENT", "NAMESPACE"])];
    nodes.extend(status.nodes.iter().map(|node| {
        let agent = node.agent.as_ref().map_or_else(|| "-".to_owned(), process);
        vec![
            node.name.clone(),
            join(&node.addresses),
            agent,
            node.netns.clone(),
        ]
    }));
    output::table(&nodes);
    let mut pods = vec![head(&[
        "POD",
        "READY",
        "PHASE",
        "RESTARTS",
        "NODE",
        "ADDRESSES",
        "MESSAGE",
    ])];
    pods.extend(status.pods.iter().map(row));
    output::table(&pods);
    let mut services = vec![head(&["SERVICE", "ADDRESSES"])];
    services.extend(status.services.iter().map(|one| {
        vec![
            format!("{}/{}", one.namespace, one.name),
            one.addresses.join(" "),
        ]
    }));
    output::table(&services);
    status.problems.iter().for_each(output::line);
    Ok(ExitCode::SUCCESS)
}

fn row(pod: &PodStatus) -> Vec<String> {
    let ready = if pod.ready { "yes" } else { "no" };
    let cells = [
        pod.full_name(),
        ready.to_owned(),
        format!("{:?}", pod.phase),
        pod.restarts.to_string(),
        pod.node.clone(),
    ];
    cells
        .into_iter()
        .chain([join(&pod.addresses), pod.message.clone()])
        .collect()
}

fn process(status: &ProcessStatus) -> String {
    match status.pid {
        Some(pid) => format!("pid {pid}, {} restarts", status.restarts),
        None => format!("down: {}", status.message),
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn exec(
    lab: &LabName,
    pod: Option<String>,
    node: Option<String>,
    root: bool,
    words: &[String],
) -> anyhow::Result<ExitCode> {
    let command = match (pod, node) {
        (_, Some(node)) => client::exec_node_command(lab, &node, words)?,
        (Some(pod), None) => {
            client::exec_command(lab, &pod, if root { User::Root } else { User::Pod }, words)?
        }
        (None, None) => anyhow::bail!(
            "say where: `karst lab exec POD -- CMD` or `karst lab exec --node NODE -- CMD`"
        ),
    };
    Err(client::become_command(command).into())
}

fn logs(lab: &LabName, of: &str, follow: bool) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in client::log_files(lab, of)? {
        files.push(fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?);
    }
    loop {
        for file in &mut files {
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            io::stdout().write_all(&text)?;
        }
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn take_away(labs: Vec<LabName>) -> anyhow::Result<ExitCode> {
    for lab in labs {
        down::down(&lab).with_context(|| format!("lab {lab}"))?;
        output::progress(&format!("lab {lab} is gone"));
    }
    Ok(ExitCode::SUCCESS)
}
