//! Drives a [`Session`] over gRPC: connects, follows, and connects again for as long as the program runs.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use karst_proto::{
    core, dialect,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    session::Session,
    state::{Origin, State},
    update::Kind,
};

/// Pauses between attempts: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));
/// Largest response that is read.
const MAX_RESPONSE_BYTES: usize = 200 << 20;
/// Requests waiting to be sent. Each answers a response, so more than a few means that the server does not read.
const REQUEST_BACKLOG: usize = 16;

/// Opens a connection to the controller. Called for every attempt, so that new roots are picked up.
pub type Dial = Arc<dyn Fn() -> DialFuture + Send + Sync>;
/// What [`Dial`] returns.
pub type DialFuture = Pin<Box<dyn Future<Output = Result<Channel, DialError>> + Send>>;
/// Why a connection could not be opened; its own text and sources say what.
pub type DialError = Box<dyn std::error::Error + Send + Sync>;

/// Where the bearer token comes from. Read again for every stream.
#[derive(Clone)]
pub enum TokenSource {
    File(PathBuf),
    Read(Arc<dyn Fn() -> io::Result<String> + Send + Sync>),
}

/// How to reach the controller and who asks.
#[derive(Clone)]
pub struct ClientConfig {
    pub dial: Dial,
    pub token: TokenSource,
    /// Name of the Kubernetes node (and of the agent's pod, where it has one).
    pub node: NodeIdentity,
    /// Kinds to follow. Those beyond Istio's only from a Karst controller.
    pub kinds: Vec<Kind>,
}

/// Who the client says it is. The bearer token decides; this is what Istio's control plane wants to read beside it.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    pub node_name: String,
    pub pod_name: String,
    pub namespace: String,
    pub cluster_domain: String,
    pub cluster_id: String,
    pub ip: std::net::IpAddr,
    /// Further metadata.
    pub metadata: BTreeMap<String, String>,
}

/// What kind of proxy asks: the first part of the node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// `ztunnel`, as Istio's control plane knows the L4 proxy of a node.
    Agent,
    /// `waypoint`: whoever follows routes.
    Waypoint,
}

impl Role {
    fn of(kinds: &[Kind]) -> Self {
        match kinds.contains(&Kind::Route) {
            true => Self::Waypoint,
            false => Self::Agent,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "ztunnel",
            Self::Waypoint => "waypoint",
        }
    }
}

