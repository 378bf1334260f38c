//! What can go wrong in the agent: small enums, one per operation, each with whose fault it is and what to do.

use std::{io, path::PathBuf};

use karst_model::name::{PodUid, WorkloadUid};

use karst_hbone::Flag;

/// Why a pod cannot be captured (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    #[error("cannot enter the network namespace {} of pod {pod_uid}", path.display())]
    Namespace {
        pod_uid: PodUid,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is another namespace by now than when pod {pod_uid} was added: its namespace is searched for anew", path.display())]
    NamespaceReplaced { pod_uid: PodUid, path: PathBuf },
    #[error("pod {pod_uid} has no address yet")]
    NoAddress { pod_uid: PodUid },
    #[error(
        "cannot open the listeners of pod {pod_uid}; if the agent has too many files open, raise its limit of them"
    )]
    Listen { pod_uid: PodUid, source: io::Error },
    #[error(
        "the agent has more to do than it can queue: nobody would take the connections of pod {pod_uid}"
    )]
    Busy { pod_uid: PodUid },
    #[error(
        "the node has no interface {name}, which the container runtime named as the link of pod {pod_uid}"
    )]
    Link {
        pod_uid: PodUid,
        name: String,
        source: io::Error,
    },
    #[error("the kernel refused to capture pod {pod_uid}")]
    Attach {
        pod_uid: PodUid,
        source: karst_ebpf_loader::AttachError,
    },
    #[error(
        "pod {pod_uid} should be in the mesh and is not captured yet: see this agent's log for the cause"
    )]
    NotYetCaptured { pod_uid: PodUid },
}

impl EnrollError {
    /// Whether the pod's namespace is another by now than the one that is remembered.
    pub(crate) fn is_stale_namespace(&self) -> bool {
        matches!(
            self,
            Self::Namespace { .. } | Self::NamespaceReplaced { .. }
        )
    }
}

/// Why an outbound connection cannot be made. The client sees a reset; the access log says this.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error(
        "the kernel did not capture this connection: something dialled the agent's listener itself"
    )]
    NotCaptured,
    #[error("workload {0} of this pod is not known to the mesh yet")]
    UnknownSource(WorkloadUid),
    #[error(transparent)]
    Refused(#[from] karst_path::outbound::Refused),
    #[error("cannot reach {addr}")]
    Connect {
        addr: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("cannot open a tunnel to {addr}")]
    Tunnel {
        addr: std::net::SocketAddr,
        source: karst_hbone::OpenError,
    },
}

impl OutboundError {
    /// Whether the mesh does not know what was dialled, and lets pods reach nothing else.
    pub(crate) fn is_unregistered(&self) -> bool {
        matches!(
            self,
            Self::Refused(karst_path::outbound::Refused::NotInRegistry { .. })
        )
    }

    /// Istio's response flag for it.
    pub(crate) fn flag(&self) -> Flag {
        match self {
            Self::NotCaptured => Flag::Deny,
            Self::UnknownSource(_) => Flag::IdentityError,
            Self::Tunnel { source, .. } => source.flag(),
            Self::Refused(_) | Self::Connect { .. } => Flag::Connect,
        }
    }
}

/// Why an inbound connection is refused; HBONE peers see the status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error("workload {0} is not known to this node's agent yet")]
    UnknownWorkload(WorkloadUid),
    #[error("the request is for {asked}, which is not an address of this pod")]
    NotOurs { asked: String },
    #[error("the request names {asked}, which is no service port of this pod")]
    NoSuchService { asked: String },
    #[error("port {port} belongs to the proxy itself")]
    Reserved { port: u16 },
    /// The reason is the whole explanation, which begins with the verdict.
    #[error("{reason}")]
    Denied { reason: String },
    #[error("the application does not accept connections at {addr}")]
    Application {
        addr: std::net::SocketAddr,
        source: io::Error,
    },
}

impl InboundError {
    /// Status of the CONNECT response.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::NotOurs { .. } => 400,
            Self::Denied { .. } => 401,
            Self::UnknownWorkload(_)
            | Self::NoSuchService { .. }
            | Self::Reserved { .. }
            | Self::Application { .. } => 503,
        }
    }

    pub(crate) fn flag(&self) -> Flag {
        match self {
            Self::Denied { .. } => Flag::Deny,
            Self::UnknownWorkload(_) => Flag::IdentityError,
            _ => Flag::Connect,
        }
    }
}
