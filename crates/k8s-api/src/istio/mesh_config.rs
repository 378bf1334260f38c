//! The mesh configuration: ConfigMap `istio`, key `mesh`, of the root namespace.
//!
//! Source: Istio reference, "Global Mesh Options". What each field does here is in [`crate::honoured::MESH_CONFIG`].

mod providers;
mod proxies;

use serde_json::Value;

pub use self::{
    providers::{
        DefaultProviders, ExtensionProvider, HeaderValue, LogForm, Otlp, ProviderSpec,
        is_header_value, milliseconds,
    },
    proxies::ProxyConfig,
};
use crate::honoured::{MESH_CONFIG, Verdict};

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio";
/// Its key.
pub const KEY: &str = "mesh";

/// Most aliases of the trust domain that are taken.
pub const TRUST_DOMAIN_ALIASES_MAX: usize = 20;
/// Longest name of a trust domain.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// What the mesh configuration asks for, as far as it is honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    pub trust_domain: Option<String>,
    /// Other names of the trust domain, as written, each once.
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: Option<String>,
    /// `outboundTrafficPolicy: {mode: REGISTRY_ONLY}`: pods reach nothing that the mesh does not know.
    pub registry_only: bool,
    pub extension_providers: Vec<ExtensionProvider>,
    pub default_providers: DefaultProviders,
    /// `defaultConfig`, as far as waypoints have it.
    pub proxies: ProxyConfig,
    /// What is wrong or not honoured, each with its field.
    pub problems: Vec<MeshProblem>,
}

/// A field of the mesh configuration that does not hold as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshProblem {
    pub field: String,
    pub message: String,
}

impl MeshConfig {
    /// Reads the YAML of the key. Text that is no YAML is a problem, and asks for nothing.
    pub fn read(yaml: &str) -> Self {
        let mut config = Self::default();
        if yaml.trim().is_empty() {
            return config;
        }
        match serde_saphyr::from_str::<Value>(yaml) {
            Ok(Value::Object(fields)) => {
                for (field, value) in &fields {
                    config.take(field, value);
                }
            }
            Ok(Value::Null) => {}
            Ok(_) => config.problem("", "expected fields such as trustDomain".to_owned()),
            Err(error) => config.problem("", format!("is no YAML: {error}")),
        }
        config
    }

    fn take(&mut self, field: &str, value: &Value) {
        let Some((_, verdict, note)) = MESH_CONFIG.iter().find(|(name, ..)| *name == field) else {
            return self.problem(field, "unknown field: nothing reads it".to_owned());
        };
        match (field, verdict, value) {
            ("trustDomain", _, Value::String(text)) => match check_trust_domain(text) {
                Ok(()) => self.trust_domain = Some(text.clone()),
                Err(wrong) => self.problem(field, format!("{wrong}; the last one stays")),
            },
            ("trustDomainAliases", _, Value::Array(names)) => self.aliases(field, names),
            ("trustDomainAliases", ..) => self.problem(field, format!("{value}, expected a list")),
            ("rootNamespace", _, Value::String(text)) => self.root_namespace = Some(text.clone()),
            ("outboundTrafficPolicy", ..) => match value["mode"].as_str() {
                Some("REGISTRY_ONLY") => self.registry_only = true,
                Some("ALLOW_ANY") => {}
                _ => self.problem(
                    "outboundTrafficPolicy.mode",
                    format!("{value}, expected ALLOW_ANY or REGISTRY_ONLY: all is let go"),
                ),
            },
            ("extensionProviders", ..) => {
                let (providers, complaints) = providers::read(value);
                self.extension_providers = providers;
                self.problems_below(field, complaints);
            }
            ("defaultProviders", ..) => {
                let (defaults, complaints) = providers::read_defaults(value);
                self.default_providers = defaults;
                self.problems_below(field, complaints);
            }
            ("defaultConfig", ..) => {
                let (config, complaints) = proxies::read(value);
                self.proxies = config;
                self.problems_below(field, complaints);
            }
            (_, Verdict::Honoured, _) => self.problem(field, format!("{value}, expected a text")),
            (_, Verdict::NoEffect, _) => self.problem(field, format!("has no effect: {note}")),
            (_, Verdict::NotYet | Verdict::Refused, _) => {
                self.problem(field, format!("not honoured yet: {note}"));
            }
        }
    }

