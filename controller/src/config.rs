//! What the controller is told at start: flags, each with an environment variable, all mistakes collected before
//! failing. `--print-config` shows the outcome as JSON and ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use karst_ca::{AuthorityConfig, authority::LEAF_TTL, authorize::MeshTrust, token::AgentAccount};
use karst_index::IndexConfig;
use karst_model::{
    enrollment::Generation,
    identity::{DEFAULT_TRUST_DOMAIN, TrustDomain},
    traffic::Secret,
};
use serde::Serialize;

use crate::{deploy::Settings, jwks::JwksConfig};

/// Less, and a controller that is away for a moment would leave the mesh without certificates.
const CERTIFICATE_TTL_SECONDS_MIN: u64 = 60;

/// Control plane of the Karst mesh.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "karst-controller",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: Config,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a join token for a node; it is printed alone on standard output.
    Token(TokenArgs),
}

/// Arguments of `token`.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// What to do with the token; only `create` is known, and may be left out.
    #[arg(value_parser = ["create"], default_value = "create", hide_default_value = true)]
    pub action: String,
    /// The node that may join with it, once.
    #[arg(long)]
    pub node: String,
    /// The waypoint that the token is for, as NAMESPACE/GATEWAY: it gets that identity and no other.
    #[arg(long)]
    pub waypoint: Option<AgentAccount>,
    /// Minutes that it can be used for.
    #[arg(long, default_value_t = 60)]
    pub ttl_minutes: u64,
    #[command(flatten)]
    pub state: StateArgs,
}

/// Where the controller keeps its state, and whose it is.
#[derive(Clone, Debug, Args, Serialize)]
pub struct StateArgs {
    /// Directory for the certificate authority, token keys and what was captured. Whoever reads it is the mesh.
    #[arg(
        long,
        env = "KARST_STATE_DIR",
        default_value = "/var/lib/karst/controller"
    )]
    pub state_dir: PathBuf,
    /// Trust domain of the identities that are issued.
    #[arg(long, env = "TRUST_DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: String,
}

/// How to serve.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Config {
    /// Read objects from the Kubernetes API: the cluster that we run in, or the one that KUBECONFIG names.
    #[arg(long, env = "KARST_KUBERNETES", conflicts_with = "files")]
    pub kubernetes: bool,
    /// Directory of Kubernetes YAML, watched.
    #[arg(long, env = "KARST_FILES", required_unless_present = "kubernetes")]
    #[serde(rename = "files")]
    pub files: Option<PathBuf>,
    /// With --kubernetes: namespace that Karst is installed in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "karst-system")]
    pub namespace: String,
    /// With --kubernetes: name of this replica, for the leader's lease.
    #[arg(long, env = "POD_NAME", default_value_t = host_name())]
    pub replica: String,
    /// Address of discovery, certificates and enrolment (TLS).
    #[arg(long, env = "KARST_LISTEN", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15012)))]
    pub listen: SocketAddr,
    /// With --kubernetes: address that the API server asks about objects at (TLS).
    #[arg(long, env = "KARST_WEBHOOK", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15017)))]
    pub webhook: SocketAddr,
    /// Address of metrics, readiness and debug pages. They show configuration: keep it on loopback or a trusted net.
    #[arg(long, env = "KARST_ADMIN", default_value_t = SocketAddr::from(([127, 0, 0, 1], 15014)))]
    pub admin: SocketAddr,
    /// With --kubernetes: port of the read API (`karst status` and its sisters) on the pod's loopback. The pod's container
    /// port `http-reads` says it to them.
    #[arg(long, env = "KARST_READ_PORT", default_value_t = 15016)]
    pub read_port: u16,
    /// Further DNS name or IP address in the serving certificate; may be repeated. Local addresses are in it anyway.
    #[arg(
        long = "server-name",
        env = "KARST_SERVER_NAMES",
        value_delimiter = ','
    )]
    pub server_names: Vec<String>,
    /// Directory of public keys (PEM or JWKS) whose tokens are believed beside our own.
    #[arg(long, env = "KARST_TOKEN_KEYS")]
    pub token_keys: Option<PathBuf>,
    /// Name of the cluster, first part of workload UIDs.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Domain of service names.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Namespace whose policies hold for the whole mesh. Default is --namespace with --kubernetes, else istio-system.
    #[arg(long, env = "ROOT_NAMESPACE")]
    pub root_namespace: Option<String>,
    /// Seconds between fetches of the keys of token issuers (RequestAuthentication).
    #[arg(long, env = "KARST_JWKS_REFRESH_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub jwks_refresh_seconds: u64,
    /// Fetch keys of token issuers also from private, loopback and link-local addresses: of issuers inside the cluster.
    /// Whoever may write a RequestAuthentication can then have the controller ask any of them.
    #[arg(long, env = "KARST_JWKS_ALLOW_PRIVATE")]
    pub jwks_allow_private: bool,
    /// File of PEM certificates that servers of keys are verified by, beside the roots of the system.
    #[arg(long, env = "KARST_JWKS_ROOTS")]
    pub jwks_roots: Option<PathBuf>,
    /// With --kubernetes: image of waypoints.
    #[arg(long, env = "KARST_WAYPOINT_IMAGE", default_value = concat!("karst.test/waypoint:", env!("CARGO_PKG_VERSION")))]
    pub waypoint_image: String,
    /// With --kubernetes: when nodes pull it: Always, IfNotPresent or Never.
    #[arg(
        long,
        env = "KARST_WAYPOINT_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    pub waypoint_image_pull_policy: String,
    /// Life of certificates in seconds, the controller's own included: agents ask for new ones at half of it.
    #[arg(
        long,
        env = "KARST_CERTIFICATE_TTL_SECONDS",
        default_value_t = LEAF_TTL.as_secs(),
        value_parser = clap::value_parser!(u64).range(CERTIFICATE_TTL_SECONDS_MIN..)
    )]
    pub certificate_ttl_seconds: u64,
    /// Seconds that streams get to finish after SIGTERM.
    #[arg(long, env = "KARST_DRAIN_SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,
    /// Show the outcome of flags, variables and defaults as JSON, and end.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub state: StateArgs,
}

