//! What all parts of the waypoint share: the state of the mesh, the own identity, what is compiled for each service,
//! bounds and counters.

use std::sync::Arc;

use http::HeaderValue;
use karst_discovery::{
    State,
    recording::{self, Recorder},
};
use karst_hbone::{Baggage, server::peers::Peers};
use karst_identity::Store;
use karst_model::{identity::SpiffeId, name::GatewayKey, workload::Workload};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{
    export::{self, Identity},
    hub::Hub,
    metrics::Registry,
};

use crate::{bounds::Bounds, config::Config, metrics::Metrics, services::Services, share::Shared};

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
    /// What is recorded of requests and connections.
    pub(crate) hub: Arc<Hub>,
    /// `<namespace>/<gateway>`, as logs and spans name this waypoint.
    pub(crate) gateway: GatewayKey,
    pub(crate) shown: Arc<str>,
    pub(crate) bounds: Bounds,
    /// The HTTP connections of clients, of which some are sent to other replicas.
    pub(crate) share: Arc<Shared>,
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
        let gateway = GatewayKey {
            namespace: config.namespace.as_str().into(),
            name: config.gateway_name.as_str().into(),
        };
        let baggage = Baggage::of(&place).encode();
        let services = Services::new(state.clone(), &config, place);
        services.totals().register(registry);
        Arc::new(Self {
            identity: config.identity(),
            baggage,
            services,
            metrics: Metrics::register(registry),
            hub: Arc::new(Hub::new(registry)),
            shown: gateway.to_string().into(),
            gateway,
            bounds: Bounds::new(config.max_connections, config.max_requests),
            share: Arc::default(),
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

    /// Keeps names of external endpoints resolved, until the program ends. Spawn it once.
    pub async fn follow_names(self: Arc<Self>) {
        tokio::select! {
            () = self.services.names().resolver().run() => {}
            () = self.stopped.cancelled() => {}
        }
    }

    /// What keeps recording up to date with the state. Spawn it once.
    pub fn recorder(&self) -> Recorder {
        Recorder {
            state: self.state.clone(),
            hub: self.hub.clone(),
            tcp: self.metrics.tcp.clone(),
            http: Some(self.metrics.http.clone()),
        }
    }

    /// Sends what is recorded, until the program ends. Spawn it once.
    pub fn export(&self, registry: &Registry) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stopped.clone();
        export::run(
            self.hub.exporters(),
            recording::connect(&self.state),
            self.sender(),
            registry.clone(),
            async move { stopped.cancelled().await },
        )
    }

    /// Who sends what is recorded, by OpenTelemetry's names.
    fn sender(&self) -> Identity {
        let config = &self.config;
        Identity {
            attributes: vec![
                ("service.name", config.gateway_name.clone()),
                ("service.namespace", config.namespace.clone()),
                ("service.instance.id", config.pod_name().to_owned()),
                ("k8s.namespace.name", config.namespace.clone()),
                ("k8s.pod.name", config.pod_name().to_owned()),
                ("k8s.node.name", config.node.clone()),
                ("karst.component", "waypoint".to_owned()),
            ],
        }
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
