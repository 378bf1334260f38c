//! The ValidatingWebhookConfiguration `karst`: which objects the API server asks us about. Pure.
//!
//! Written as the chart's template by `cargo run -p karst-controller --example print_webhook`; a test compares. The
//! leader keeps the `caBundle`, which the template leaves out so that an upgrade does not take it away.

use karst_k8s_api::{Kind, honoured::REFUSED_KINDS};
use serde_json::{Value, json};

use super::{CONFIGURATION, PATH};

/// Names of the webhooks, with what the chart lets choose.
pub const WEBHOOKS: [&str; 3] = [
    "security.webhook.karst",
    "networking.webhook.karst",
    "labels.webhook.karst",
];

/// Seconds that the API server waits for an answer.
const TIMEOUT_SECONDS: u32 = 5;
/// Only objects that carry a key which could be meant for us are asked about, so that pods start no slower.
const HAS_KEYS: &str = "[object.metadata, has(object.spec) && has(object.spec.template) && has(object.spec.template.metadata) ? object.spec.template.metadata : object.metadata].exists(m, (has(m.labels) && m.labels.exists(k, k.contains('istio') || k.contains('dataplane'))) || (has(m.annotations) && m.annotations.exists(k, k.contains('istio') || k.contains('dataplane'))))";

/// The configuration, without the roots that the leader adds. `security`: what happens to AuthorizationPolicies and their
/// like while nobody can check them, `Fail` or `Ignore`. Everything else is taken then, and its status tells afterwards.
pub fn configuration(namespace: &str, security: &str) -> Value {
    let service =
        json!({"namespace": namespace, "name": "karst-controller", "path": PATH, "port": 443});
    let hook = |name: &str, policy: &str, rules: Vec<Value>| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": service},
            "failurePolicy": policy,
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
            "rules": rules,
        })
    };
    let [security_name, networking_name, labels_name] = WEBHOOKS;
    let mut labels = hook(labels_name, "Ignore", labelled());
    labels["matchConditions"] = json!([{"name": "has-keys-of-ours", "expression": HAS_KEYS}]);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION, "labels": {"app.kubernetes.io/part-of": "karst"}},
        "webhooks": [
            hook(security_name, security, kinds_of("security.istio.io")),
            hook(networking_name, "Ignore", [
                kinds_of("networking.istio.io"),
                kinds_of("telemetry.istio.io"),
                kinds_of("policy.karst.io"),
                routes(),
                refused(),
            ].concat()),
            labels,
        ],
    })
}

/// The chart's template.
///
/// # Errors
/// The serializer's; this configuration gives none.
pub fn template() -> Result<String, serde_json::Error> {
    let rendered = configuration(
        "{{ .Release.Namespace }}",
        "{{ .Values.webhook.failurePolicy }}",
    );
    let json = serde_json::to_string_pretty(&rendered)?;
    Ok(format!("{HEAD}{json}\n"))
}

/// JSON is YAML, and Helm reads both.
const HEAD: &str = "{{- /* Printed by `cargo run -p karst-controller --example print_webhook`; the leader adds caBundle. */ -}}\n";

fn kinds_of(group: &str) -> Vec<Value> {
    let kinds = Kind::all().filter(|kind| kind.group() == group);
    let plurals: Vec<&str> = kinds.map(Kind::plural).collect();
    vec![rule(group, &plurals)]
}

/// Routes may be ours, and may be those of a Gateway of others: nothing is refused.
fn routes() -> Vec<Value> {
    let kinds = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::BackendTlsPolicy,
    ];
    vec![rule(Kind::HttpRoute.group(), &kinds.map(Kind::plural))]
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_chart_has_this_configuration() {
        let path = "../manifests/chart/templates/webhook.yaml";
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
        assert!(
            text.unwrap_or_default() == template().unwrap(),
            "manifests/chart/templates/webhook.yaml is stale: run `cargo run -p karst-controller --example print_webhook`"
        );
    }

    #[test]
    fn every_kind_that_admission_knows_is_asked_about() {
        let text = configuration("karst-system", "Fail").to_string();
        for kind in Kind::all().filter(|kind| kind.is_shipped()) {
            assert!(text.contains(&format!("\"{}\"", kind.plural())), "{kind}");
        }
        for row in REFUSED_KINDS {
            assert!(
                text.contains(&format!("\"{}\"", row.plural)),
                "{}",
                row.kind
            );
        }
    }
}