/// Every mistake of the flags, one per line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// How keys of token issuers are fetched.
    ///
    /// # Errors
    /// The file of roots cannot be read.
    pub fn jwks(&self) -> anyhow::Result<JwksConfig> {
        let extra = match &self.jwks_roots {
            None => None,
            Some(path) => {
                let read = fs::read_to_string(path);
                Some(read.with_context(|| format!("cannot read --jwks-roots {}", path.display()))?)
            }
        };
        Ok(JwksConfig {
            refresh: Duration::from_secs(self.jwks_refresh_seconds),
            allow_private: self.jwks_allow_private,
            extra_roots: extra.map(Into::into),
        })
    }

    /// Checks what clap cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut mistakes = Vec::new();
        if self.listen == self.admin {
            mistakes.push(format!("--listen and --admin are both {}", self.listen));
        }
        let names = [
            ("--trust-domain", &self.state.trust_domain),
            ("--cluster-domain", &self.cluster_domain),
            ("--cluster-id", &self.cluster_id),
            ("--namespace", &self.namespace),
            ("--root-namespace", &self.root_namespace()),
        ];
        for (flag, value) in names {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if value.is_empty() || !value.chars().all(plain) {
                mistakes.push(format!(
                    "{flag} {value:?}: expected letters, digits, '-', '.' and '_'"
                ));
            }
        }
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(mistakes))
        }
    }

    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.state.trust_domain.as_str().into())
    }

    /// The certificate authority whose state is in the folder, or with --kubernetes in a Secret. It signs in `trust`.
    pub fn authority(&self, trust: &MeshTrust) -> AuthorityConfig {
        let trust_domain = self.trust_domain();
        let cfg = match self.kubernetes {
            true => AuthorityConfig::kept_elsewhere(trust_domain),
            false => AuthorityConfig::new(&self.state.state_dir, trust_domain),
        };
        AuthorityConfig {
            trust: trust.clone(),
            leaf_ttl_max: Duration::from_secs(self.certificate_ttl_seconds),
            ..cfg
        }
    }

    pub fn root_namespace(&self) -> String {
        let default = match self.kubernetes {
            true => self.namespace.as_str(),
            false => "istio-system",
        };
        self.root_namespace
            .clone()
            .unwrap_or_else(|| default.to_owned())
    }

    /// The service account that agents run as.
    /// How waypoints are deployed: as the controller itself is told to log, and with the names of its mesh.
    pub fn waypoint_settings(&self) -> Settings {
        let passed = ["RUST_LOG", "LOG_FORMAT", "NETWORK"];
        let passed = passed.into_iter().filter_map(|name| {
            let value = env::var(name).ok().filter(|value| !value.is_empty())?;
            Some((name.to_owned(), value))
        });
        let own = [
            ("TRUST_DOMAIN", &self.state.trust_domain),
            ("CLUSTER_DOMAIN", &self.cluster_domain),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.clone()));
        Settings {
            image: self.waypoint_image.clone(),
            image_pull_policy: self.waypoint_image_pull_policy.clone(),
            controller: format!(
                "https://karst-controller.{}.svc:{}",
                self.namespace,
                self.listen.port()
            ),
            env: own.into_iter().chain(passed).collect(),
        }
    }

    pub fn agent_account(&self) -> AgentAccount {
        match self.kubernetes {
            true => AgentAccount {
                namespace: self.namespace.clone(),
                ..AgentAccount::default()
            },
            false => AgentAccount::default(),
        }
    }

    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    pub fn index(&self) -> IndexConfig {
        IndexConfig {
            cluster_id: self.cluster_id.as_str().into(),
            trust_domain: self.trust_domain(),
            cluster_domain: self.cluster_domain.as_str().into(),
            root_namespace: self.root_namespace().into(),
            install_namespace: self.namespace.as_str().into(),
            excluded_namespaces: self.excluded_namespaces(),
            first_generation: generation_of_this_start(),
            environment: environment(),
        }
    }

    /// Kubernetes' own namespace and ours: their pods are never enrolled.
    fn excluded_namespaces(&self) -> BTreeSet<Arc<str>> {
        let ours = self.kubernetes.then_some(self.namespace.as_str());
        let names = std::iter::once("kube-system").chain(ours);
        names.map(Arc::from).collect()
    }

    /// The names and addresses that agents may dial.
    pub fn serving_names(&self) -> Vec<String> {
        let service = format!("karst-controller.{}", self.namespace);
        let mut names = BTreeSet::from([
            "localhost".to_owned(),
            "karst-controller".to_owned(),
            format!("{service}.svc"),
            format!("{service}.svc.{}", self.cluster_domain),
            service,
        ]);
        match self.listen.ip() {
            ip if ip.is_unspecified() => {
                names.extend(local_addresses().iter().map(ToString::to_string))
            }
            ip => drop(names.insert(ip.to_string())),
        }
        names.extend(self.server_names.iter().cloned());
        names.into_iter().collect()
    }
}

