//! What the waypoint is told at start: flags, each with an environment variable, all mistakes collected before failing.
//!
//! `--print-config` shows the outcome as JSON and ends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use karst_link::LinkConfig;
use karst_model::{
    addr::Network,
    identity::{DEFAULT_TRUST_DOMAIN, SpiffeId, TrustDomain, TrustDomains},
    name::{ServiceKey, WorkloadUid},
    protocol::HBONE_PORT,
};
use serde::Serialize;

/// L7 proxy of the Karst mesh.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "karst-waypoint", version, about)]
pub struct Config {
    /// Name of the Gateway object that this waypoint stands for.
    #[arg(long, alias = "gateway", env = "KARST_GATEWAY")]
    pub gateway_name: String,
    /// Namespace of the Gateway object and of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Service account of this pod; the name of the Gateway where unset.
    #[arg(long, env = "SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// Host name of the waypoint's own service, by which services name it; made of the Gateway's name where unset.
    #[arg(long, env = "KARST_SERVICE_HOST")]
    pub service_host: Option<String>,
    /// Name of this pod; the name of the Gateway where unset.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Address of this pod.
    #[arg(long, env = "POD_IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub pod_ip: IpAddr,
    /// Name of the node that this pod runs on; also the name to join as with --join-token-file.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Address of the controller: https://HOST:PORT.
    #[arg(
        long,
        alias = "controller-address",
        env = "KARST_CONTROLLER",
        default_value = "https://karst-controller.karst-system.svc:15012"
    )]
    pub controller: String,
    /// Name that the controller's certificate must hold; the host of --controller where unset.
    #[arg(long, env = "KARST_CONTROLLER_NAME")]
    pub controller_name: Option<String>,
    /// File that holds the waypoint's token for the controller; read again at each use.
    #[arg(
        long,
        env = "KARST_TOKEN_FILE",
        requires = "root_cert_file",
        conflicts_with = "join_token_file"
    )]
    pub token_file: Option<PathBuf>,
    /// File that holds the mesh's roots, one or more certificates as PEM; read again when it changes.
    #[arg(
        long,
        alias = "root-cert",
        env = "KARST_ROOT_CERT",
        requires = "token_file"
    )]
    pub root_cert_file: Option<PathBuf>,
    /// File that holds a join token for the first contact with the controller, instead of --token-file.
    #[arg(long, env = "KARST_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Directory for the certificate (should be a tmpfs) and the last known state, so that a restart needs no
    /// controller; nothing is kept where unset.
    #[arg(long, env = "KARST_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Domain of cluster names.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Network of this pod; empty is the default network.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Address that HBONE is served on; all where unset.
    #[arg(long, env = "KARST_LISTEN_ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    pub listen_address: IpAddr,
    /// Port that HBONE is served on.
    #[arg(long, env = "KARST_HBONE_PORT", default_value_t = HBONE_PORT)]
    pub hbone_port: u16,
    /// Address of the admin endpoint (config dump, log levels). Loopback only.
    #[arg(long, env = "KARST_ADMIN", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))]
    pub admin: SocketAddr,
    /// Port for Prometheus on all addresses.
    #[arg(long, env = "KARST_METRICS_PORT", default_value_t = 15020)]
    pub metrics_port: u16,
    /// Port of the readiness endpoint on all addresses.
    #[arg(long, env = "KARST_READY_PORT", default_value_t = 15021)]
    pub ready_port: u16,
    /// Data-path threads; 0 means one for each processor.
    #[arg(long, env = "KARST_WORKER_THREADS", default_value_t = 0)]
    pub worker_threads: usize,
    /// HBONE connections from one peer address that are served at once.
    #[arg(long, env = "KARST_CONNECTIONS_PER_PEER", default_value_t = karst_hbone::server::peers::CONNECTIONS_MAX)]
    pub connections_per_peer: usize,
    /// Client connections (streams of all tunnels) at once.
    #[arg(long, env = "KARST_MAX_CONNECTIONS", default_value_t = 100_000)]
    pub max_connections: usize,
    /// Requests in flight at once; further ones are answered 503. One service gets at most half of them.
    #[arg(long, env = "KARST_MAX_REQUESTS", default_value_t = 20_000)]
    pub max_requests: usize,
    /// Proxies in front of the mesh whose entry in `x-forwarded-for` is believed.
    #[arg(long, env = "KARST_TRUSTED_PROXIES", default_value_t = 0)]
    pub trusted_proxies: usize,
    /// Whether clients are asked to connect again while this replica has more requests than the others.
    #[arg(long, env = "KARST_SHARE_CONNECTIONS", default_value_t = true, action = clap::ArgAction::Set)]
    pub share_connections: bool,
    /// Resolvers for host names of external endpoints, address and port each; those of /etc/resolv.conf where unset.
    #[arg(long, env = "KARST_DNS", value_delimiter = ',')]
    pub dns: Vec<SocketAddr>,
    /// Seconds that connections get to finish after SIGTERM.
    #[arg(long, env = "KARST_DRAIN_SECONDS", default_value_t = 25)]
    pub drain_seconds: u64,
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: String,
    /// Log filter, as tracing's `EnvFilter` reads it; `access=warn` leaves out what went well.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_filter: String,
    /// Print the resulting configuration as JSON and end.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

