//! What `karst lab status` shows, and what the daemon and its callers say to each other.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A lab at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// Whether the mesh runs, or only pods (`--no-mesh`).
    pub mesh: bool,
    pub controller: Option<ProcessStatus>,
    pub nodes: Vec<NodeStatus>,
    pub pods: Vec<PodStatus>,
    pub services: Vec<ServiceStatus>,
    /// What is wrong with the YAML, each as `file:line:column: ...`.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    /// Name of its network namespace, as `ip netns` shows it.
    pub netns: String,
    pub addresses: Vec<IpAddr>,
    pub agent: Option<ProcessStatus>,
}

/// The controller, or an agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// `None` while it does not run.
    pub pid: Option<u32>,
    pub restarts: u32,
    /// How it last ended, empty before.
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodStatus {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: String,
    pub netns: String,
    pub addresses: Vec<IpAddr>,
    pub phase: Phase,
    pub ready: bool,
    pub restarts: u32,
    /// Process ids of its containers, in the order of the YAML.
    pub pids: Vec<u32>,
    /// The cgroup of the whole pod.
    pub cgroup: String,
    pub user: u32,
    /// Why it is not ready.
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<String>,
}

/// A pod's phase as Kubernetes names it, with the time before its containers run told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    ContainerCreating,
    Running,
    Succeeded,
    Failed,
    Terminating,
}

impl Phase {
    /// As `status.phase` of a Pod has it.
    pub(crate) fn kubernetes(self) -> &'static str {
        match self {
            Self::ContainerCreating => "Pending",
            Self::Running | Self::Terminating => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

impl PodStatus {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One line to the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub(crate) enum Request {
    /// Make it as the directory says. `wait_seconds` for pods to be ready; 0 does not wait.
    Apply {
        dir: std::path::PathBuf,
        wait_seconds: u64,
    },
    Status,
    /// Kill -9; with `hold` it stays dead until it is restarted.
    KillAgent {
        node: String,
        hold: bool,
    },
    /// SIGTERM and start again, or start a held one.
    RestartAgent {
        node: String,
    },
    /// The same for the controller.
    KillController {
        hold: bool,
    },
    RestartController,
}

/// Lines from the daemon; the last one is `Done` or `Failed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Progress(String),
    Done(Box<Status>),
    Failed(String),
}
