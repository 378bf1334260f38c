//! Wires the parts of the agent together and decides nothing: start in order, run until a signal, drain, end.

use std::{
    collections::BTreeMap, fs, io, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, path::PathBuf,
    process::ExitCode, sync::Arc,
};

use anyhow::Context as _;
use clap::Parser as _;
use karst_discovery::{
    Kind, State,
    client::{self, ClientConfig, ClientStats, NodeIdentity, TokenSource},
    recording::{self, Recorder},
    saved::Saved,
    state::Origin,
    trust,
};
use karst_ebpf_loader::{Kernel, KernelConfig, probe};
use karst_hbone::server::peers::Peers;
use karst_identity::{Store, StoreConfig};
use karst_link::{ControllerSigner, JoinError, Link};
use karst_netns::{cgroup_exists, cgroup_id, own_cgroup_id, raise_nofile_limit};
use karst_runtime::{
    admin, drain,
    liveness::Liveness,
    readiness::Readiness,
    signal,
    supervise::{Shutdown, spawn_essential},
};
use karst_telemetry::{
    export::{self, Identity},
    hub::Hub,
    logging::{self, LogConfig, LogHandle},
    metrics::Registry,
    observed,
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    admin::{admin_pages, everywhere},
    capture::{self, Enroller, MAX_COMMANDS, cni, datapath::Datapath},
    config::Config,
    controller::{run_answers, run_reports},
    inbound::authorize::Authorizer,
    kubelet::Kubelets,
    live::LiveConnections,
    mesh::Mesh,
    metrics::{Certificates, KernelEvents, Metrics},
    node::{Node, own_resolver},
    node_check,
    outbound::{balancer::Balancer, waypoint::WaypointStreams},
    plugin::Installer,
    recheck,
    workers::Workers,
};

/// How often a newcomer looks whether the agent before it still runs.
const TAKEOVER_LOOK: std::time::Duration = std::time::Duration::from_millis(500);

/// Limit of open files that the agent asks for: two a connection, half a million connections.
const WANTED_OPEN_FILES: u64 = 1 << 20;

/// Runs the program and turns its outcome into an exit code: 0 ended as asked, 1 failed, 2 wrong use.
pub(crate) fn main() -> ExitCode {
    let config = Config::parse();
    if let Err(error) = config.validate() {
        complain(&error.to_string());
        return ExitCode::from(2);
    }
    let done = if config.print_config {
        print_config(&config)
    } else if config.self_test {
        self_test()
    } else if config.node_check {
        node_check::run(&config)
    } else if !config.dial.is_empty() {
        node_check::dial(&config.dial)
    } else if config.remove {
        remove(&config)
    } else {
        run(config)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not be set up, and this is the program's last word"
)]
fn complain(text: &str) {
    eprintln!("karst-agent: {text}");
}

#[expect(clippy::print_stdout, reason = "the flag asks for it")]
fn print_config(config: &Config) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(config)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the flag asks for it")]
fn self_test() -> anyhow::Result<()> {
    let mut failed = 0;
    for feature in probe::self_test() {
        match &feature.result {
            Ok(()) => println!("ok    {}", feature.name),
            Err(why) => {
                failed += 1;
                println!("FAIL  {}: {why}", feature.name);
            }
        }
    }
    anyhow::ensure!(
        failed == 0,
        "{failed} kernel feature(s) that Karst needs do not work here"
    );
    Ok(())
}

/// Takes everything of an agent off the node. The chain goes first: a pod that starts meanwhile must not wait for an
/// agent that will not come.
fn remove(config: &Config) -> anyhow::Result<()> {
    if let Some(installer) = Installer::of(config) {
        installer
            .remove()
            .context("cannot take karst-cni out of the node's CNI chain")?;
    }
    capture::put_back_settings(&config.run_dir);
    Node::enter(config)?
        .netns
        .run(|| Kernel::remove(&config.pin_dir))?
        .context("cannot remove what the agent left in the kernel")?;
    capture::end_dns_clients(&config.run_dir);
    empty(&config.run_dir).with_context(|| {
        format!(
            "cannot empty the run directory {}",
            config.run_dir.display()
        )
    })
}

