//! What Istio's resources say about themselves: the status that all of its kinds share.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Status of an Istio resource. Fields that other controllers add are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct IstioStatus {
    /// What holds for the object now; each type once, so that several controllers can write beside each other.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<StatusCondition>,
    /// Messages of Istio's analyzers; Karst writes none.
    pub validation_messages: Vec<ValidationMessage>,
    /// Generation of the object that the status speaks of.
    #[schemars(schema_with = "int_or_string")]
    pub observed_generation: Option<serde_json::Value>,
}

/// One statement about an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type"]))]
pub struct StatusCondition {
    /// What the statement is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for programs.
    pub reason: Option<String>,
    /// A sentence for people.
    pub message: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub last_probe_time: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: Option<String>,
    #[schemars(schema_with = "int_or_string")]
    pub observed_generation: Option<serde_json::Value>,
}

/// A finding of one of Istio's analyzers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ValidationMessage {
    #[serde(rename = "type")]
    pub kind: Option<ValidationType>,
    #[schemars(extend("enum" = ["UNKNOWN", "ERROR", "WARNING", "INFO"]))]
    pub level: Option<String>,
    pub documentation_url: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ValidationType {
    pub name: Option<String>,
    pub code: Option<String>,
}

/// Protobuf writes 64-bit numbers as text.
pub(crate) fn int_or_string(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": true
    })
}
