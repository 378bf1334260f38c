//! How Istio's policies say what they apply to.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Workloads by label; without labels, all of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels that a workload must have, all of them.
    #[schemars(schema_with = "plain_labels")]
    pub match_labels: BTreeMap<String, String>,
}

/// A Gateway, Service or ServiceEntry whose waypoint enforces the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["kind", "name"]))]
pub struct PolicyTargetReference {
    /// API group of the target; empty for the core one.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: String,
    /// Kind of the target.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Must be empty: a policy targets only its own namespace.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [
        {"rule": "self.size() == 0", "message": "a policy targets only its own namespace: leave namespace out"}
    ]))]
    pub namespace: Option<String>,
}

/// At most one of the three ways to say what a policy is for.
pub(crate) const ONE_TARGET: &str = "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1";

/// Labels without wildcards, bounded as Kubernetes bounds them.
pub(crate) fn plain_labels(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 4096,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [
                {"rule": "!self.contains('*')", "message": "a selector takes no wildcard: give the whole value"}
            ]
        },
        "x-kubernetes-validations": [
            {"rule": "self.all(key, !key.contains('*'))", "message": "a selector takes no wildcard: give the whole key"},
            {"rule": "self.all(key, key.size() != 0)", "message": "a label's key must not be empty"}
        ]
    })
}
