//! Wiring: objects, index, certificate authority and services become one running program. Decides nothing.

mod admission;
mod files;
mod kubernetes;

use std::{io::Write as _, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{Method, StatusCode};
use karst_ca::{
    Authenticator, Authority, AuthorityConfig, Rules, Tokens,
    authorize::{MeshTrust, OwnAccounts},
    token::AgentAccount,
};
use karst_identity::{
    bundle::hex,
    clock::Clock,
    tls::{self, ServingCertificate, control_plane_server_config, incoming},
};
use karst_index::Event;
use karst_proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    encoded::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    karst::{enrollment_server::EnrollmentServer, reports_server::ReportsServer},
    reads::{node_reads_server::NodeReadsServer, observations_server::ObservationsServer},
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
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tonic::transport::Server;

use crate::{
    config::{Cli, Command, Config, TokenArgs},
    credentials::{self, CredentialMetrics},
    deploy::Waypoints,
    jwks::{JwksMetrics, Keeper},
    lease::Leadership,
    mesh::{COMMANDS_MAX, Command as MeshCommand, Memory, Mesh, Outputs, Reporter},
    problems::Problems,
    serve::{
        acks::Acks,
        caller::Gate,
        certificates::Certificates,
        collectors,
        discovery::Discovery,
        enrollment::Enroll,
        metrics::{Lag, ServeMetrics},
        nodes::{NodeReadService, Nodes},
        observations::{ObservationService, Observed},
        reports::ReportService,
        resources::Resources,
    },
    status::{self, Source, StatusMetrics, Statuses},
    watch::WatchHealth,
};

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
    Box::pin(serve(cli.config, shutdown)).await
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
    let root = authority.root_fingerprint();
    let token = tokens.issue_join_as(args.waypoint.as_ref(), &args.node, root, ttl, clock.now())?;
    writeln!(std::io::stdout(), "{token}")?;
    Ok(())
}

/// What differs between a directory of files and a cluster: where objects come from, who vouches for callers, where the
/// root of trust is kept.
struct Parts {
    authority: Arc<Authority>,
    authenticator: Arc<dyn Authenticator>,
    /// Join tokens and node tokens; nodes of a cluster need none.
    tokens: Option<Arc<Tokens>>,
    memory: Memory,
    /// All objects that there are now.
    objects: Vec<Event>,
    /// Tells the index's owner what changes from here on.
    follow: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The API server to answer to, and to write to.
    cluster: Option<Cluster>,
    /// Lets go of the lease when the program ends.
    election: Option<JoinHandle<()>>,
}

/// A cluster as the parts see it that answer or write to its API server.
#[derive(Clone)]
struct Cluster {
    client: kube::Client,
    /// The same for what only the leader writes.
    leaders_client: kube::Client,
    /// Whether this replica writes.
    leadership: Leadership,
    /// Counts changes of the root of trust.
    root_changes: watch::Receiver<u64>,
}

/// Longest time that the end of the program waits for the lease to be let go.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// What every part may use.
struct Base {
    cfg: Config,
    registry: Registry,
    outputs: Outputs,
    health: Option<WatchHealth>,
    commands: mpsc::Sender<MeshCommand>,
    /// Agents that can be asked.
    nodes: Arc<Nodes>,
    observed: Arc<Observed>,
    shutdown: Shutdown,
}

