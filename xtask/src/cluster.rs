//! `cluster`: a real Kubernetes on this machine, for the tests of the cluster rung and for trying things out.
//!
//! Everything is real, pinned to Kubernetes 1.36 and built from its modules: etcd, API server, controller manager,
//! scheduler on the host's network; containerd, kubelet and kube-proxy in each node's namespaces; CoreDNS in a pod. No
//! container tool, no image registry, no virtual machine. See `docs/dev/cluster.md`.
//!
//! ```text
//!   plan (names, addresses) ─► build (Go) ─► pki ─► network ─► control_plane ─► node ─► addons
//!                           ahead: in the background           daemon: started, remembered, ended
//! ```

mod addons;
pub(crate) mod ahead;
pub(crate) mod build;
mod cgroup;
mod control_plane;
mod daemon;
mod mesh;
mod network;
mod node;
mod pki;
pub(crate) mod plan;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;

use crate::{
    image, release,
    setup::{self, Group},
    shell,
};
use daemon::Daemons;
use node::Node;
use plan::{Families, Plan};

/// What `cluster` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The cluster's number: several stand side by side.
    #[arg(long, global = true, default_value_t = 0, env = ID_VARIABLE)]
    id: u8,
}

/// Memory that two nodes, the control plane and the tests' pods take.
const MEMORY_KIB: u64 = 3 * 1024 * 1024;

/// Chooses the cluster where no option does.
pub(crate) const ID_VARIABLE: &str = "KARST_CLUSTER_ID";

#[derive(Subcommand)]
enum Verb {
    /// Build what is missing and start what does not run.
    Up(Up),
    /// End everything; what was built stays.
    Down,
    /// Processes, memory, nodes and pods.
    Status,
    /// Build the cluster's programs, and start nothing.
    Build(Build),
    /// kubectl, as administrator of the cluster.
    #[command(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        disable_help_flag = true
    )]
    Kubectl {
        /// What kubectl is given.
        args: Vec<String>,
    },
    /// Helm, built at its first use.
    #[command(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        disable_help_flag = true
    )]
    Helm {
        /// What helm is given.
        args: Vec<String>,
    },
    /// Run a command inside a node: `exec n1 -- ctr images ls`.
    Exec {
        /// Which node.
        node: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End all processes of a node at once and forget what was in its memory, as a power cut does.
    Kill {
        /// Which node.
        node: String,
    },
    /// Kill a node, start it again, and wait until it is ready.
    Reboot {
        /// Which node.
        node: String,
    },
}

/// What `build` builds, and for how long.
#[derive(clap::Args)]
struct Build {
    /// Helm, the OpenTelemetry collector and Prometheus too, which the tests run.
    #[arg(long)]
    tests: bool,
    /// End when the input ends: whoever asked is gone.
    #[arg(long, hide = true)]
    while_input: bool,
}

/// How `up` makes a cluster; a cluster that runs keeps what it has.
#[derive(clap::Args)]
pub(crate) struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// IPv4 alone; without it, pods and services have both families.
    #[arg(long)]
    single_stack: bool,
    /// Install Karst as well.
    #[arg(long)]
    karst: bool,
    /// Build nothing of ours, and load no images unless Karst is installed; without it our binaries are built into
    /// target/release, `karst` among them, and all images are made and loaded.
    #[arg(long)]
    no_build: bool,
}

impl Up {
    /// What `up` does without options.
    pub(crate) fn usual() -> Self {
        Self {
            nodes: 2,
            single_stack: false,
            karst: false,
            no_build: false,
        }
    }
}

/// A cluster of this machine.
pub(crate) struct Cluster {
    plan: Plan,
    daemons: Daemons,
}

/// Runs one verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Up(up) => {
            let cluster = Cluster::up(args.id, up)?;
            if !up.no_build {
                release::run()?;
            }
            match (up.karst, up.no_build) {
                (true, no_build) => mesh::install(&cluster, no_build),
                // `karst install` finds what it asks for.
                (false, false) => image::load_all(&cluster, false),
                (false, true) => Ok(()),
            }
        }
        Verb::Down => down(args.id),
        Verb::Build(asked) => {
            if asked.while_input {
                ahead::end_with_input();
            }
            programs()?;
            match asked.tests {
                true => build::for_tests(),
                false => Ok(()),
            }
        }
        Verb::Status => Cluster::find(args.id)?.status(),
        Verb::Kubectl { args: words } => {
            let cluster = Cluster::find(args.id)?;
            finish(kubectl(&cluster.plan).args(words))
        }
        Verb::Helm { args: words } => {
            let cluster = Cluster::find(args.id)?;
            let mut helm = Command::new(build::helm()?);
            helm.env("KUBECONFIG", cluster.kubeconfig());
            finish(helm.args(words))
        }
        Verb::Exec { node, command } => {
            let cluster = Cluster::find(args.id)?;
            finish(cluster.node(node)?.enter()?.args(command))
        }
        Verb::Kill { node } => Cluster::find(args.id)?.node(node)?.kill(),
        Verb::Reboot { node } => Cluster::find(args.id)?.reboot(node),
    }
}

