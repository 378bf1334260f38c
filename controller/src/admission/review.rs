//! From the API server's AdmissionReview to its answer. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Asked, Operation, Surroundings, verdict};

/// A request that is no AdmissionReview: a fault of the caller.
#[derive(Debug, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1")]
pub struct BadReview(#[source] serde_json::Error);

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupVersionKind,
    operation: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

/// Answers a review.
///
/// # Errors
/// [`BadReview`] when the body is something else.
pub fn review(surroundings: &Surroundings, body: &[u8]) -> Result<Value, BadReview> {
    let Review { request } = serde_json::from_slice(body).map_err(BadReview)?;
    let operation = match request.operation.as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        _ => Operation::Other,
    };
    let verdict = verdict(
        surroundings,
        &Asked {
            group: &request.kind.group,
            version: &request.kind.version,
            kind: &request.kind.kind,
            operation,
            object: &request.object,
            old: &request.old_object,
        },
    );
    if let Some(reason) = &verdict.denied {
        tracing::info!(
            kind = request.kind.kind,
            namespace = request.namespace,
            name = request.name,
            reason,
            "refused at admission"
        );
    }
    let mut response = json!({
        "uid": request.uid,
        "allowed": verdict.denied.is_none(),
        "warnings": verdict.warnings,
    });
    if let Some(message) = verdict.denied {
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": message});
    }
    Ok(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_carries_the_question_s_uid() {
        let surroundings = Surroundings {
            root_namespace: "karst-system".into(),
            ..Surroundings::default()
        };
        let body = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "42", "operation": "CREATE", "name": "f", "namespace": "shop",
                "kind": {"group": "networking.istio.io", "version": "v1alpha3", "kind": "EnvoyFilter"},
                "object": {"metadata": {"name": "f"}, "spec": {}},
            },
        });
        let answer = review(&surroundings, body.to_string().as_bytes()).unwrap();
        assert_eq!(answer["response"]["uid"], "42");
        assert_eq!(answer["response"]["allowed"], false);
        assert!(
            answer["response"]["status"]["message"]
                .as_str()
                .unwrap()
                .contains("EnvoyFilter")
        );
        assert!(review(&surroundings, b"{}").is_err());
    }
}
