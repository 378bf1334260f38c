//! What all parts of the agent share: the state of the mesh, identities, the kernel side, policy and counters.

use std::sync::Arc;

use karst_discovery::State;
use karst_hbone::server::peers::Peers;
use karst_identity::Store;
use karst_runtime::supervise::Shutdown;
use karst_telemetry::hub::Hub;

use crate::{
    capture::datapath::Datapath,
    config::Config,
    inbound::authorize::Authorizer,
    live::LiveConnections,
    metrics::Metrics,
    node::Node,
    outbound::{balancer::Balancer, waypoint::WaypointStreams},
};

/// One per process, immutable after start; each field owns its own synchronisation.
pub(crate) struct Mesh {
    pub(crate) config: Config,
    pub(crate) node: Node,
    pub(crate) state: Arc<State>,
    pub(crate) identities: Store,
    pub(crate) datapath: Arc<dyn Datapath>,
    pub(crate) authorizer: Authorizer,
    pub(crate) live: Arc<LiveConnections>,
    pub(crate) balancer: Balancer,
    /// Streams to waypoints.
    pub(crate) waypoints: WaypointStreams,
    pub(crate) metrics: Arc<Metrics>,
    /// What is recorded of connections.
    pub(crate) hub: Arc<Hub>,
    /// HBONE connections from each peer address, for all pods of this node together.
    pub(crate) peers: Peers,
    /// The program should end: listeners stop, connections finish.
    pub(crate) shutdown: Shutdown,
    /// The drain is over: everything stops now.
    pub(crate) stopped: Shutdown,
}