/// Runs a command for the user: its status becomes ours.
fn finish(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", shell::line(command)))?;
    if status.success() {
        return Ok(());
    }
    std::process::exit(status.code().unwrap_or(1));
}

/// Whether a cluster can be made here, found out before minutes go into building one: root, control groups, namespaces
/// with mounts of their own, memory.
pub(crate) fn preflight() -> Result<()> {
    let root = shell::capture(Command::new("id").arg("-u"))?;
    ensure!(
        root.trim() == "0",
        "a cluster makes namespaces, links and control groups: run this as root"
    );
    setup::ensure(&[Group::Build, Group::Cluster])?;
    cgroup::preflight()?;
    shell::capture(
        Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--pid", "--fork"])
            .args(["--propagation", "private", "sh", "-c"])
            .arg("mount -t proc proc /proc && mount -t tmpfs run /run && mount -t bpf bpf /sys/fs/bpf"),
    )
    .context("a cluster's nodes are namespaces with mounts of their own, which this machine does not allow")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    ensure!(
        kib.is_none_or(|kib| kib >= MEMORY_KIB),
        "a cluster with Karst takes {} MiB of memory; {} MiB are free",
        MEMORY_KIB / 1024,
        kib.unwrap_or(0) / 1024
    );
    Ok(())
}

/// kubectl as the cluster's administrator.
pub(crate) fn kubectl(plan: &Plan) -> Command {
    let mut kubectl = Command::new(build::program("kubectl"));
    kubectl.env("KUBECONFIG", pki::kubeconfig(plan, "admin"));
    kubectl
}

/// What must be there before a cluster starts: packages and programs.
pub(crate) fn programs() -> Result<()> {
    setup::ensure(&[Group::Build, Group::Cluster])?;
    build::cluster()
}

/// Says what was done, and how long after the start.
struct Progress(Instant);

impl Progress {
    fn say(&self, what: &str) {
        println!("cluster: {:5.1} s {what}", self.0.elapsed().as_secs_f64());
    }
}

impl Cluster {
    /// The cluster of this number that `up` has made.
    pub(crate) fn find(id: u8) -> Result<Self> {
        let file = plan::state_of(id).join("plan.json");
        let Ok(text) = fs::read(&file) else {
            bail!("there is no cluster {id}: `cargo xtask cluster up --id {id}` makes it");
        };
        let plan: Plan =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))?;
        Self::of(plan)
    }

    fn of(plan: Plan) -> Result<Self> {
        let daemons = Daemons::new(&plan.state())?;
        Ok(Self { plan, daemons })
    }

    /// Starts what does not run of the cluster of this number.
    pub(crate) fn up(id: u8, asked: &Up) -> Result<Self> {
        let root = shell::capture(Command::new("id").arg("-u"))?;
        ensure!(
            root.trim() == "0",
            "a cluster makes namespaces, links and control groups: run this as root"
        );
        programs()?;
        let progress = Progress(Instant::now());
        let cluster = Self::find(id).or_else(|_| Self::new(id, asked))?;
        let plan = &cluster.plan;
        let images = image::of_the_cluster()?;
        raise_watches()?;
        network::bridge(plan)?;
        pki::make(plan)?;
        control_plane::start(plan, &cluster.daemons)?;
        progress.say("API server ready");
        cluster.each_node(|node| {
            node.boot()?;
            node.import(&images)
        })?;
        progress.say("nodes started");
        cluster.each_node(|node| node.wait_until_ready())?;
        progress.say("nodes ready");
        addons::apply(plan)?;
        progress.say("DNS and the Gateway API are there");
        println!(
            "cluster: export KUBECONFIG={} PATH={}:$PATH",
            cluster.kubeconfig().display(),
            build::folder().display()
        );
        Ok(cluster)
    }

    fn new(id: u8, asked: &Up) -> Result<Self> {
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        let families = match asked.single_stack || !ipv6 {
            true => Families::Single,
            false => Families::Dual,
        };
        let cluster = Self::of(Plan::new(id, asked.nodes, families)?)?;
        let file = cluster.plan.state().join("plan.json");
        fs::write(file, serde_json::to_vec_pretty(&cluster.plan)?)?;
        Ok(cluster)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        pki::kubeconfig(&self.plan, "admin")
    }

    /// Makes commands of kubectl, as the cluster's administrator.
    pub(crate) fn kubectl(&self) -> impl Fn() -> Command + use<> {
        let plan = self.plan.clone();
        move || kubectl(&plan)
    }

    /// The cluster of this number with Karst installed: what is missing is made.
    pub(crate) fn with_mesh(id: u8, asked: &Up) -> Result<Self> {
        let cluster = Self::up(id, asked)?;
        mesh::install(&cluster, asked.no_build)?;
        Ok(cluster)
    }

    /// A command that runs inside a node: its words are appended.
    pub(crate) fn enter(&self, node: &str) -> Result<Command> {
        self.node(node)?.enter()
    }

    /// Imports archives of images into every node.
    pub(crate) fn load(&self, archives: &[PathBuf]) -> Result<()> {
        self.each_node(|node| node.import(archives))
    }

    /// Does the same on every node at once.
    fn each_node(&self, work: impl Fn(&Node<'_>) -> Result<()> + Sync) -> Result<()> {
        let nodes = Node::all(&self.plan, &self.daemons);
        let work = &work;
        thread::scope(|scope| {
            let working: Vec<_> = nodes
                .iter()
                .map(|node| (node, scope.spawn(move || work(node))))
                .collect();
            for (node, work) in working {
                let done = work.join().unwrap_or_else(|_| bail!("its thread panicked"));
                done.with_context(|| format!("node {}", node.name()))?;
            }
            Ok(())
        })
    }

    fn node(&self, name: &str) -> Result<Node<'_>> {
        let nodes = Node::all(&self.plan, &self.daemons);
        let names: Vec<_> = nodes.iter().map(Node::name).collect();
        let found = nodes.into_iter().find(|node| node.name() == name);
        found.with_context(|| format!("there is no node {name}: there are {}", names.join(", ")))
    }

    fn reboot(&self, name: &str) -> Result<()> {
        let progress = Progress(Instant::now());
        let node = self.node(name)?;
        node.kill()?;
        progress.say("nothing of the node runs");
        node.boot()?;
        progress.say("node started");
        node.wait_until_ready()?;
        progress.say("node ready");
        Ok(())
    }

    fn status(&self) -> Result<()> {
        let mut whole = 0;
        // What starts a node has everything of it below, services included: it is not counted twice.
        let all = self.daemons.all().into_iter();
        for (name, process) in all.filter(|(name, _)| !name.ends_with("-unshare")) {
            let memory = process.memory_mib();
            println!("{name:24} {:8} {memory:5} MiB", process.pid);
            whole += memory;
        }
        println!("{:24} {:8} {whole:5} MiB", "together", "");
        let lost = control_plane::PROCESSES
            .iter()
            .filter(|name| self.daemons.find(name).is_none());
        for name in lost {
            println!(
                "{name} does not run: {}",
                node::log_end(&self.daemons, name)
            );
        }
        if !control_plane::is_ready(&self.plan) {
            bail!("the API server is not ready: `cargo xtask cluster up` starts what does not run");
        }
        shell::run(kubectl(&self.plan).args(["get", "nodes", "-o", "wide"]))?;
        shell::run(kubectl(&self.plan).args(["get", "pods", "-A", "-o", "wide"]))
    }
}

