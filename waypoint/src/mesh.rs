//! What all parts of the waypoint share: the state of the mesh, the own identity, what is compiled for each service,
//! bounds and counters.

use std::sync::Arc;

use http::HeaderValue;
use karst_discovery::State;
use karst_hbone::{Baggage, server::peers::Peers};
use karst_identity::Store;
use karst_model::{identity::SpiffeId, workload::Workload};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::metrics::Registry;

use crate::{bounds::Bounds, config::Config, metrics::Metrics, services::Services};

/// One per process, immutable after start; each field owns its own synchronisation.
pub struct Mesh {
    pub config: Config,
    pub state: Arc<State>,
    pub identities: Store,
    pub(crate) identity: SpiffeId,
    /// Describes this waypoint to the agents of its destinations.
    pub(crate) baggage: Option<HeaderValue>,
    pub(crate) services: Services,
    pub(crate) metrics: Metrics,
    pub(crate) bounds: Bounds,
    /// HBONE connections from each peer address.
    pub(crate) peers: Peers,
    /// The program should end: connections finish.
    pub shutdown: Shutdown,
    /// The drain is over: everything stops now.
    pub stopped: Shutdown,
}

impl Mesh {
    /// Puts the parts together. `identities` must have been asked for `config.identity()`.
    pub fn new(
        config: Config,
        state: Arc<State>,
        identities: Store,
        registry: &Registry,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let place = place(&config);
        Arc::new(Self {
            identity: config.identity(),
            baggage: Baggage::of(&place).encode(),
            services: Services::new(state.clone(), &config, place),
            metrics: Metrics::register(registry),
            bounds: Bounds::new(config.max_connections, config.max_requests),
            peers: Peers::bounded(config.connections_per_peer),
            state,
            identities,
            config,
            shutdown,
            stopped: Shutdown::new(),
        })
    }

    /// Keeps what is compiled up to date with the state, until the program ends. Spawn it once.
    pub async fn follow_changes(self: Arc<Self>) {
        self.services.follow(&self.stopped).await;
    }

    /// Refuses new work while memory is nearly full, until the program ends. Spawn it once.
    pub async fn follow_memory(self: Arc<Self>) {
        self.bounds.follow_memory(&self.stopped).await;
    }
}

fn place(config: &Config) -> Workload {
    let identity = config.identity();
    Workload {
        name: config.pod_name().into(),
        namespace: identity.namespace,
        trust_domain: identity.trust_domain,
        service_account: identity.service_account,
        addresses: vec![config.pod_ip],
        network: config.own_network(),
        node: config.node.as_str().into(),
        workload_name: config.gateway_name.as_str().into(),
        canonical_name: config.gateway_name.as_str().into(),
        canonical_revision: "latest".into(),
        ..Workload::new(&config.workload_uid().0)
    }
}
