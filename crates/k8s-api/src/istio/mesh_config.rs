//! The mesh configuration: ConfigMap `istio`, key `mesh`, of the root namespace.
//!
//! Source: Istio reference, "Global Mesh Options". What each field does here is in [`crate::honoured::MESH_CONFIG`].

mod providers;

use serde_json::Value;

pub use self::providers::{
    DefaultProviders, ExtensionProvider, LogForm, Otlp, ProviderSpec, milliseconds,
};
use crate::honoured::{MESH_CONFIG, Verdict};

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio";
/// Its key.
pub const KEY: &str = "mesh";

/// What the mesh configuration asks for, as far as it is honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    pub trust_domain: Option<String>,
    pub root_namespace: Option<String>,
    pub extension_providers: Vec<ExtensionProvider>,
    pub default_providers: DefaultProviders,
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
            ("trustDomain", _, Value::String(text)) => self.trust_domain = Some(text.clone()),
            ("rootNamespace", _, Value::String(text)) => self.root_namespace = Some(text.clone()),
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
            (_, Verdict::Honoured, _) => self.problem(field, format!("{value}, expected a text")),
            (_, Verdict::NoEffect, _) => self.problem(field, format!("has no effect: {note}")),
            (_, Verdict::NotYet | Verdict::Refused, _) => {
                self.problem(field, format!("not honoured yet: {note}"));
            }
        }
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
        assert_eq!(
            fields,
            ["nonsense", "outboundTrafficPolicy", "trustDomainAliases"]
        );
        assert!(
            config.problems[1]
                .message
                .contains("REGISTRY_ONLY is not enforced")
        );
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
