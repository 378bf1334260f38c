//! Wires the parts of the waypoint together and decides nothing: start in order, run until a signal, drain, end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context as _;
use clap::Parser as _;
use karst_discovery::{
    Kind, State,
    client::{self, ClientConfig, ClientStats, NodeIdentity, TokenSource},
    saved::Saved,
    state::Origin,
    trust,
};
use karst_identity::{Store, StoreConfig};
use karst_link::{ControllerSigner, JoinError, Link};
use karst_runtime::{
    admin, drain,
    readiness::{Pending, Readiness},
    signal,
    supervise::{Shutdown, spawn_connection, spawn_essential},
};
use karst_telemetry::{
    logging::{self, LogConfig, LogHandle},
    metrics::Registry,
    observed,
};
use tokio::net::TcpListener;

use crate::{admin::admin_pages, config::Config, inbound, mesh::Mesh, workers::Workers};

/// Runs the program and turns its outcome into an exit code: 0 ended as asked, 1 failed, 2 wrong use.
pub fn main() -> ExitCode {
    let config = Config::parse();
    if let Err(error) = config.validate() {
        complain(&error.to_string());
        return ExitCode::from(2);
    }
    let done = if config.print_config {
        print_config(&config)
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
    eprintln!("karst-waypoint: {text}");
}

#[expect(clippy::print_stdout, reason = "the flag asks for it")]
fn print_config(config: &Config) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(config)?);
    Ok(())
}

fn run(config: Config) -> anyhow::Result<()> {
    let logs = logging::init(&LogConfig {
        format: config.log_format.parse()?,
        filter: config.log_filter.clone(),
    })?;
    karst_identity::tls::install_provider();
    tracing::info!(
        gateway = config.gateway_name,
        namespace = config.namespace,
        "starting"
    );
    prepare_run_dir(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_name("karst-control")
        .build()?;
    runtime.block_on(serve(config, logs))
}

/// The run directory holds keys: nobody else may look inside. A volume of Kubernetes belongs to root and is ours by its
/// group; it is mounted into this container alone, and its mode is not ours to change.
fn prepare_run_dir(config: &Config) -> anyhow::Result<()> {
    let Some(dir) = &config.run_dir else {
        return Ok(());
    };
    let prepared = fs::create_dir_all(dir.join("state")).and_then(|()| {
        let belongs_to = |path: &Path| fs::metadata(path).map(|meta| meta.uid());
        let private = match belongs_to(dir)? == belongs_to(Path::new("/proc/self"))? {
            true => dir.clone(),
            false => dir.join("state"),
        };
        fs::set_permissions(private, fs::Permissions::from_mode(0o700))
    });
    prepared.with_context(|| format!("cannot use {} as run directory", dir.display()))
}

async fn serve(config: Config, logs: LogHandle) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    signal::cancel_on_signal(&shutdown)?;
    let readiness = Readiness::new();
    let registry = Registry::new();
    let state = Arc::new(State::new());
    let saved = config
        .run_dir
        .as_ref()
        .map(|dir| Saved::new(&dir.join("state")));
    if let Some(saved) = &saved {
        saved.restore(&state);
    }
    let pages_end = Shutdown::new();
    let pages = admin::Router::new().metrics(&registry);
    listen(everywhere(config.metrics_port), pages, &pages_end).await?;
    let pages = admin::Router::new().readiness(readiness.clone());
    listen(everywhere(config.ready_port), pages, &pages_end).await?;
    let joined = readiness.task("joining the controller");
    let synced = readiness.task("first answers of the controller");
    let certified = readiness.task("the waypoint's certificate");

    let link = match Link::establish(&config.link(), &shutdown).await {
        Ok(link) => link,
        Err(JoinError::Ended) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    joined.done();
    let identities = Store::new(store_config(&config), Arc::new(signer(&link)))?;
    identities.require(&config.identity())?;
    let mesh = Mesh::new(config, state, identities, &registry, shutdown.clone());
    let (drain, watch) = drain::channel();
    let (workers, threads) = Workers::start(mesh.config.workers(), &mesh)?;
    spawn_essential(
        "identities",
        &shutdown,
        mesh.identities.clone().run(mesh.stopped.clone()),
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
    spawn_essential("services", &shutdown, mesh.clone().follow_changes());
    spawn_essential("names", &shutdown, mesh.clone().follow_names());
    spawn_essential("memory", &shutdown, mesh.clone().follow_memory());
    record(&mesh, &registry);
    let observed = observed::install(&registry);
    let observe = karst_link::observe(link.clone(), observed, mesh.hub.clone(), shutdown.clone());
    spawn_essential("observations", &shutdown, observe);
    if let Some(saved) = saved {
        let keep = saved.keep(mesh.state.clone(), shutdown.clone());
        spawn_essential("saved state", &shutdown, keep);
    }
    spawn_essential("token", &shutdown, link.keep_fresh(shutdown.clone()));
    listen(mesh.config.admin, admin_pages(&mesh, logs), &mesh.stopped).await?;
    when_synced(&mesh, synced);
    when_certified(&mesh, certified);
    let addr = SocketAddr::new(mesh.config.listen_address, mesh.config.hbone_port);
    let listener = bind(addr).await?;
    tracing::info!(addr = %addr, "serving HBONE");
    spawn_essential(
        "hbone listener",
        &shutdown,
        inbound::accept(listener, mesh.clone(), workers, watch),
    );

    shutdown.cancelled().await;
    let ending = readiness.task("nothing more: the waypoint is ending");
    tracing::info!(
        seconds = mesh.config.drain_seconds,
        "draining: clients are told to go elsewhere, open requests may finish"
    );
    end(&mesh, drain, threads).await?;
    drop(ending);
    pages_end.cancel();
    Ok(())
}

/// Keeps recording up to date, and sends what is recorded.
fn record(mesh: &Arc<Mesh>, registry: &Registry) {
    let follow = mesh.recorder().follow(mesh.stopped.clone());
    spawn_essential("recording", &mesh.shutdown, follow);
    spawn_essential("export", &mesh.shutdown, mesh.export(registry));
}

async fn end(mesh: &Mesh, drain: drain::Drain, threads: Vec<JoinHandle<()>>) -> anyhow::Result<()> {
    let deadline = mesh.config.drain_deadline();
    let idle = drain.drain(deadline);
    let outcome = tokio::select! {
        outcome = idle => outcome,
        () = no_connections(mesh) => drain::Outcome::Idle,
    };
    tracing::info!(?outcome, "drained");
    mesh.stopped.cancel();
    tokio::task::spawn_blocking(move || join_threads(threads)).await?;
    Ok(())
}

/// The listener holds a watch for as long as it accepts, so that only the connections tell when all is done.
async fn no_connections(mesh: &Mesh) {
    let mut look = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        look.tick().await;
        if mesh.metrics.connections.get() == 0 {
            return;
        }
    }
}

fn join_threads(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a data-path thread panicked, this is a bug in Karst");
        }
    }
}