/// Every mistake found, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// The names of the mesh while no controller has said others.
    pub fn trust_domains(&self) -> TrustDomains {
        TrustDomains::only(TrustDomain(self.trust_domain.as_str().into()))
    }

    /// Checks what clap cannot, and reports all mistakes at once.
    ///
    /// # Errors
    /// All mistakes.
    pub fn validate(&self) -> Result<(), ConfigError> {
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
        if self.gateway_name.is_empty() || self.namespace.is_empty() {
            mistakes.push("--gateway-name and --namespace must not be empty".to_owned());
        }
        if self.token_file.is_none() && self.join_token_file.is_none() {
            mistakes
                .push("give --token-file and --root-cert-file, or --join-token-file".to_owned());
        }
        if self.join_token_file.is_some() && self.run_dir.is_none() {
            mistakes.push("--join-token-file works once: it needs --run-dir".to_owned());
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

    /// The identity that this waypoint has.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId {
            trust_domain: TrustDomain(self.trust_domain.as_str().into()),
            namespace: self.namespace.as_str().into(),
            service_account: self
                .service_account
                .as_deref()
                .unwrap_or(&self.gateway_name)
                .into(),
        }
    }

    /// The waypoint's own service: services name it as the way to them.
    pub fn own_service(&self) -> ServiceKey {
        let host = self.service_host.clone().unwrap_or_else(|| {
            format!(
                "{}.{}.svc.{}",
                self.gateway_name, self.namespace, self.cluster_domain
            )
        });
        ServiceKey {
            namespace: self.namespace.as_str().into(),
            hostname: host.into(),
        }
    }

    /// How discovery names this waypoint.
    pub fn pod_name(&self) -> &str {
        self.pod_name.as_deref().unwrap_or(&self.gateway_name)
    }

    /// The source of this waypoint's own tunnels.
    pub fn workload_uid(&self) -> WorkloadUid {
        WorkloadUid(format!("waypoint/{}/{}", self.namespace, self.pod_name()).into())
    }

    /// How the controller is reached.
    pub fn link(&self) -> LinkConfig {
        LinkConfig {
            controller: self.controller.clone(),
            controller_name: self.controller_name.clone(),
            token_file: self.token_file.clone(),
            root_cert_file: self.root_cert_file.clone(),
            join_token_file: self.join_token_file.clone(),
            node: self.node.clone(),
            run_dir: self.run_dir.clone().unwrap_or_default(),
        }
    }

    /// Number of data-path threads.
    pub fn workers(&self) -> usize {
        if self.worker_threads > 0 {
            return self.worker_threads;
        }
        std::thread::available_parallelism().map_or(2, usize::from)
    }

    pub fn own_network(&self) -> Network {
        Network(self.network.as_str().into())
    }

    pub fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_together() {
        let cfg = Config::parse_from([
            "karst-waypoint",
            "--gateway",
            "waypoint",
            "--namespace",
            "shop",
            "--admin",
            "0.0.0.0:15000",
            "--controller",
            "http://x",
            "--log-format",
            "xml",
        ]);
        let ConfigError(mistakes) = cfg.validate().unwrap_err();
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
    }

    #[test]
    fn what_the_gateway_is_called_names_the_rest() {
        let cfg = Config::parse_from([
            "karst-waypoint",
            "--gateway",
            "waypoint",
            "--namespace",
            "shop",
        ]);
        assert_eq!(
            cfg.identity().to_string(),
            "spiffe://cluster.local/ns/shop/sa/waypoint"
        );
        assert_eq!(
            &*cfg.own_service().hostname,
            "waypoint.shop.svc.cluster.local"
        );
    }
}
