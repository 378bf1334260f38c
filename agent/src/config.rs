//! What the agent is told at start: flags, each with an environment variable, all mistakes collected before failing.
//!
//! `--print-config` shows the outcome as JSON and ends.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use karst_ebpf_loader::MapSizes;
use karst_link::LinkConfig;
use karst_model::{
    addr::Network,
    identity::{DEFAULT_TRUST_DOMAIN, TrustDomain, TrustDomains},
};
use serde::Serialize;

/// Per-node proxy of the Karst mesh.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "karst-agent", version, about)]
pub(crate) struct Config {
    /// Name of this node, as the Node object has it.
    #[arg(
        long,
        env = "NODE_NAME",
        required_unless_present_any = ["remove", "self_test", "node_check", "dial"],
        default_value = ""
    )]
    pub(crate) node: String,
    /// Directory for the CNI socket, keys (should be a tmpfs) and the last known state.
    #[arg(long, env = "KARST_RUN_DIR", default_value = "/run/karst")]
    pub(crate) run_dir: PathBuf,
    /// Address of the controller: https://HOST:PORT.
    #[arg(
        long,
        env = "KARST_CONTROLLER",
        default_value = "https://karst-controller.karst-system.svc:15012"
    )]
    pub(crate) controller: String,
    /// Name that the controller's certificate must hold; the host of --controller where unset.
    #[arg(long, env = "KARST_CONTROLLER_NAME")]
    pub(crate) controller_name: Option<String>,
    /// File that holds the join token for the first contact with the controller.
    #[arg(long, env = "KARST_JOIN_TOKEN_FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// File that holds the agent's service-account token (in Kubernetes, instead of a join token).
    #[arg(
        long,
        env = "KARST_TOKEN_FILE",
        requires = "root_cert_file",
        conflicts_with = "join_token_file"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// File that holds the mesh's roots, one or more certificates as PEM; read again when it changes.
    #[arg(long, env = "KARST_ROOT_CERT_FILE", requires = "token_file")]
    pub(crate) root_cert_file: Option<PathBuf>,
    /// Name of the agent's pod; the node's name where unset.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Namespace in which the mesh is installed: its own pods are never captured and never wait for the agent.
    #[arg(long, env = "POD_NAMESPACE", default_value = "karst-system")]
    pub(crate) pod_namespace: String,
    /// Directory in a BPF file system for this node's pins.
    #[arg(long, env = "KARST_PIN_DIR", default_value = "/sys/fs/bpf/karst")]
    pub(crate) pin_dir: PathBuf,
    /// Root of the cgroup v2 hierarchy; found in /proc/self/mountinfo where unset.
    #[arg(long, env = "KARST_CGROUP_ROOT")]
    pub(crate) cgroup_root: Option<PathBuf>,
    /// A cgroup (path below the cgroup v2 root) in which the kubelet runs; may be given several times. With
    /// --host-ns-dir the kubelet is found by itself where none is named.
    #[arg(long, env = "KARST_KUBELET_CGROUP", value_delimiter = ',')]
    pub(crate) kubelet_cgroup: Vec<PathBuf>,
    /// Directory with the namespaces of a process of the node (/proc/1/ns), where the agent runs in a pod of its own; the
    /// agent's own namespaces are the node's where unset.
    #[arg(long, env = "KARST_HOST_NS_DIR")]
    pub(crate) host_ns_dir: Option<PathBuf>,
    /// Keep karst-cni in the node's CNI chain.
    #[arg(long, env = "KARST_INSTALL_CNI")]
    pub(crate) install_cni: bool,
    /// Where the node's file system is mounted, for the CNI directories.
    #[arg(long, env = "KARST_HOST_ROOT", default_value = "/")]
    pub(crate) host_root: PathBuf,
    /// The node's directory of CNI configurations, below --host-root; found by itself where unset.
    #[arg(long, env = "KARST_CNI_CONF_DIR")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// The node's directory of CNI executables, below --host-root; found by itself where unset.
    #[arg(long, env = "KARST_CNI_BIN_DIR")]
    pub(crate) cni_bin_dir: Option<PathBuf>,
    /// The karst-cni to install; the one beside the agent where unset.
    #[arg(long, env = "KARST_CNI_SOURCE")]
    pub(crate) cni_source: Option<PathBuf>,
    /// Address of the cluster's DNS server, for names outside the mesh; the agent's own resolver where unset.
    #[arg(long, env = "KARST_CLUSTER_DNS")]
    pub(crate) cluster_dns: Option<IpAddr>,
    /// Domain of cluster names.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Trust domain of the identities that are issued here.
    #[arg(long, env = "TRUST_DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    pub(crate) trust_domain: String,
    /// Network of this node's pods; empty is the default network.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub(crate) network: String,
    /// Address of the admin endpoint (config dump, log levels). Loopback only.
    #[arg(long, env = "KARST_ADMIN", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))]
    pub(crate) admin: SocketAddr,
    /// Port for Prometheus on all addresses of the node.
    #[arg(long, env = "KARST_METRICS_PORT", default_value_t = 15020)]
    pub(crate) metrics_port: u16,
    /// Port of the readiness endpoint on all addresses of the node.
    #[arg(long, env = "KARST_READY_PORT", default_value_t = 15021)]
    pub(crate) ready_port: u16,
    /// Data-path threads; 0 means a quarter of the processors, at least two.
    #[arg(long, env = "KARST_WORKER_THREADS", default_value_t = 0)]
    pub(crate) worker_threads: usize,
    /// HBONE connections from one peer address that are served at once; karst_peer_connections_refused counts further ones.
    #[arg(long, env = "KARST_CONNECTIONS_PER_PEER", default_value_t = karst_hbone::server::peers::CONNECTIONS_MAX)]
    pub(crate) connections_per_peer: usize,
    /// Pods of this node that can be enrolled at once. This and the next two size maps that outlive the agent: a change
    /// counts after the node's next start.
    #[arg(long, env = "KARST_MAX_PODS", default_value_t = MapSizes::default().pods, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) max_pods: u32,
    /// Addresses of the mesh (pods and services) that the kernel tells apart from others by itself. With more,
    /// everything that enrolled pods dial goes through the agent; karst_destinations_without_room counts them.
    #[arg(long, env = "KARST_MAX_DESTINATIONS", default_value_t = MapSizes::default().destinations, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(crate) max_destinations: u32,
    /// Captured connections of this node that may wait for the agent at once; further ones are refused.
    #[arg(long, env = "KARST_MAX_PENDING", default_value_t = MapSizes::default().pending, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) max_pending: u32,
    /// Seconds that connections get to finish after SIGTERM.
    #[arg(long, env = "KARST_DRAIN_SECONDS", default_value_t = 25)]
    pub(crate) drain_seconds: u64,
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: String,
    /// Log filter, as tracing's `EnvFilter` reads it.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub(crate) log_filter: String,
    /// Print the resulting configuration as JSON and end.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) print_config: bool,
    /// Remove everything that an agent with these flags left on the node (in the kernel; with --install-cni in the CNI
    /// chain; in the run directory), and end. Nothing left is success.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) remove: bool,
    /// Look whether this node can carry Karst, print one finding a line as JSON, then answer --dial of other nodes on
    /// port 15008 until killed. `karst check` runs it.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) node_check: bool,
    /// Send bytes to a --node-check at these addresses and back, print one finding a line as JSON and end.
    #[arg(long, value_delimiter = ',', hide = true)]
    #[serde(skip)]
    pub(crate) dial: Vec<SocketAddr>,
    /// Test every kernel feature that Karst needs in a throw-away namespace, print the result and end.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) self_test: bool,
}

