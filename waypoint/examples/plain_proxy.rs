//! The waypoint's HTTP path between plain connections: what `cargo xtask bench l7` measures beside other proxies, and
//! what `cargo xtask conformance http2` and `grpc` test. No controller, no tunnel, no identities.
//!
//! ```text
//!   plain_proxy --threads 1 --listen 127.0.0.1:8080=http1:127.0.0.1:9000 --listen 127.0.0.1:8081=http2:127.0.0.1:9001
//! ```

#[path = "plain_proxy/features.rs"]
mod features;

use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use karst_discovery::{State, Update};
use karst_identity::{CertificateSigner, SignError, SignedCertificate, Store, StoreConfig};
use karst_model::{
    identity::SpiffeId,
    name::{PolicyKey, ServiceKey},
    protocol::AppProtocol,
    service::{Service, ServicePort},
    telemetry::{
        AccessLog, Collector, MeshTelemetry, Metrics, MetricsOverride, OtlpProtocol, Provider,
        ProviderKind, Scope, ScopedTelemetry, Telemetry,
    },
    workload::{GatewayAddr, GatewayDestination, Workload},
};
use karst_runtime::{
    drain, signal,
    supervise::{Shutdown, spawn_connection},
};
use karst_telemetry::metrics::Registry;
use karst_waypoint::{config::Config, mesh::Mesh, plain, workers::Workers};
use tokio::net::TcpListener;

use self::features::Feature;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Proxies plain connections through the waypoint's HTTP path.
#[derive(Parser)]
struct Args {
    /// Data-path threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// `ADDRESS=http1|http2:BACKEND`, as often as wanted.
    #[arg(long, required = true)]
    listen: Vec<Listen>,
    /// What is done with each request besides.
    #[arg(long, value_enum)]
    feature: Option<Feature>,
    /// What is recorded: as without configuration; nothing; or everything, with the usual share of traces or all of them,
    /// to the OTLP collector at `--collector`.
    #[arg(long, value_enum, default_value = "usual")]
    record: Record,
    #[arg(long, default_value = "127.0.0.1:4317")]
    collector: SocketAddr,
}

/// How much is recorded of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Record {
    Usual,
    Nothing,
    Sampled,
    Everything,
}

/// One way in, and the one endpoint behind it.
#[derive(Clone)]
struct Listen {
    at: SocketAddr,
    protocol: AppProtocol,
    backend: SocketAddr,
}

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (at, rest) = text.split_once('=').context("ADDRESS=PROTOCOL:BACKEND")?;
        let (protocol, backend) = rest.split_once(':').context("PROTOCOL:BACKEND")?;
        let protocol = match protocol {
            "http1" => AppProtocol::Http11,
            "http2" => AppProtocol::Http2,
            other => anyhow::bail!("protocol {other:?} is neither http1 nor http2"),
        };
        Ok(Self {
            at: at.parse()?,
            protocol,
            backend: backend.parse()?,
        })
    }
}

/// Nothing here has an identity.
struct NoSigner;

