//! One call as the container runtime makes it: variables of the environment, JSON on standard input.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::CniError;

/// Versions of the CNI specification that we speak.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Where the agent's socket and files are, where the configuration does not say.
const RUN_DIR: &str = "/run/karst";
/// How long a pod's start waits for an agent that is away, where the configuration does not say.
const AGENT_WAIT_SECONDS: u64 = 10;

/// The environment of a call. Empty variables count as unset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn required(&self, name: &str) -> Result<&str, CniError> {
        self.variable(name)
            .ok_or_else(|| CniError::Environment(format!("{name} is missing")))
    }

    /// One of the `KEY=value;KEY=value` pairs of `CNI_ARGS`.
    pub(crate) fn argument(&self, name: &str) -> Option<&str> {
        let pairs = self
            .variable("CNI_ARGS")?
            .split(';')
            .filter_map(|pair| pair.split_once('='));
        pairs
            .into_iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        Self {
            variables: variables.into_iter().collect(),
        }
    }
}

/// The configuration of a call. Fields of other plugins and of later versions are left alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) cni_version: String,
    /// Folder of the agent's socket and files.
    #[serde(default = "run_dir")]
    pub(crate) run_dir: PathBuf,
    /// Namespaces whose pods are never enrolled and never wait.
    #[serde(default = "exclude_namespaces")]
    pub(crate) exclude_namespaces: Vec<String>,
    /// Seconds that the start of a pod waits for an agent that is away.
    #[serde(default = "agent_wait_seconds")]
    pub(crate) agent_wait_seconds: u64,
    /// What the plugins before us made; ours to hand on as it is.
    #[serde(default)]
    pub(crate) prev_result: Option<Value>,
}

fn run_dir() -> PathBuf {
    RUN_DIR.into()
}

fn agent_wait_seconds() -> u64 {
    AGENT_WAIT_SECONDS
}

fn exclude_namespaces() -> Vec<String> {
    vec!["kube-system".to_owned(), "karst-system".to_owned()]
}

impl Config {
    /// Reads the configuration and checks its version.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        // First as an object: the fields alone would also be read from an array, by position.
        let object: serde_json::Map<String, Value> =
            serde_json::from_slice(input).map_err(CniError::Decode)?;
        let config: Self =
            serde_json::from_value(Value::Object(object)).map_err(CniError::Decode)?;
        if VERSIONS.contains(&config.cni_version.as_str()) {
            return Ok(config);
        }
        let version = if config.cni_version.is_empty() {
            "0.1.0"
        } else {
            config.cni_version.as_str()
        };
        Err(CniError::Version {
            version: version.to_owned(),
            supported: VERSIONS.join(", "),
        })
    }

    /// The addresses of the pod: those of interfaces inside the namespace, or all when none says where it is.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let Some(result) = &self.prev_result else {
            return Ok(Vec::new());
        };
        let inside = |ip: &&Value| match ip["interface"]
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
        {
            Some(number) => result["interfaces"][number]["sandbox"]
                .as_str()
                .is_some_and(|sandbox| !sandbox.is_empty()),
            None => true,
        };
        result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(inside)
            .map(address)
            .collect()
    }

    /// The host's end of the pod's link: the interface without a sandbox that is no bridge, hence the last one.
    pub(crate) fn host_veth(&self) -> Option<String> {
        let interfaces = self.prev_result.as_ref()?["interfaces"].as_array()?;
        let on_host = interfaces
            .iter()
            .filter(|one| one["sandbox"].as_str().is_none_or(str::is_empty));
        on_host
            .filter_map(|one| one["name"].as_str())
            .next_back()
            .map(str::to_owned)
    }
}

fn address(ip: &Value) -> Result<IpAddr, CniError> {
    let wrong = || {
        CniError::Config(format!(
            "prevResult.ips: expected an address with a prefix length, got {ip}"
        ))
    };
    let text = ip["address"].as_str().ok_or_else(wrong)?;
    text.split('/')
        .next()
        .and_then(|ip| ip.parse().ok())
        .ok_or_else(wrong)
}