/// Removes what is in a directory; the directory may be a mount.
fn empty(dir: &std::path::Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn run(mut config: Config) -> anyhow::Result<()> {
    let logs = logging::init(&LogConfig {
        format: config.log_format.parse()?,
        filter: config.log_filter.clone(),
    })?;
    karst_identity::tls::install_provider();
    let (soft_before, soft) =
        raise_nofile_limit(WANTED_OPEN_FILES).context("cannot raise the limit of open files")?;
    tracing::info!(
        node = config.node,
        open_files_before = soft_before,
        open_files = soft,
        "starting"
    );
    prepare_run_dir(&config)
        .with_context(|| format!("cannot use {} as run directory", config.run_dir.display()))?;
    let node = Node::enter(&config)?;
    config.cluster_dns = config.cluster_dns.or_else(own_resolver);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_name("karst-control")
        .build()?;
    runtime.block_on(serve(config, node, logs))
}

/// The run directory holds keys: root alone may look inside.
fn prepare_run_dir(config: &Config) -> io::Result<()> {
    fs::create_dir_all(config.run_dir.join("state"))?;
    fs::set_permissions(&config.run_dir, fs::Permissions::from_mode(0o700))
}

/// Tries every kernel feature in a throw-away namespace, so that a kernel that lacks one says which before a pod is
/// touched. Takes a fifth of a second.
fn check_kernel() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for feature in probe::self_test() {
        match feature.result {
            Ok(()) => tracing::info!(feature = feature.name, "kernel feature works"),
            Err(why) => {
                tracing::error!(feature = feature.name, why, "kernel feature does not work");
                missing.push(feature.name);
            }
        }
    }
    anyhow::ensure!(
        missing.is_empty(),
        "this kernel does not do what Karst needs: {}; see `karst-agent --self-test`",
        missing.join(", ")
    );
    Ok(())
}

/// The cgroups that are named as the kubelet's, with their ids.
fn named_kubelets(config: &Config, node: &Node) -> anyhow::Result<Vec<u64>> {
    let id = |path: &PathBuf| {
        let path = node
            .cgroup_root
            .join(path.strip_prefix("/").unwrap_or(path));
        cgroup_id(&path)
            .with_context(|| format!("cannot read the kubelet's cgroup {}", path.display()))
    };
    config.kubelet_cgroup.iter().map(id).collect()
}

/// The search for the kubelet, where none is named and the node's processes are to be seen.
fn kubelets(config: &Config, node: &Node) -> anyhow::Result<Option<Kubelets>> {
    if config.host_ns_dir.is_none() || !config.kubelet_cgroup.is_empty() {
        return Ok(None);
    }
    Ok(Some(Kubelets {
        proc: "/proc".into(),
        cgroup_root: node.cgroup_root.clone(),
        host_netns_inode: node
            .netns
            .inode()
            .context("cannot look at the node's network namespace")?,
    }))
}

/// The cgroups of this agent and of one that still runs on the node, if any.
struct Agents {
    own: u64,
    earlier: Option<u64>,
}

fn agents(config: &Config, node: &Node) -> anyhow::Result<Agents> {
    let own = own_cgroup_id()
        .context("cannot tell the agent's own cgroup: it must run in a cgroup of its own")?;
    let mut earlier = Kernel::known_agents(&config.pin_dir);
    earlier.retain(|id| *id != own && cgroup_exists(&node.cgroup_root, *id));
    let earlier = earlier.first().copied();
    if earlier.is_some() {
        tracing::info!("another agent runs on this node: this one takes its pods over");
    }
    Ok(Agents { own, earlier })
}

fn load_kernel(
    config: &Config,
    node: &Node,
    agents: &Agents,
    kubelets: Vec<u64>,
) -> anyhow::Result<Kernel> {
    let kernel = KernelConfig {
        pin_dir: config.pin_dir.clone(),
        agent_cgroup_id: agents.own,
        earlier_agent_cgroup_id: agents.earlier,
        host_netns_cookie: node.cookie.0,
        kubelet_cgroup_ids: kubelets,
        sizes: config.map_sizes(),
        cgroup_root: node.cgroup_root.clone(),
    };
    Ok(node.netns.run(|| Kernel::load(&kernel))??)
}