#[async_trait::async_trait]
impl CertificateSigner for NoSigner {
    async fn sign(
        &self,
        _: &SpiffeId,
        _: String,
        _: Duration,
    ) -> Result<SignedCertificate, SignError> {
        Err(SignError::Unavailable("plain connections need none".into()))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    karst_identity::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    signal::cancel_on_signal(&shutdown)?;
    let threads = args.threads.to_string();
    let flags = ["plain_proxy", "--gateway", "plain", "--namespace", "plain"];
    let config = Config::parse_from(flags.into_iter().chain(["--worker-threads", &threads]));
    let state = Arc::new(State::new());
    let store = Store::new(StoreConfig::default(), Arc::new(NoSigner))?;
    let registry = Registry::new();
    let mesh = Mesh::new(config, state.clone(), store, &registry, shutdown.clone());
    spawn_connection("services", mesh.clone().follow_changes());
    state.apply(recording(&args));
    if matches!(args.record, Record::Sampled | Record::Everything) {
        tell(&state, "otel", args.collector);
    }
    spawn_connection("recording", mesh.recorder().follow(shutdown.clone()));
    spawn_connection("export", mesh.export(&registry));
    let (workers, _threads) = Workers::start(mesh.config.workers(), &mesh)?;
    let (_drain, watch) = drain::channel();
    for (number, listen) in args.listen.iter().enumerate() {
        let service = announce(&state, &mesh.config, number, listen);
        if let Some(feature) = args.feature {
            state.apply(feature.updates(&service));
        }
        let listener = TcpListener::bind(listen.at).await?;
        let accepting = plain::accept(
            listener,
            (service, 80),
            mesh.clone(),
            workers.clone(),
            watch.clone(),
        );
        spawn_connection("plain listener", accepting);
    }
    shutdown.cancelled().await;
    mesh.stopped.cancel();
    Ok(())
}

/// What the Telemetry API would say.
fn recording(args: &Args) -> Vec<Update> {
    let mut off = ScopedTelemetry {
        key: PolicyKey {
            namespace: "istio-system".into(),
            name: "off".into(),
        },
        created: 0,
        scope: Scope::Mesh,
        tracing: Vec::new(),
        metrics: vec![Metrics::default()],
        access_logs: vec![AccessLog {
            disabled: Some(true),
            ..AccessLog::default()
        }],
    };
    off.metrics[0].overrides.push(MetricsOverride {
        disabled: Some(true),
        ..MetricsOverride::default()
    });
    let collector = Collector {
        service: service_key("otel"),
        port: 80,
        protocol: OtlpProtocol::Grpc,
        headers: Vec::new(),
        timeout_ms: 5000,
        tls: None,
    };
    let otel: Vec<Arc<str>> = vec!["otel".into()];
    let all = MeshTelemetry {
        providers: vec![Provider {
            name: "otel".into(),
            kind: ProviderKind::Opentelemetry(collector),
        }],
        default_tracing: otel.clone(),
        default_metrics: otel.clone(),
        default_access_logging: otel,
        sampling: (args.record == Record::Everything).then_some(10_000),
    };
    let one = match args.record {
        Record::Usual => return Vec::new(),
        Record::Nothing => Telemetry::Scoped(off),
        Record::Sampled | Record::Everything => Telemetry::Mesh(all),
    };
    vec![Update::Telemetry(Arc::new(one))]
}

fn service_key(name: &str) -> ServiceKey {
    Service::new("plain", &format!("{name}.plain.svc.cluster.local")).key
}

/// Tells the state of an endpoint of service `name`.
fn tell(state: &State, name: &str, at: SocketAddr) {
    let mut workload = Workload {
        namespace: "plain".into(),
        addresses: vec![at.ip()],
        ..Workload::new(&format!("plain/{name}"))
    };
    let ports = [(80, at.port())].into();
    workload.services.insert(service_key(name), ports);
    state.apply([Update::Workload(Arc::new(workload))]);
}

/// Tells the state of a service with one endpoint.
fn announce(state: &State, config: &Config, number: usize, listen: &Listen) -> ServiceKey {
    let mut service = Service::new(
        "plain",
        &format!("backend-{number}.plain.svc.cluster.local"),
    );
    let key = service.key.clone();
    let port = ServicePort {
        target_port: listen.backend.port(),
        app_protocol: listen.protocol,
    };
    service.ports.insert(80, port);
    service.waypoint = Some(GatewayAddr {
        destination: GatewayDestination::Service(config.own_service()),
        hbone_port: 15008,
    });
    let mut workload = Workload {
        namespace: "plain".into(),
        addresses: vec![listen.backend.ip()],
        ..Workload::new(&format!("plain/backend-{number}"))
    };
    workload
        .services
        .insert(key.clone(), [(80, listen.backend.port())].into());
    state.apply([
        Update::Service(Arc::new(service)),
        Update::Workload(Arc::new(workload)),
    ]);
    key
}
