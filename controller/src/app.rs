//! Wiring: files, index, certificate authority and services become one running program. Decides nothing.

use std::{io::Write as _, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{Method, StatusCode};
use karst_ca::{
    Authority, AuthorityConfig, KeySet, KeySetAuthenticator, Rules, Tokens, token::AgentAccount,
};
use karst_identity::{
    bundle::hex,
    clock::Clock,
    tls::{self, ServingCertificate, control_plane_server_config, incoming},
};
use karst_proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    encoded::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    karst::{enrollment_server::EnrollmentServer, reports_server::ReportsServer},
};
use karst_runtime::{
    admin::{self, Response, Router},
    readiness::Readiness,
    signal,
    supervise::{Shutdown, spawn_essential},
};
use karst_telemetry::{
    error_chain::Chain,
    logging::{self, LogConfig},
    metrics::{CONTENT_TYPE, Registry},
};
use notify::{RecursiveMode, Watcher as _};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::transport::Server;

use crate::{
    config::{Cli, Command, Config, TokenArgs},
    mesh::{COMMANDS_MAX, CapturedPods, Command as MeshCommand, Mesh, Outputs, Reporter},
    problems::Problems,
    serve::{
        acks::Acks, caller::Gate, certificates::Certificates, discovery::Discovery,
        enrollment::Enroll, metrics::ServeMetrics, reports::ReportService, resources::Resources,
    },
};

/// Between looks at the directory without word from the kernel that it changed: some file systems give none.
const RESCAN: Duration = Duration::from_secs(30);
/// Between renewals of the serving certificate, and of roots that are due.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(3600);
/// Largest request: the versions of everything that an agent of a large mesh holds.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Runs what the command line asks for, to its end.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    if let Some(Command::Token(args)) = cli.command {
        return print_token(&args);
    }
    cli.config.check()?;
    if cli.config.print_config {
        writeln!(
            std::io::stdout(),
            "{}",
            serde_json::to_string_pretty(&cli.config)?
        )?;
        return Ok(());
    }
    logging::init(&LogConfig::from_variables(|name| std::env::var(name).ok())?)?;
    tls::install_provider();
    let shutdown = Shutdown::new();
    signal::cancel_on_signal(&shutdown)?;
    serve(cli.config, shutdown).await
}

fn print_token(args: &TokenArgs) -> anyhow::Result<()> {
    tls::install_provider();
    let clock = Clock::system();
    let trust_domain = karst_model::identity::TrustDomain(args.state.trust_domain.as_str().into());
    let authority = Authority::load_or_create(
        AuthorityConfig::new(&args.state.state_dir, trust_domain),
        clock.now(),
    )?;
    let tokens = Tokens::load_or_create(&args.state.state_dir, AgentAccount::default())?;
    let ttl = Duration::from_secs(args.ttl_minutes.saturating_mul(60));
    let token = tokens.issue_join(&args.node, authority.root_fingerprint(), ttl, clock.now())?;
    writeln!(std::io::stdout(), "{token}")?;
    Ok(())
}

/// Serves until `shutdown`.
pub async fn serve(cfg: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let files = cfg.files.clone().context("--files is missing")?;
    let registry = Registry::new();
    let readiness = Readiness::new();
    let outputs = Outputs {
        resources: Arc::new(Resources::new()),
        pods: Arc::default(),
        acks: Arc::new(Acks::default()),
        problems: Arc::new(Problems::default()),
        metrics: ServeMetrics::register(&registry),
    };
    let reading = readiness.task("files read");
    let listening = readiness.task("listening");

    let admin = TcpListener::bind(cfg.admin)
        .await
        .with_context(|| format!("cannot listen on --admin {}", cfg.admin))?;
    let pages = pages(&registry, &readiness, &outputs.problems);
    spawn_essential(
        "admin",
        &shutdown,
        admin::serve(admin, pages, shutdown.clone()),
    );

    let authority = Authority::load_or_create(
        AuthorityConfig::new(&cfg.state.state_dir, cfg.trust_domain()),
        Clock::system().now(),
    )?;
    let captured = CapturedPods::load(&cfg.state.state_dir)
        .context("cannot read the list of captured pods")?;
    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    let mut mesh = Mesh::new(
        cfg.index(),
        files.clone(),
        captured,
        outputs.clone(),
        commands.clone(),
    );
    spawn_essential(
        "file watch",
        &shutdown,
        watch_files(files, commands.clone(), shutdown.clone()),
    );
    mesh.start().await;
    reading.done();
    let owner_shutdown = shutdown.clone();
    spawn_essential("index", &shutdown, async move {
        owner_shutdown.run_until_cancelled(mesh.run(received)).await;
    });

    let listener = TcpListener::bind(cfg.listen)
        .await
        .with_context(|| format!("cannot listen on --listen {}", cfg.listen))?;
    tracing::info!(listen = %cfg.listen, admin = %cfg.admin, root = hex(&authority.root_fingerprint()), "karst-controller serves");
    listening.done();
    serve_grpc(
        &cfg,
        Arc::new(authority),
        outputs,
        Reporter(commands),
        listener,
        shutdown,
    )
    .await
}