async fn serve(config: Config, node: Node, logs: LogHandle) -> anyhow::Result<()> {
    let (shutdown, stopped) = (Shutdown::new(), Shutdown::new());
    signal::cancel_on_signal(&shutdown)?;
    let (readiness, liveness) = (Readiness::new(), Liveness::default());
    let registry = Arc::new(Registry::new());
    let metrics = Arc::new(Metrics::register(&registry));
    let (drain, watch) = drain::channel();

    listen(
        everywhere(config.metrics_port),
        admin::Router::new().metrics(&registry),
        &stopped,
    )
    .await?;
    listen(
        everywhere(config.ready_port),
        admin::Router::new()
            .readiness(readiness.clone())
            .liveness(liveness.clone()),
        &stopped,
    )
    .await?;
    let kernel_ready = readiness.task("kernel programs");
    tokio::task::spawn_blocking(check_kernel).await??;
    let mut kubelet_ids = named_kubelets(&config, &node)?;
    let kubelets = kubelets(&config, &node)?.map(|search| (search.find(), search));
    if let Some((found, _)) = &kubelets {
        kubelet_ids.extend(found.iter().map(|kubelet| kubelet.cgroup_id));
    }
    let agents = agents(&config, &node)?;
    let kernel = load_kernel(&config, &node, &agents, kubelet_ids)?;
    let datapath: Arc<dyn Datapath> = Arc::new(kernel);
    registry.register_collector(KernelEvents(datapath.clone()));
    kernel_ready.done();

    let state = Arc::new(State::new());
    let saved = Saved::new(&config.run_dir.join("state"));
    match agents.earlier {
        None => saved.restore(&state),
        Some(earlier) => {
            let takeover = takeover(
                state.clone(),
                node.cgroup_root.clone(),
                earlier,
                shutdown.clone(),
            );
            karst_runtime::supervise::spawn_connection("takeover", takeover);
        }
    }
    let synced = readiness.task("first answers of the controller");
    let joined = readiness.task("joining the controller");

    let link = match Link::establish(&config.link(), &shutdown).await {
        Ok(link) => link,
        Err(JoinError::Ended) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    joined.done();
    let store = StoreConfig {
        trust: config.trust_domains(),
        persist_dir: Some(config.run_dir.join("identity")),
        ..StoreConfig::default()
    };
    let identities = Store::new(store, Arc::new(signer(&link)))?;
    registry.register_collector(Certificates(identities.clone()));
    let mesh = Arc::new(Mesh {
        authorizer: Authorizer::new(state.clone()),
        live: Arc::new(LiveConnections::default()),
        balancer: Balancer::default(),
        waypoints: WaypointStreams::default(),
        peers: Peers::bounded(config.connections_per_peer),
        shutdown: shutdown.clone(),
        stopped: stopped.clone(),
        config,
        node,
        state,
        identities,
        datapath,
        metrics,
        hub: Arc::new(Hub::new(&registry)),
    });
    record(&mesh, &registry);
    let (workers, threads) = Workers::start(mesh.config.workers(), &mesh, &liveness)?;
    let (enroller, captured) = Enroller::new(mesh.clone(), workers, watch);
    let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
    // Only now is somebody there to answer: until then the plugin sees that the agent is away.
    let cni_socket =
        cni::listen(&mesh.config.run_dir).context("cannot listen for the CNI plugin")?;

    spawn_essential(
        "identities",
        &shutdown,
        mesh.identities.clone().run(stopped.clone()),
    );
    let trust = trust::follow(
        mesh.state.clone(),
        mesh.identities.clone(),
        mesh.config.trust_domains(),
        shutdown.clone(),
    );
    spawn_essential("trust domain", &shutdown, trust);
    spawn_essential(
        "discovery",
        &shutdown,
        discovery(mesh.clone(), link.clone()),
    );
    spawn_essential(
        "saved state",
        &shutdown,
        saved.keep(mesh.state.clone(), shutdown.clone()),
    );
    spawn_essential(
        "policy and destinations",
        &shutdown,
        recheck::run(mesh.clone()),
    );
    spawn_essential("enrolment", &shutdown, enroller.run(inbox));
    spawn_essential(
        "cni socket",
        &shutdown,
        cni::serve(cni_socket, commands, shutdown.clone()),
    );
    spawn_essential(
        "reports",
        &shutdown,
        run_reports(link.clone(), captured.clone(), shutdown.clone()),
    );
    let answers = run_answers(
        link.clone(),
        mesh.clone(),
        captured.clone(),
        shutdown.clone(),
    );
    spawn_essential("answers", &shutdown, answers);
    let observed = observed::install(&registry);
    let observe = karst_link::observe(link.clone(), observed, mesh.hub.clone(), shutdown.clone());
    spawn_essential("observations", &shutdown, observe);
    if let Some(installer) = Installer::of(&mesh.config) {
        let keep = installer.keep(readiness.clone(), mesh.metrics.clone(), shutdown.clone());
        spawn_essential("cni chain", &shutdown, keep);
    }
    if let Some((known, search)) = kubelets {
        let follow = search.follow(known, mesh.datapath.clone(), shutdown.clone());
        spawn_essential("kubelet", &shutdown, follow);
    }
    spawn_essential("node token", &shutdown, link.keep_fresh(shutdown.clone()));
    listen(
        mesh.config.admin,
        admin_pages(&mesh, captured, logs),
        &stopped,
    )
    .await?;
    {
        let state = mesh.state.clone();
        karst_runtime::supervise::spawn_connection("readiness", async move {
            let mut origin = state.origin();
            if origin
                .wait_for(|origin| *origin >= Origin::Disk)
                .await
                .is_ok()
            {
                synced.done();
            }
        });
    }

    shutdown.cancelled().await;
    tracing::info!(
        seconds = mesh.config.drain_seconds,
        "draining: new connections go to the next agent, open ones may finish"
    );
    let outcome = drain.drain(mesh.config.drain_deadline()).await;
    tracing::info!(?outcome, "drained");
    stopped.cancel();
    tokio::task::spawn_blocking(move || join_threads(threads)).await?;
    Ok(())
}

/// Keeps recording up to date, and sends what is recorded.
fn record(mesh: &Arc<Mesh>, registry: &Registry) {
    let recorder = Recorder {
        state: mesh.state.clone(),
        hub: mesh.hub.clone(),
        tcp: mesh.metrics.tcp.clone(),
        http: None,
    };
    let follow = recorder.follow(mesh.stopped.clone());
    spawn_essential("recording", &mesh.shutdown, follow);
    let config = &mesh.config;
    let sender = Identity {
        attributes: vec![
            ("service.name", "karst-agent".to_owned()),
            ("service.instance.id", config.node.clone()),
            ("k8s.node.name", config.node.clone()),
            ("k8s.pod.name", config.pod_name().to_owned()),
            ("k8s.namespace.name", config.pod_namespace.clone()),
            ("karst.component", "agent".to_owned()),
        ],
    };
    let stopped = mesh.stopped.clone();
    let export = export::run(
        mesh.hub.exporters(),
        recording::connect(&mesh.state),
        sender,
        registry.clone(),
        async move { stopped.cancelled().await },
    );
    spawn_essential("export", &mesh.shutdown, export);
}

/// Waits for the controller while an earlier agent serves the node. What that agent saved is older than what it knows: a
/// newcomer that took its pods over from the disk would not know the workloads of the last seconds. If the earlier one
/// ends first, this program ends as well: whoever starts it again finds everything on the disk, and nobody to wait for.
async fn takeover(state: Arc<State>, cgroup_root: PathBuf, earlier: u64, shutdown: Shutdown) {
    let mut origin = state.origin();
    let ended = async {
        let mut look = tokio::time::interval(TAKEOVER_LOOK);
        loop {
            look.tick().await;
            let root = cgroup_root.clone();
            let lives = tokio::task::spawn_blocking(move || cgroup_exists(&root, earlier));
            if !lives.await.unwrap_or(true) {
                return;
            }
        }
    };
    tokio::select! {
        _ = origin.wait_for(|origin| *origin == Origin::Controller) => {}
        () = shutdown.cancelled() => {}
        () = ended => {
            tracing::warn!("the earlier agent has ended before a controller has answered: starting again from what it saved");
            shutdown.cancel();
        }
    }
}

/// Asks for the certificates of the workloads of this node.
fn signer(link: &Link) -> ControllerSigner {
    ControllerSigner { link: link.clone() }
}

fn join_threads(threads: Vec<std::thread::JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a data-path thread panicked, this is a bug in Karst");
        }
    }
}