/// Serves until `shutdown`.
pub async fn serve(cfg: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let registry = Registry::new();
    let readiness = Readiness::new();
    let source = match cfg.kubernetes {
        true => Source::Cluster,
        false => Source::Files,
    };
    let outputs = Outputs {
        resources: Arc::new(Resources::new()),
        pods: Arc::default(),
        acks: Arc::new(Acks::default()),
        waypoints: OwnAccounts::default(),
        trust: MeshTrust::only(cfg.trust_domain()),
        problems: Arc::new(Problems::default()),
        statuses: Arc::new(Statuses::new(source)),
        deployments: Arc::new(Waypoints::new(source)),
        key_sources: Arc::default(),
        secrets: Arc::default(),
        metrics: ServeMetrics::register(&registry),
    };
    registry.register_collector(Lag {
        resources: outputs.resources.clone(),
        acks: outputs.acks.clone(),
    });
    let reading = readiness.task("objects read");
    let listening = readiness.task("listening");

    let admin = TcpListener::bind(cfg.admin)
        .await
        .with_context(|| format!("cannot listen on --admin {}", cfg.admin))?;
    let health = cfg.kubernetes.then(|| WatchHealth::register(&registry));
    let pages = pages(&registry, &readiness, health.clone(), &outputs.problems);
    spawn_essential(
        "admin",
        &shutdown,
        admin::serve(admin, pages, shutdown.clone()),
    );

    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    let base = Base {
        cfg,
        registry,
        outputs,
        health,
        commands,
        nodes: Arc::default(),
        observed: Arc::default(),
        shutdown: shutdown.clone(),
    };
    let mut parts = match base.cfg.files.clone() {
        Some(path) => files::parts(&base, path).await?,
        None => match shutdown
            .run_until_cancelled(Box::pin(kubernetes::parts(&base)))
            .await
        {
            Some(parts) => parts?,
            None => return Ok(()),
        },
    };
    let secrets = Box::pin(first_secrets(&base, &mut parts)).await;
    let mut mesh = Mesh::new(
        base.cfg.index(),
        parts.memory,
        base.outputs.clone(),
        base.commands.clone(),
    );
    mesh.start(parts.objects);
    reading.done();
    let owner_shutdown = shutdown.clone();
    spawn_essential("index", &shutdown, async move {
        let run = Box::pin(mesh.run(received));
        owner_shutdown.run_until_cancelled(run).await;
    });
    spawn_essential("objects", &shutdown, parts.follow);
    let (wanted, commands) = (base.outputs.secrets.subscribe(), base.commands.clone());
    let secrets = secrets.run(wanted, commands, shutdown.clone());
    spawn_essential("secrets", &shutdown, secrets);
    let keeper = Keeper::new(
        base.cfg.jwks()?,
        JwksMetrics::register(&base.registry),
        (
            base.outputs.key_sources.subscribe(),
            base.observed.unknown_keys(),
        ),
        base.commands.clone(),
    );
    spawn_essential("keys of issuers", &shutdown, keeper.run(shutdown.clone()));
    let collectors = collectors::follow(
        base.observed.clone(),
        base.commands.clone(),
        shutdown.clone(),
    );
    spawn_essential("collectors", &shutdown, collectors);

    let listener = TcpListener::bind(base.cfg.listen)
        .await
        .with_context(|| format!("cannot listen on --listen {}", base.cfg.listen))?;
    let root = hex(&parts.authority.root_fingerprint());
    tracing::info!(listen = %base.cfg.listen, admin = %base.cfg.admin, root, "karst-controller serves");
    listening.done();
    let callers = Callers {
        authority: parts.authority,
        authenticator: parts.authenticator,
        tokens: parts.tokens,
        cluster: parts.cluster,
    };
    let served = serve_grpc(base, callers, listener).await;
    if let Some(election) = parts.election {
        shutdown.cancel();
        let _ = tokio::time::timeout(RELEASE_PATIENCE, election).await;
    }
    served
}

/// Adds to the first objects what the Secrets hold that they name; the keeper goes on from there.
async fn first_secrets(base: &Base, parts: &mut Parts) -> credentials::Keeper {
    let client = parts.cluster.as_ref().map(|cluster| cluster.client.clone());
    let mut secrets = credentials::Keeper::new(client, CredentialMetrics::register(&base.registry));
    let read = secrets.first(base.cfg.index(), &parts.objects).await;
    parts.objects.extend(read);
    secrets
}

/// How callers are known, and what signs for them.
struct Callers {
    authority: Arc<Authority>,
    authenticator: Arc<dyn Authenticator>,
    tokens: Option<Arc<Tokens>>,
    cluster: Option<Cluster>,
}

