//! The node's CNI configuration as text: our plugin in its chain, and out of it again. Pure.
//!
//! The form is that of the CNI specification's network configuration (`.conflist`), and of the older single plugin
//! (`.conf`), which is made a list of one before ours is added.

use serde_json::{Map, Value, json};

/// Type of our plugin, which is also the name of its executable.
pub(crate) const PLUGIN: &str = "karst-cni";

/// Why a configuration cannot take our plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("it is no JSON object")]
    NotJson(#[source] serde_json::Error),
    #[error("it has neither `plugins` (a list) nor `type` (a single plugin)")]
    Shapeless,
    #[error("its list of plugins is empty, or one of them has no `type`")]
    NoPlugin,
    #[error(
        "its cniVersion is {0:?}, and plugins can be chained from 0.3.0 on: update the network plugin's configuration"
    )]
    OldVersion(String),
}

/// What our plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The agent's run directory as the node sees it.
    pub(crate) run_dir: String,
    /// Namespaces whose pods are never enrolled and never wait for the agent.
    pub(crate) exclude_namespaces: Vec<String>,
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({"type": PLUGIN, "runDir": self.run_dir, "excludeNamespaces": self.exclude_namespaces})
    }
}

/// The configuration with our plugin in its chain, once, as `entry` has it; None if it is so already.
pub(crate) fn with_plugin(text: &str, entry: &Entry) -> Result<Option<String>, ChainError> {
    let mut list = as_list(parse(text)?)?;
    let wanted = entry.to_json();
    let plugins = plugins(&mut list)?;
    let ours: Vec<usize> = positions(plugins);
    if let [one] = ours[..]
        && plugins[one] == wanted
    {
        return Ok(None);
    }
    match ours.first() {
        // Where it is: others may have chained themselves behind.
        Some(&first) => {
            plugins[first] = wanted;
            let mut at = 0;
            plugins.retain(|plugin| {
                at += 1;
                at - 1 == first || !is_ours(plugin)
            });
        }
        None => plugins.push(wanted),
    }
    Ok(Some(pretty(&list)))
}

/// The configuration without our plugin; None if it is not there.
pub(crate) fn without_plugin(text: &str) -> Result<Option<String>, ChainError> {
    let mut list = Value::Object(parse(text)?);
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Ok(None);
    };
    if positions(plugins).is_empty() {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    Ok(Some(pretty(&list)))
}

/// Whether both are the same configuration, however written.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    parsed(a).is_some() && parsed(a) == parsed(b)
}

/// Type of the first plugin: the one that makes the network, whose executable tells where executables are.
pub(crate) fn first_type(text: &str) -> Result<String, ChainError> {
    let mut list = as_list(parse(text)?)?;
    let first = plugins(&mut list)?
        .first()
        .and_then(|plugin| plugin["type"].as_str());
    first.map(str::to_owned).ok_or(ChainError::NoPlugin)
}

fn parse(text: &str) -> Result<Map<String, Value>, ChainError> {
    serde_json::from_str(text).map_err(ChainError::NotJson)
}

/// A list stays, a single plugin becomes a list of one.
fn as_list(mut object: Map<String, Value>) -> Result<Value, ChainError> {
    let version = object
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !chains(version) {
        return Err(ChainError::OldVersion(version.to_owned()));
    }
    if object.contains_key("plugins") {
        return Ok(Value::Object(object));
    }
    if !object.contains_key("type") {
        return Err(ChainError::Shapeless);
    }
    // The list gives both to each of its plugins.
    let version = object.remove("cniVersion");
    let name = object.remove("name");
    Ok(json!({"cniVersion": version, "name": name, "plugins": [object]}))
}

/// Results are handed on from plugin to plugin since 0.3.0.
fn chains(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(0), Some(minor)) => minor >= 3,
        (Some(_), _) => true,
        (None, _) => false,
    }
}

fn plugins(list: &mut Value) -> Result<&mut Vec<Value>, ChainError> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins.ok_or(ChainError::Shapeless)?;
    let typed = |plugin: &Value| plugin["type"].is_string();
    if plugins.iter().all(is_ours) || !plugins.iter().all(typed) {
        return Err(ChainError::NoPlugin);
    }
    Ok(plugins)
}

fn positions(plugins: &[Value]) -> Vec<usize> {
    let ours = plugins.iter().enumerate().filter(|(_, it)| is_ours(it));
    ours.map(|(at, _)| at).collect()
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

fn pretty(list: &Value) -> String {
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            run_dir: "/run/karst".to_owned(),
            exclude_namespaces: vec!["kube-system".to_owned()],
        }
    }

    /// Types of the chain after our plugin was put in.
    fn chained(text: &str) -> Vec<String> {
        let text = with_plugin(text, &entry()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let plugins = value["plugins"].as_array().unwrap();
        plugins
            .iter()
            .map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    }

    const PTP: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp", "mtu": 9000}, {"type": "portmap"}]}"#;

    #[test]
    fn the_plugin_comes_last_and_once_and_the_others_stay() {
        assert_eq!(chained(PTP), ["ptp", "portmap", PLUGIN]);
        let once = with_plugin(PTP, &entry()).unwrap().unwrap();
        assert!(with_plugin(&once, &entry()).unwrap().is_none());
        let value: Value = serde_json::from_str(&once).unwrap();
        assert_eq!(value["plugins"][0]["mtu"], 9000);
        assert_eq!(value["plugins"][2]["runDir"], "/run/karst");
    }

    #[test]
    fn an_older_entry_is_renewed_where_it_is_and_doubles_go() {
        let text = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [
            {"type": "calico"}, {"type": "karst-cni", "runDir": "/old"}, {"type": "bandwidth"}, {"type": "karst-cni"}]}"#;
        assert_eq!(chained(text), ["calico", PLUGIN, "bandwidth"]);
        assert!(
            with_plugin(text, &entry())
                .unwrap()
                .unwrap()
                .contains("/run/karst")
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_chain() {
        let single = r#"{"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel", "delegate": {"isDefaultGateway": true}}"#;
        assert_eq!(chained(single), ["flannel", PLUGIN]);
        let list: Value =
            serde_json::from_str(&with_plugin(single, &entry()).unwrap().unwrap()).unwrap();
        assert_eq!(
            (list["name"].as_str(), list["cniVersion"].as_str()),
            (Some("cbr0"), Some("0.3.1"))
        );
        let inner = &list["plugins"][0];
        assert_eq!(inner["delegate"]["isDefaultGateway"], true);
        assert!(inner.get("name").is_none() && inner.get("cniVersion").is_none());
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let chained = with_plugin(PTP, &entry()).unwrap().unwrap();
        let back = without_plugin(&chained).unwrap().unwrap();
        assert!(same(&back, PTP), "{back}");
        assert!(without_plugin(PTP).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_chained_says_why() {
        let check = |text: &str, says: &str| {
            let error = with_plugin(text, &entry()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        check("[]", "no JSON object");
        check(r#"{"cniVersion": "1.0.0", "name": "x"}"#, "neither");
        check(r#"{"cniVersion": "1.0.0", "plugins": []}"#, "empty");
        check(r#"{"cniVersion": "1.0.0", "plugins": [{}]}"#, "no `type`");
        check(r#"{"cniVersion": "0.2.0", "type": "ptp"}"#, "0.3.0");
        check(r#"{"type": "ptp"}"#, "0.3.0");
    }

    #[test]
    fn the_first_plugin_is_named() {
        assert_eq!(first_type(PTP).unwrap(), "ptp");
    }
}