async fn listen(
    addr: std::net::SocketAddr,
    pages: admin::Router,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let bound = match TcpListener::bind(addr).await {
        // A kernel without IPv6.
        Err(_no_ipv6) if addr.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    };
    let listener = bound.with_context(|| {
        format!("cannot listen on {addr}: is another agent running on this node?")
    })?;
    spawn_essential(
        "http pages",
        shutdown,
        admin::serve(listener, pages, shutdown.clone()),
    );
    Ok(())
}

/// Follows the controller until shutdown; the state is kept on disk for the next start.
async fn discovery(mesh: Arc<Mesh>, link: Link) {
    let token = link.clone();
    let dial_link = link.clone();
    let config = ClientConfig {
        dial: Arc::new(move || {
            let link = dial_link.clone();
            Box::pin(async move { link.connect().await.map_err(Into::into) })
        }),
        token: TokenSource::Read(Arc::new(move || token.token())),
        node: NodeIdentity {
            node_name: mesh.config.node.clone(),
            pod_name: mesh.config.pod_name().to_owned(),
            namespace: mesh.config.pod_namespace.clone(),
            cluster_domain: mesh.config.cluster_domain.clone(),
            cluster_id: "Kubernetes".to_owned(),
            ip: Ipv4Addr::LOCALHOST.into(),
            metadata: BTreeMap::new(),
        },
        kinds: Kind::ALL.to_vec(),
    };
    client::run(
        config,
        mesh.state.clone(),
        Arc::new(ClientStats::default()),
        mesh.shutdown.clone(),
    )
    .await;
}
