//! The commands of the CNI specification.

use std::time::Duration;

use karst_model::cni::{Answer, Command, PROTOCOL_VERSION, Request};
use serde_json::json;

use crate::{
    agent,
    call::{Config, Environment, VERSIONS},
    error::{CniError, NEWEST},
};

/// Carries out one call; the text is for standard output.
pub(crate) fn run(env: &Environment, input: &[u8]) -> Result<String, CniError> {
    match env.required("CNI_COMMAND")? {
        // Asks what we speak, so its own version may be any.
        "VERSION" => Ok(json!({"cniVersion": NEWEST, "supportedVersions": VERSIONS}).to_string()),
        "ADD" => add(env, &Config::parse(input)?),
        "CHECK" => ask(env, &Config::parse(input)?, Command::Check).map(|()| String::new()),
        "DEL" => delete(env, input),
        // The agent forgets pods that are gone by itself: there is nothing to collect.
        "GC" => Config::parse(input).map(|_| String::new()),
        "STATUS" => status(&Config::parse(input)?),
        other => Err(CniError::Environment(format!(
            "CNI_COMMAND {other:?}: expected ADD, DEL, CHECK, VERSION, GC or STATUS"
        ))),
    }
}

fn add(env: &Environment, config: &Config) -> Result<String, CniError> {
    let Some(result) = &config.prev_result else {
        return Err(CniError::Config(
            "prevResult is missing: karst-cni must come after the plugin that makes the network"
                .to_owned(),
        ));
    };
    env.required("CNI_NETNS")?;
    ask(env, config, Command::Add)?;
    Ok(result.to_string())
}

/// DEL must not fail for what is gone, and must not keep a pod from ending: the agent cleans up by itself as well.
fn delete(env: &Environment, input: &[u8]) -> Result<String, CniError> {
    let config = Config::parse(input)?;
    match ask(env, &config, Command::Del) {
        Err(CniError::NoAgent { .. } | CniError::Refused { .. } | CniError::Environment(_))
        | Ok(()) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn status(config: &Config) -> Result<String, CniError> {
    let unreachable = |source| CniError::NoAgent {
        socket: agent::socket(&config.run_dir),
        namespace: "(any)".to_owned(),
        source,
    };
    agent::is_there(&config.run_dir)
        .map(|()| String::new())
        .map_err(unreachable)
}

fn ask(env: &Environment, config: &Config, command: Command) -> Result<(), CniError> {
    let argument = |name: &str| {
        let missing = || {
            CniError::Environment(format!(
                "CNI_ARGS has no {name}: karst-cni serves Kubernetes pods"
            ))
        };
        env.argument(name).map(str::to_owned).ok_or_else(missing)
    };
    let request = Request {
        version: PROTOCOL_VERSION,
        command,
        netns: env.variable("CNI_NETNS").unwrap_or_default().to_owned(),
        pod_uid: argument("K8S_POD_UID")?,
        pod_name: argument("K8S_POD_NAME")?,
        pod_namespace: argument("K8S_POD_NAMESPACE")?,
        ips: config.addresses()?,
        host_veth: config.host_veth(),
    };
    let namespace = request.pod_namespace.clone();
    if config.exclude_namespaces.contains(&namespace) {
        return Ok(());
    }
    let asked = match agent::ask(&config.run_dir, &request) {
        Err(_away)
            if command == Command::Add
                && !agent::known_not_enrolled(&config.run_dir, &namespace) =>
        {
            agent::wait_for(
                &config.run_dir,
                Duration::from_secs(config.agent_wait_seconds),
            );
            agent::ask(&config.run_dir, &request)
        }
        asked => asked,
    };
    match asked {
        Ok(Answer { ok: true, .. }) => Ok(()),
        Ok(Answer { error, retry, .. }) => {
            let reason = error.unwrap_or_else(|| "no reason given".to_owned());
            Err(CniError::Refused {
                pod: format!("{namespace}/{}", request.pod_name),
                reason,
                retry,
            })
        }
        Err(_) if agent::known_not_enrolled(&config.run_dir, &namespace) => Ok(()),
        Err(source) => Err(CniError::NoAgent {
            socket: agent::socket(&config.run_dir),
            namespace,
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