async fn serve_grpc(
    cfg: &Config,
    authority: Arc<Authority>,
    outputs: Outputs,
    reporter: Reporter,
    listener: TcpListener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let clock = Clock::system();
    let account = AgentAccount::default();
    let tokens = Arc::new(Tokens::load_or_create(
        &cfg.state.state_dir,
        account.clone(),
    )?);
    let mut keys = tokens.node_keys();
    if let Some(dir) = &cfg.token_keys {
        keys = keys.merge(KeySet::from_dir(dir)?)?;
    }
    let gate = Gate {
        authenticator: Arc::new(KeySetAuthenticator::new(keys, clock.clone())),
        rules: Arc::new(Rules::new(cfg.trust_domain(), &account)),
    };
    let pair = authority.server_certificate(&cfg.serving_names(), clock.now())?;
    let certificate = ServingCertificate::new(&pair.chain_pem, &pair.key_pem)?;
    let renewal = renew(
        cfg.serving_names(),
        authority.clone(),
        certificate.clone(),
        clock.clone(),
        shutdown.clone(),
    );
    spawn_essential("serving certificate", &shutdown, renewal);

    let Outputs {
        resources,
        pods,
        acks,
        metrics,
        ..
    } = outputs;
    let discovery = Discovery::new(
        gate.clone(),
        resources.clone(),
        acks,
        metrics.clone(),
        shutdown.clone(),
    );
    let reports = ReportService {
        gate: gate.clone(),
        pods: pods.clone(),
        resources,
        reporter,
        shutdown: shutdown.clone(),
    };
    let certificates = Certificates {
        gate: gate.clone(),
        authority: authority.clone(),
        pods,
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    let cluster_id = cfg.cluster_id.as_str().into();
    let enroll = Enroll {
        gate,
        tokens,
        authority,
        cluster_id,
        clock,
        metrics,
    };
    let connections = incoming(
        listener,
        control_plane_server_config(certificate),
        &shutdown,
    );
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .add_service(
            AggregatedDiscoveryServiceServer::new(discovery)
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(IstioCertificateServiceServer::new(certificates))
        .add_service(EnrollmentServer::new(enroll))
        .add_service(ReportsServer::new(reports))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled());
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(cfg.drain()).await;
    };
    tokio::select! {
        served = server => served.context("serving failed"),
        () = deadline => {
            tracing::warn!("connections were still open at the drain deadline: cut");
            Ok(())
        }
    }
}

/// Tells the index's owner whenever the directory changes.
async fn watch_files(
    path: std::path::PathBuf,
    commands: mpsc::Sender<MeshCommand>,
    shutdown: Shutdown,
) {
    // One waiting word is enough: the scan that it causes sees everything before it.
    let (tx, mut changed) = mpsc::channel(1);
    let mut watcher = None;
    loop {
        if watcher.is_none() {
            watcher = watcher_of(&path, tx.clone());
        }
        tokio::select! {
            _ = changed.recv() => {}
            () = tokio::time::sleep(RESCAN) => {}
            () = shutdown.cancelled() => return,
        }
        if commands.send(MeshCommand::Rescan).await.is_err() {
            return;
        }
    }
}

fn watcher_of(path: &Path, tx: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let notice = move |event: notify::Result<notify::Event>| {
        let is_read = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !is_read {
            let _ = tx.try_send(());
        }
    };
    let watching = notify::recommended_watcher(notice).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), error = %Chain(error), "directory cannot be watched: it is read every 30 s");
        })
        .ok()
}

/// Gives new connections a fresh serving certificate long before the old one ends, and takes root steps that are due.
async fn renew(
    names: Vec<String>,
    authority: Arc<Authority>,
    certificate: Arc<ServingCertificate>,
    clock: Clock,
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
            () = shutdown.cancelled() => return,
        }
        let now = clock.now();
        if let Some(step) = authority.due_step(now)
            && let Err(error) = authority.rotate(step, now)
        {
            tracing::error!(error = %Chain(&error), "root rotation failed; the present root stays");
        }
        let renewed = authority.server_certificate(&names, now);
        let error = match renewed.map(|pair| certificate.replace(&pair.chain_pem, &pair.key_pem)) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(error) => Chain(&error).to_string(),
        };
        tracing::error!(
            error,
            "serving certificate not renewed; the present one stays"
        );
    }
}

fn pages(registry: &Registry, readiness: &Readiness, problems: &Arc<Problems>) -> Router {
    let (registry, readiness, problems) = (registry.clone(), readiness.clone(), problems.clone());
    Router::new()
        .route(
            Method::GET,
            "/metrics",
            "metrics as OpenMetrics text",
            move |_| {
                let registry = registry.clone();
                async move {
                    Response {
                        content_type: CONTENT_TYPE,
                        ..Response::text(registry.encode())
                    }
                }
            },
        )
        .route(
            Method::GET,
            "/healthz/ready",
            "200 when ready, else what is pending",
            move |_| {
                let pending = readiness.pending();
                async move {
                    match pending.is_empty() {
                        true => Response::text("ready\n"),
                        false => {
                            Response::plain(StatusCode::SERVICE_UNAVAILABLE, pending.join("\n"))
                        }
                    }
                }
            },
        )
        .route(
            Method::GET,
            "/debug/problems",
            "what is wrong with the configuration",
            move |_| {
                let problems = problems.json();
                async move { Response::json(&problems) }
            },
        )
}