fn store_config(config: &Config) -> StoreConfig {
    StoreConfig {
        trust: config.trust_domains(),
        persist_dir: config.run_dir.as_ref().map(|dir| dir.join("identity")),
        ..StoreConfig::default()
    }
}

fn signer(link: &Link) -> ControllerSigner {
    ControllerSigner { link: link.clone() }
}

fn when_synced(mesh: &Arc<Mesh>, synced: Pending) {
    let mut origin = mesh.state.origin();
    spawn_connection("readiness of discovery", async move {
        let known = origin.wait_for(|origin| *origin >= Origin::Disk).await;
        if known.is_ok() {
            synced.done();
        }
    });
}

fn when_certified(mesh: &Arc<Mesh>, certified: Pending) {
    let mesh = mesh.clone();
    spawn_connection("readiness of the certificate", async move {
        let Some(mut credential) = mesh.identities.watch(&mesh.identity) else {
            return;
        };
        if credential.wait_for(Option::is_some).await.is_ok() {
            certified.done();
        }
    });
}

/// All addresses.
fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from(([0u16; 8], port))
}

async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(addr).await {
        // A kernel without IPv6.
        Err(_no_ipv6) if addr.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {addr}"))
}

async fn listen(addr: SocketAddr, pages: admin::Router, shutdown: &Shutdown) -> anyhow::Result<()> {
    let listener = bind(addr).await?;
    spawn_essential(
        "http pages",
        shutdown,
        admin::serve(listener, pages, shutdown.clone()),
    );
    Ok(())
}

/// Follows the controller until shutdown.
async fn discovery(mesh: Arc<Mesh>, link: Link) {
    let token = link.clone();
    let config = &mesh.config;
    let client = ClientConfig {
        dial: Arc::new(move || {
            let link = link.clone();
            Box::pin(async move { link.connect().await.map_err(Into::into) })
        }),
        token: TokenSource::Read(Arc::new(move || token.token())),
        node: NodeIdentity {
            node_name: config.node.clone(),
            pod_name: config.pod_name().to_owned(),
            namespace: config.namespace.clone(),
            cluster_domain: config.cluster_domain.clone(),
            cluster_id: "Kubernetes".to_owned(),
            ip: config.pod_ip,
            metadata: [("GATEWAY_NAME".to_owned(), config.gateway_name.clone())].into(),
        },
        kinds: Kind::WAYPOINT.to_vec(),
    };
    let (state, shutdown) = (mesh.state.clone(), mesh.shutdown.clone());
    client::run(client, state, Arc::new(ClientStats::default()), shutdown).await;
}