async fn serve_grpc(base: Base, callers: Callers, listener: TcpListener) -> anyhow::Result<()> {
    let Base {
        cfg,
        registry,
        outputs,
        commands,
        nodes,
        observed,
        shutdown,
        ..
    } = base;
    let Callers {
        authority,
        authenticator,
        tokens,
        cluster,
    } = callers;
    let clock = Clock::system();
    let gate = Gate {
        authenticator,
        rules: Arc::new(Rules {
            own: outputs.waypoints.clone(),
            trust: outputs.trust.clone(),
            ..Rules::new(cfg.trust_domain(), &cfg.agent_account())
        }),
    };
    let pair = authority.server_certificate(&cfg.serving_names(), clock.now())?;
    let certificate = ServingCertificate::new(&pair.chain_pem, &pair.key_pem)?;
    let renewal = Renewal {
        names: cfg.serving_names(),
        authority: authority.clone(),
        certificate: certificate.clone(),
        clock: clock.clone(),
        root_changes: cluster.as_ref().map(|cluster| cluster.root_changes.clone()),
    };
    spawn_essential(
        "serving certificate",
        &shutdown,
        renewal.run(shutdown.clone()),
    );
    if let Some(cluster) = cluster {
        let writing = status::run(
            cluster.leaders_client.clone(),
            outputs.statuses.clone(),
            outputs.acks.clone(),
            status::Share::new(
                cluster.client.clone(),
                &cfg.namespace,
                &cfg.replica,
                observed.clone(),
            ),
            cluster.leadership.clone(),
            StatusMetrics::register(&registry),
            shutdown.clone(),
        );
        spawn_essential("status", &shutdown, writing);
        let webhook = admission::Parts {
            cluster,
            authority: authority.clone(),
            certificate: certificate.clone(),
            registry,
            shutdown: shutdown.clone(),
            waypoints: outputs.waypoints.clone(),
        };
        admission::start(&cfg, webhook).await?;
    }

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
        reporter: Reporter(commands),
        shutdown: shutdown.clone(),
    };
    let node_reads = NodeReadService {
        gate: gate.clone(),
        nodes,
        shutdown: shutdown.clone(),
    };
    let observations = ObservationService {
        gate: gate.clone(),
        observed,
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
    let enroll = tokens.map(|tokens| {
        EnrollmentServer::new(Enroll {
            gate,
            tokens,
            authority,
            cluster_id,
            clock,
            metrics,
        })
    });
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
        .add_optional_service(enroll)
        .add_service(ReportsServer::new(reports))
        .add_service(NodeReadsServer::new(node_reads))
        .add_service(ObservationsServer::new(observations))
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

/// Gives new connections a fresh serving certificate long before the old one ends, and when the root changes. Where the
/// state of the CA is on disk, takes root steps that are due.
struct Renewal {
    names: Vec<String>,
    authority: Arc<Authority>,
    certificate: Arc<ServingCertificate>,
    clock: Clock,
    /// None where the state of the CA is on disk.
    root_changes: Option<watch::Receiver<u64>>,
}

impl Renewal {
    async fn run(mut self, shutdown: Shutdown) {
        let period = CERTIFICATE_CHECK.min(self.authority.leaf_ttl_max() / 3);
        loop {
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = changed(&mut self.root_changes) => {}
                () = shutdown.cancelled() => return,
            }
            let now = self.clock.now();
            if self.root_changes.is_none()
                && let Some(step) = self.authority.due_step(now)
                && let Err(error) = self.authority.rotate(step, now)
            {
                tracing::error!(error = %Chain(&error), "root rotation failed; the present root stays");
            }
            if let Err(error) = self.renew() {
                tracing::error!(
                    error = format!("{error:#}"),
                    "serving certificate not renewed; the present one stays"
                );
            }
        }
    }

    fn renew(&self) -> anyhow::Result<()> {
        let pair = self
            .authority
            .server_certificate(&self.names, self.clock.now())?;
        Ok(self.certificate.replace(&pair.chain_pem, &pair.key_pem)?)
    }
}

/// Waits for a change; for ever where there is nothing to wait for.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn pages(
    registry: &Registry,
    readiness: &Readiness,
    health: Option<WatchHealth>,
    problems: &Arc<Problems>,
) -> Router {
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
                let mut pending = readiness.pending();
                pending.extend(health.iter().flat_map(WatchHealth::pending));
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