/// Counters of the connection; for metrics.
#[derive(Debug, Default)]
pub struct ClientStats {
    /// Streams that were opened.
    pub streams: AtomicU64,
    /// Attempts that failed before a stream was open.
    pub failures: AtomicU64,
    pub responses: AtomicU64,
    /// Resources that could not be used.
    pub rejected: AtomicU64,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot connect to the controller")]
    Dial(#[source] DialError),
    #[error("cannot read the bearer token")]
    Token(#[source] io::Error),
    #[error("the bearer token or the cluster id holds characters that a header cannot carry")]
    Metadata(#[source] InvalidMetadataValue),
    #[error("the controller refused the discovery stream")]
    Refused(#[source] Status),
    #[error("the discovery stream broke")]
    Broken(#[source] Status),
    #[error("the controller closed the discovery stream")]
    Closed,
}

/// Follows the controller and applies what it says to `state`, until `shutdown`. Names that the state holds already
/// (restored from disk) are reconciled on the first stream.
pub async fn run(
    cfg: ClientConfig,
    state: Arc<State>,
    stats: Arc<ClientStats>,
    shutdown: Shutdown,
) {
    let mut session = Session::new(cfg.node.to_proto(Role::of(&cfg.kinds)), &cfg.kinds);
    for kind in &cfg.kinds {
        session.hold(*kind, state.names(*kind));
    }
    let mut follower = Follower {
        cfg,
        state,
        stats,
        session,
        backoff: BACKOFF.0,
    };
    let _ = shutdown.run_until_cancelled(follower.run()).await;
}

struct Follower {
    cfg: ClientConfig,
    state: Arc<State>,
    stats: Arc<ClientStats>,
    session: Session,
    backoff: Duration,
}

impl Follower {
    async fn run(&mut self) {
        loop {
            let Err(error) = self.follow().await;
            let pause = jittered(self.backoff);
            let chain = Chain(&error).to_string();
            match error.is_routine() {
                true => tracing::info!(error = chain, ?pause, "discovery reconnects"),
                false => tracing::warn!(
                    error = chain,
                    ?pause,
                    "discovery is not connected; what is known stays in force"
                ),
            }
            self.backoff = (self.backoff * 2).min(BACKOFF.1);
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection and its stream, to its end.
    async fn follow(&mut self) -> Result<std::convert::Infallible, StreamError> {
        let (requests, mut responses) = self.open().await.inspect_err(|_| {
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
        })?;
        self.stats.streams.fetch_add(1, Ordering::Relaxed);
        while let Some(response) = responses.message().await.map_err(StreamError::Broken)? {
            let reply = self.handle(response);
            requests
                .send(reply)
                .await
                .map_err(|_gone| StreamError::Closed)?;
        }
        Err(StreamError::Closed)
    }

    async fn open(
        &self,
    ) -> Result<
        (
            mpsc::Sender<DeltaDiscoveryRequest>,
            Streaming<DeltaDiscoveryResponse>,
        ),
        StreamError,
    > {
        let channel = (self.cfg.dial)().await.map_err(StreamError::Dial)?;
        let token = self.cfg.token.read().await.map_err(StreamError::Token)?;
        let (tx, rx) = mpsc::channel(REQUEST_BACKLOG);
        for request in self.session.start() {
            // There is room: a request per kind is less than the backlog.
            let _ = tx.try_send(request);
        }
        let mut request = Request::new(ReceiverStream::new(rx));
        let bearer: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(StreamError::Metadata)?;
        let cluster = self
            .cfg
            .node
            .cluster_id
            .parse()
            .map_err(StreamError::Metadata)?;
        request.metadata_mut().insert("authorization", bearer);
        request.metadata_mut().insert("clusterid", cluster);
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        let responses = client
            .delta_aggregated_resources(request)
            .await
            .map_err(StreamError::Refused)?;
        Ok((tx, responses.into_inner()))
    }

    /// Applies a response, then gives the answer.
    fn handle(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        self.backoff = BACKOFF.0;
        self.stats.responses.fetch_add(1, Ordering::Relaxed);
        let handled = self.session.handle(response);
        for rejected in &handled.rejected {
            tracing::warn!(resource = rejected.name, reason = %rejected.reason, "resource rejected; its last good form stays");
        }
        self.stats
            .rejected
            .fetch_add(handled.rejected.len() as u64, Ordering::Relaxed);
        self.state.apply(handled.updates);
        if self.session.is_synced() {
            self.state.raise_origin(Origin::Controller);
        }
        handled.reply
    }
}

impl StreamError {
    /// Connections end; that is not worth a warning.
    fn is_routine(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Broken(status) => {
                matches!(
                    status.code(),
                    Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable
                )
            }
            _ => false,
        }
    }
}

impl TokenSource {
    async fn read(&self) -> io::Result<String> {
        match self {
            Self::File(path) => tokio::fs::read_to_string(path).await,
            Self::Read(read) => read(),
        }
    }
}

impl NodeIdentity {
    fn to_proto(&self, role: Role) -> core::Node {
        let Self {
            node_name,
            pod_name,
            namespace,
            cluster_domain,
            cluster_id,
            ip,
            metadata,
        } = self;
        let role = role.as_str();
        let text = |value: &str| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
        };
        let own = [
            ("NAME", pod_name.clone()),
            ("NAMESPACE", namespace.clone()),
            ("NODE_NAME", node_name.clone()),
            ("INSTANCE_IPS", ip.to_string()),
            ("CLUSTER_ID", cluster_id.clone()),
        ];
        let own = own
            .into_iter()
            .map(|(key, value)| (key.to_owned(), text(&value)));
        let fields = metadata
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .chain(own)
            .collect();
        core::Node {
            id: format!("{role}~{ip}~{pod_name}.{namespace}~{namespace}.svc.{cluster_domain}"),
            metadata: Some(prost_types::Struct { fields }),
            user_agent_name: dialect::USER_AGENT.to_owned(),
            ..core::Node::default()
        }
    }
}

/// An endpoint with the keepalives and time-outs that a discovery connection needs; give it a connector.
pub fn endpoint(uri: http::Uri) -> Endpoint {
    Endpoint::from(uri)
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(300)))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

/// Between half of `pause` and all of it, so that a thousand agents do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}
