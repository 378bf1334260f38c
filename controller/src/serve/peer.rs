//! Who is at the other end of a discovery stream, which decides what it may follow.

use std::{fmt, sync::Arc};

use karst_model::name::GatewayKey;

/// A proxy that follows discovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The agent of this node.
    Agent(Arc<str>),
    /// One replica of a waypoint.
    Waypoint {
        gateway: GatewayKey,
        /// The pod, or the node where no pod is known.
        replica: Arc<str>,
    },
}

impl From<&str> for Peer {
    /// The agent of this node.
    fn from(node: &str) -> Self {
        Self::Agent(node.into())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent of node {node}"),
            Self::Waypoint { gateway, replica } => write!(f, "waypoint {gateway} ({replica})"),
        }
    }
}