/// Every mistake found, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub(crate) struct ConfigError(pub Vec<String>);

impl Config {
    /// The names of the mesh while no controller has said others.
    pub(crate) fn trust_domains(&self) -> TrustDomains {
        TrustDomains::only(TrustDomain(self.trust_domain.as_str().into()))
    }

    /// Checks what clap cannot, and reports all mistakes at once.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let mut mistakes = Vec::new();
        if !self.admin.ip().is_loopback() {
            mistakes.push(format!(
                "--admin {}: must be a loopback address, the endpoint has no authentication",
                self.admin
            ));
        }
        if !self.controller.starts_with("https://") {
            mistakes.push(format!(
                "--controller {}: must start with https://, tokens travel only over TLS",
                self.controller
            ));
        }
        if !matches!(self.log_format.as_str(), "text" | "json") {
            mistakes.push(format!(
                "--log-format {}: expected text or json",
                self.log_format
            ));
        }
        if self.cluster_domain.is_empty() || self.cluster_domain.starts_with('.') {
            mistakes.push(format!(
                "--cluster-domain {:?}: expected a domain such as cluster.local",
                self.cluster_domain
            ));
        }
        if self.drain_seconds > 3600 {
            mistakes.push(format!(
                "--drain-seconds {}: expected at most 3600",
                self.drain_seconds
            ));
        }
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(mistakes))
        }
    }

    /// How discovery names this agent.
    pub(crate) fn pod_name(&self) -> &str {
        self.pod_name.as_deref().unwrap_or(&self.node)
    }

    /// Number of data-path threads.
    pub(crate) fn workers(&self) -> usize {
        if self.worker_threads > 0 {
            return self.worker_threads;
        }
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        (processors / 4).max(2)
    }

    /// How large the kernel's maps are made.
    pub(crate) fn map_sizes(&self) -> MapSizes {
        MapSizes {
            pods: self.max_pods,
            destinations: self.max_destinations,
            pending: self.max_pending,
            ..MapSizes::default()
        }
    }

    /// How the controller is reached.
    pub(crate) fn link(&self) -> LinkConfig {
        LinkConfig {
            controller: self.controller.clone(),
            controller_name: self.controller_name.clone(),
            token_file: self.token_file.clone(),
            root_cert_file: self.root_cert_file.clone(),
            join_token_file: self.join_token_file.clone(),
            node: self.node.clone(),
            run_dir: self.run_dir.clone(),
        }
    }

    pub(crate) fn own_network(&self) -> Network {
        Network(self.network.as_str().into())
    }

    pub(crate) fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_together() {
        let cfg = Config::parse_from([
            "karst-agent",
            "--node",
            "n1",
            "--admin",
            "0.0.0.0:15000",
            "--controller",
            "http://x",
            "--log-format",
            "xml",
        ]);
        let ConfigError(mistakes) = cfg.validate().unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }
}