/// Name of this machine or pod; empty where the kernel does not say.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Most local addresses that go into the certificate.
const LOCAL_ADDRESSES_MAX: usize = 32;

/// What the mesh configuration may name by `envName`, each hidden from logs; what is no text is not there.
fn environment() -> BTreeMap<Arc<str>, Secret> {
    let all = env::vars_os().filter_map(|(name, value)| {
        let value = value.into_string().ok()?;
        Some((name.to_str()?.into(), Secret::new(value.trim_end())))
    });
    all.collect()
}

/// Microseconds since the epoch: above what any earlier start has counted up to, one for each change.
fn generation_of_this_start() -> Generation {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let micros = now.map_or(0, |since| since.as_micros());
    Generation(u64::try_from(micros).unwrap_or_default())
}

/// The addresses of this network namespace, from /proc; none where that cannot be read.
fn local_addresses() -> BTreeSet<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    local_v4(&v4)
        .chain(local_v6(&v6))
        .take(LOCAL_ADDRESSES_MAX)
        .collect()
}

/// In `fib_trie` a local address is a leaf line (`|-- 10.0.0.1`) followed by one that says `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let lines = fib_trie.lines().zip(fib_trie.lines().skip(1));
    let local = lines.filter(|(_, next)| next.trim() == "/32 host LOCAL");
    local.filter_map(|(leaf, _)| leaf.trim().strip_prefix("|-- ")?.parse().ok())
}

/// `if_inet6` begins each line with the address as 32 hex digits. Link-local ones are left out.
fn local_v6(if_inet6: &str) -> impl Iterator<Item = IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    let all = if_inet6.lines().filter_map(address).map(Ipv6Addr::from);
    all.filter(|ip| !ip.is_unicast_link_local())
        .map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_as_the_kernel_writes_them() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.1\n        /32 host LOCAL\n     |-- 10.1.0.255\n        /32 link BROADCAST\n";
        assert_eq!(
            local_v4(trie).collect::<Vec<_>>(),
            ["10.1.0.1".parse::<IpAddr>().unwrap()]
        );
        let inet6 = "fd000000000000000000000000000001 02 40 00 80 eth0\nfe800000000000000000000000000001 02 40 20 80 eth0\n";
        assert_eq!(
            local_v6(inet6).collect::<Vec<_>>(),
            ["fd00::1".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn mistakes_are_told_together() {
        let cli = Cli::parse_from([
            "karst-controller",
            "--files",
            "/x",
            "--trust-domain",
            "a b",
            "--cluster-id",
            "",
            "--admin",
            "[::]:15012",
        ]);
        let ConfigError(mistakes) = cli.config.check().unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }

    #[test]
    fn objects_come_from_files_or_from_kubernetes() {
        let parse =
            |flags: &[&str]| Cli::try_parse_from(std::iter::once(&"karst-controller").chain(flags));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--files", "/x", "--kubernetes"]).is_err());
        let cluster = parse(&["--kubernetes", "--namespace", "mesh"]).unwrap();
        assert_eq!(cluster.config.root_namespace(), "mesh");
        assert!(cluster.config.index().excluded_namespaces.contains("mesh"));
        let files = parse(&["--files", "/x"]).unwrap();
        assert_eq!(files.config.root_namespace(), "istio-system");
    }

    #[test]
    fn a_token_needs_no_files() {
        let cli = Cli::parse_from([
            "karst-controller",
            "token",
            "--node",
            "n1",
            "--state-dir",
            "/s",
        ]);
        assert!(matches!(cli.command, Some(Command::Token(args)) if args.node == "n1"));
        let cli = Cli::parse_from(["karst-controller", "token", "create", "--node", "n1"]);
        assert!(cli.command.is_some());
    }
}
