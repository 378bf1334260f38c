//! How many proxies in front of the mesh are believed: `gatewayTopology.numTrustedProxies` of a ProxyConfig, which stands in
//! the mesh configuration's `defaultConfig` and in the annotation `proxy.istio.io/config` of a Gateway.
//!
//! Source: Istio reference, "ProxyConfig" and "Topology".

use serde_json::Value;

use super::providers::Complaints;

/// Most proxies in a row that anybody has.
const PROXIES_MAX: u64 = 100;

/// What of a ProxyConfig has a meaning for waypoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Entries at the end of `x-forwarded-for` that trusted proxies wrote; `None`: not said.
    pub trusted_proxies: Option<u16>,
}

impl ProxyConfig {
    /// Reads the annotation's YAML.
    ///
    /// # Errors
    /// What is wrong with it, and where. What has no effect is not wrong.
    pub fn read(yaml: &str) -> Result<Self, String> {
        let value: Value =
            serde_saphyr::from_str(yaml).map_err(|error| format!("is no YAML: {error}"))?;
        match trusted_proxies(&value) {
            Ok(trusted_proxies) => Ok(Self { trusted_proxies }),
            Err((field, wrong)) => Err(format!("{}: {wrong}", field.trim_start_matches('.'))),
        }
    }
}

/// Reads `defaultConfig`. What is left out is told.
pub(super) fn read(value: &Value) -> (ProxyConfig, Complaints) {
    let mut complaints = Complaints::new();
    let fields = value.as_object().into_iter().flatten();
    for (field, _) in fields.filter(|(field, _)| *field != "gatewayTopology") {
        let message = "has no effect: there is no sidecar to configure";
        complaints.push((format!(".{field}"), message.to_owned()));
    }
    let topology = value["gatewayTopology"].as_object().into_iter().flatten();
    for (field, _) in topology.filter(|(field, _)| *field != "numTrustedProxies") {
        let message = "not honoured yet: the waypoint goes on as without it";
        complaints.push((format!(".gatewayTopology.{field}"), message.to_owned()));
    }
    let trusted_proxies = trusted_proxies(value).unwrap_or_else(|(field, wrong)| {
        complaints.push((field, format!("{wrong}: no proxy is believed")));
        None
    });
    (ProxyConfig { trusted_proxies }, complaints)
}

fn trusted_proxies(value: &Value) -> Result<Option<u16>, (String, String)> {
    if !value.is_object() && !value.is_null() {
        let wrong = format!("{value}, expected fields such as gatewayTopology");
        return Err((String::new(), wrong));
    }
    let topology = &value["gatewayTopology"];
    if !topology.is_object() && !topology.is_null() {
        let wrong = format!("{topology}, expected fields such as numTrustedProxies");
        return Err((".gatewayTopology".to_owned(), wrong));
    }
    let number = &topology["numTrustedProxies"];
    if number.is_null() {
        return Ok(None);
    }
    let read = number.as_u64().filter(|number| *number <= PROXIES_MAX);
    match read.and_then(|number| u16::try_from(number).ok()) {
        Some(number) => Ok(Some(number)),
        None => Err((
            ".gatewayTopology.numTrustedProxies".to_owned(),
            format!("{number}, expected a number from 0 to {PROXIES_MAX}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::mesh_config::MeshConfig;

    #[test]
    fn the_number_is_read_and_the_rest_is_told() {
        for (yaml, expected, told) in [
            ("gatewayTopology: {numTrustedProxies: 2}", Some(2), &[][..]),
            ("gatewayTopology: {}", None, &[]),
            (
                "gatewayTopology: {numTrustedProxies: -1}",
                None,
                &["defaultConfig.gatewayTopology.numTrustedProxies"],
            ),
            (
                "gatewayTopology: {numTrustedProxies: 101}",
                None,
                &["defaultConfig.gatewayTopology.numTrustedProxies"],
            ),
            (
                "gatewayTopology: {numTrustedProxies: '1'}",
                None,
                &["defaultConfig.gatewayTopology.numTrustedProxies"],
            ),
            (
                "gatewayTopology: [1]",
                None,
                &["defaultConfig.gatewayTopology"],
            ),
            ("[1]", None, &["defaultConfig"]),
            (
                "concurrency: 2, gatewayTopology: {numTrustedProxies: 1, forwardClientCertDetails: SANITIZE}",
                Some(1),
                &[
                    "defaultConfig.concurrency",
                    "defaultConfig.gatewayTopology.forwardClientCertDetails",
                ],
            ),
        ] {
            let whole = match yaml.starts_with('[') {
                true => format!("defaultConfig: {yaml}"),
                false => format!("defaultConfig: {{{yaml}}}"),
            };
            let config = MeshConfig::read(&whole);
            let fields: Vec<&str> = config.problems.iter().map(|one| &*one.field).collect();
            assert_eq!(
                (config.proxies.trusted_proxies, fields),
                (expected, told.to_vec()),
                "{yaml}"
            );
        }
    }

    #[test]
    fn an_annotation_that_cannot_be_read_says_where() {
        let read = ProxyConfig::read("gatewayTopology:\n  numTrustedProxies: 1\n").unwrap();
        assert_eq!(read.trusted_proxies, Some(1));
        assert_eq!(ProxyConfig::read("").unwrap(), ProxyConfig::default());
        for (yaml, wrong) in [
            (
                "gatewayTopology: {numTrustedProxies: many}",
                "gatewayTopology.numTrustedProxies: \"many\"",
            ),
            ("a: [", "is no YAML"),
        ] {
            let said = ProxyConfig::read(yaml).unwrap_err();
            assert!(said.contains(wrong), "{said}");
        }
    }
}