    fn aliases(&mut self, field: &str, names: &[Value]) {
        for (number, name) in names.iter().enumerate() {
            let at = format!("{field}[{number}]");
            let text = name.as_str().unwrap_or_default();
            match check_trust_domain(text) {
                Err(wrong) => self.problem(&at, format!("{wrong}; it is left out")),
                Ok(()) if self.trust_domain_aliases.len() >= TRUST_DOMAIN_ALIASES_MAX => {
                    let message = format!(
                        "more than {TRUST_DOMAIN_ALIASES_MAX} aliases: this one and those behind it are left out"
                    );
                    return self.problem(&at, message);
                }
                Ok(()) if self.trust_domain_aliases.iter().any(|one| one == text) => {}
                Ok(()) => self.trust_domain_aliases.push(text.to_owned()),
            }
        }
    }

    /// Whether the whole text cannot be read: then what it said before stays.
    pub fn is_unreadable(&self) -> bool {
        self.problems.iter().any(|problem| problem.field.is_empty())
    }

    /// Whether what is written for the trust domain cannot be read: then the last one stays.
    pub fn has_unreadable_trust_domain(&self) -> bool {
        let mut problems = self.problems.iter();
        problems.any(|problem| problem.field == "trustDomain")
    }

    fn problems_below(&mut self, field: &str, complaints: Vec<(String, String)>) {
        for (below, message) in complaints {
            self.problem(&format!("{field}{below}"), message);
        }
    }

    fn problem(&mut self, field: &str, message: String) {
        self.problems.push(MeshProblem {
            field: field.to_owned(),
            message,
        });
    }
}

/// What SPIFFE lets a trust domain be called (SPIFFE-ID specification section 2.1).
fn check_trust_domain(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    match text {
        "" => Err("expected the name of a trust domain".to_owned()),
        _ if text.len() > TRUST_DOMAIN_BYTES_MAX => Err(format!(
            "a trust domain has at most {TRUST_DOMAIN_BYTES_MAX} characters"
        )),
        _ if !text.bytes().all(allowed) => Err(format!(
            "{text:?}: a trust domain has lowercase letters, digits, '-', '.' and '_' only"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_honoured_is_read_and_the_rest_is_told() {
        let config = MeshConfig::read(
            "trustDomain: example.org\nrootNamespace: mesh\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\nnonsense: 1\ntrustDomainAliases: [old.example.org]\n",
        );
        assert_eq!(config.trust_domain.as_deref(), Some("example.org"));
        assert_eq!(config.root_namespace.as_deref(), Some("mesh"));
        let fields: Vec<&str> = config.problems.iter().map(|one| &*one.field).collect();
        assert_eq!(fields, ["nonsense"]);
        assert!(config.registry_only);
        assert_eq!(config.trust_domain_aliases, ["old.example.org"]);
    }

    #[test]
    fn names_that_no_trust_domain_has_are_told() {
        for (text, field) in [
            ("trustDomain: a/b", "trustDomain"),
            ("trustDomain: ''", "trustDomain"),
            ("trustDomain: Example.org", "trustDomain"),
            ("trustDomainAliases: [a, 'b c']", "trustDomainAliases[1]"),
            ("trustDomainAliases: [a, 7]", "trustDomainAliases[1]"),
            ("trustDomainAliases: a", "trustDomainAliases"),
        ] {
            let config = MeshConfig::read(text);
            let fields: Vec<&str> = config.problems.iter().map(|one| &*one.field).collect();
            assert_eq!((config.trust_domain, fields), (None, vec![field]), "{text}");
        }
        let many: Vec<String> = (0..30).map(|n| format!("d{n}")).collect();
        let config = MeshConfig::read(&format!("trustDomainAliases: [{}]", many.join(", ")));
        assert_eq!(config.trust_domain_aliases.len(), TRUST_DOMAIN_ALIASES_MAX);
        assert_eq!(config.problems.len(), 1, "told once");
    }

    #[test]
    fn what_pods_may_reach_is_one_of_two() {
        for (text, expected, told) in [
            ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", true, 0),
            ("outboundTrafficPolicy: {mode: ALLOW_ANY}", false, 0),
            ("outboundTrafficPolicy: {mode: registry}", false, 1),
            ("outboundTrafficPolicy: REGISTRY_ONLY", false, 1),
        ] {
            let config = MeshConfig::read(text);
            assert_eq!(
                (config.registry_only, config.problems.len()),
                (expected, told),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_text_asks_for_nothing() {
        assert_eq!(MeshConfig::read("").problems, []);
        for text in ["a: [", "- a", "trustDomain: [x]"] {
            let config = MeshConfig::read(text);
            assert_eq!(
                (config.problems.len(), config.trust_domain),
                (1, None),
                "{text}"
            );
        }
    }
}
