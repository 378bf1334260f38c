//! What `karst-cni` and the agent say to each other over the agent's Unix socket: one JSON line each way.
//!
//! Both are installed from one release; the version is there so that a mixture says so instead of misbehaving.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// What the container runtime wants of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    Add,
    Del,
    Check,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub command: Command,
    /// Path of the pod's network namespace; may be empty with DEL.
    #[serde(default)]
    pub netns: String,
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    /// Addresses that earlier plugins of the chain gave the pod.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Name of the host's end of the pod's link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_veth: Option<String>,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub ok: bool,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub retry: bool,
}

impl Answer {
    pub fn ok() -> Self {
        Self {
            ok: true,
            error: None,
            retry: false,
        }
    }

    pub fn failed(error: String, retry: bool) -> Self {
        Self {
            ok: false,
            error: Some(error),
            retry,
        }
    }
}

/// File name, in the agent's run folder, of [`KnownNamespaces`].
pub const KNOWN_NAMESPACES_FILE: &str = "cni-namespaces.json";

/// What the agent leaves on disk for the plugin: a new pod of a namespace that is listed here starts even while the
/// agent is away. A namespace is listed only when its label does not enrol it and no pod in it opts in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNamespaces {
    pub version: u32,
    pub not_enrolled: Vec<String>,
}