/// Ends the cluster of this number, whatever of it is there, and removes everything that it made but the programs.
fn down(id: u8) -> Result<()> {
    let progress = Progress(Instant::now());
    let Ok(cluster) = Cluster::find(id) else {
        println!("cluster: there is no cluster {id}");
        return Ok(());
    };
    for node in Node::all(&cluster.plan, &cluster.daemons) {
        node.kill()
            .with_context(|| format!("ending node {}", node.name()))?;
    }
    for name in control_plane::PROCESSES.iter().rev() {
        cluster.daemons.kill(name)?;
    }
    network::remove(&cluster.plan)?;
    let state = cluster.plan.state();
    fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
    if !others_stand() {
        node::remove_mount_points();
        restore_watches();
    }
    progress.say("down");
    Ok(())
}

/// Whether another cluster stands on this machine.
fn others_stand() -> bool {
    (0..=u8::MAX).any(|id| plan::state_of(id).join("plan.json").exists())
}

/// Where the machine's limits of file watches are noted as they were.
fn old_watches() -> PathBuf {
    shell::root().join("target/cluster/inotify")
}

/// Limits of the whole machine that two kubelets and containerds go beyond, and what they need.
const WATCHES: [(&str, u64); 2] = [("max_user_instances", 8192), ("max_user_watches", 524_288)];

fn watch_limit(name: &str) -> PathBuf {
    Path::new("/proc/sys/fs/inotify").join(name)
}

fn raise_watches() -> Result<()> {
    let mut old = String::new();
    for (name, wanted) in WATCHES {
        let file = watch_limit(name);
        let text = fs::read_to_string(&file)?;
        if text.trim().parse::<u64>().unwrap_or(0) < wanted {
            old += &format!("{name} {}\n", text.trim());
            fs::write(&file, wanted.to_string())
                .with_context(|| format!("writing {}", file.display()))?;
        }
    }
    if !old.is_empty() {
        fs::write(old_watches(), old)?;
    }
    Ok(())
}

fn restore_watches() {
    let old = fs::read_to_string(old_watches()).unwrap_or_default();
    for (name, limit) in old.lines().filter_map(|line| line.split_once(' ')) {
        let _ = fs::write(watch_limit(name), limit);
    }
    let _ = fs::remove_file(old_watches());
}
