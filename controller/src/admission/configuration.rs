//! The ValidatingWebhookConfiguration `karst`: which objects the API server asks us about. Pure.
//!
//! The chart installs it; `karst install` renders the same. The leader keeps the `caBundle`.

use karst_k8s_api::{Kind, honoured::REFUSED_KINDS};
use serde_json::{Value, json};

use super::{CONFIGURATION, PATH};

/// What happens to an object while nobody can check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// It is taken; its status says later what is wrong.
    Ignore,
    /// It is refused.
    Fail,
}

/// Names of the webhooks, with what the chart lets choose.
pub const WEBHOOKS: [&str; 3] = [
    "security.karst.istio.io",
    "networking.karst.istio.io",
    "labels.karst.istio.io",
];

/// Seconds that the API server waits for an answer.
const TIMEOUT_SECONDS: u32 = 5;
/// Only objects that carry a key which could be meant for us are asked about, so that pods start no slower.
const HAS_KEYS: &str = "[object.metadata, has(object.spec) && has(object.spec.template) && has(object.spec.template.metadata) ? object.spec.template.metadata : object.metadata].exists(m, (has(m.labels) && m.labels.exists(k, k.contains('istio') || k.contains('dataplane'))) || (has(m.annotations) && m.annotations.exists(k, k.contains('istio') || k.contains('dataplane'))))";

/// The configuration, without the certificate that the leader adds.
pub fn configuration(namespace: &str, security: FailurePolicy, others: FailurePolicy) -> Value {
    let service =
        json!({"namespace": namespace, "name": "karst-controller", "path": PATH, "port": 443});
    let hook = |name: &str, policy: FailurePolicy, rules: Vec<Value>| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": service},
            "failurePolicy": format!("{policy:?}"),
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
            "rules": rules,
        })
    };
    let [security_name, networking_name, labels_name] = WEBHOOKS;
    let mut labels = hook(labels_name, others, labelled());
    labels["matchConditions"] = json!([{"name": "has-keys-of-ours", "expression": HAS_KEYS}]);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION, "labels": {"app.kubernetes.io/part-of": "karst"}},
        "webhooks": [
            hook(security_name, security, kinds_of("security.istio.io")),
            hook(networking_name, others, [
                kinds_of("networking.istio.io"),
                kinds_of("telemetry.istio.io"),
                refused(),
            ].concat()),
            labels,
        ],
    })
}

fn kinds_of(group: &str) -> Vec<Value> {
    let kinds = Kind::all().filter(|kind| kind.group() == group);
    let plurals: Vec<&str> = kinds.map(Kind::plural).collect();
    vec![rule(group, &plurals)]
}

fn refused() -> Vec<Value> {
    REFUSED_KINDS
        .iter()
        .map(|row| rule(row.group, &[row.plural]))
        .collect()
}

fn labelled() -> Vec<Value> {
    vec![
        rule("", &["namespaces", "pods", "services"]),
        rule("apps", &["deployments", "statefulsets", "daemonsets"]),
        rule("batch", &["jobs"]),
    ]
}

fn rule(group: &str, plurals: &[&str]) -> Value {
    json!({"apiGroups": [group], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": plurals, "scope": "*"})
}
