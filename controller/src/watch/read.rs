//! From an object as it was sent to one that can be used, or what is wrong with it, by field.

use karst_k8s_api::{
    Kind, Object,
    decode::{Decoded, decode},
};
use serde_json::Value;

use super::trim::trim;

/// Complaints about one object that are kept; a broken one rarely needs more than the first.
const COMPLAINTS_MAX: usize = 16;

/// Why an object cannot be used as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Path inside the object, for example `spec.rules[0].from`; empty for the object itself.
    pub field: String,
    /// What is wrong, and what was expected instead.
    pub message: String,
}

/// The object, without what nobody reads.
///
/// An unknown field inside `spec` of one of Istio's kinds, or of a route, makes it unusable, as in a directory of files:
/// without the field the policy would mean something else, mostly something weaker, and the route would take other
/// requests. Fields that Kubernetes has added to its own kinds are left out.
pub(super) fn read(kind: Kind, json: Value) -> Result<Object, Vec<Complaint>> {
    let Decoded { object, unknown } = decode(kind, json);
    let strict = unknown.iter().map(ToString::to_string);
    let strict = strict.filter(|field| is_strict(kind) && field.starts_with("spec."));
    let mut complaints: Vec<Complaint> = strict
        .take(COMPLAINTS_MAX)
        .map(|field| Complaint {
            field,
            message: "unknown field: this version of karst does not enforce it".to_owned(),
        })
        .collect();
    match object {
        Ok(object) if complaints.is_empty() => Ok(trim(object)),
        Ok(_) => Err(complaints),
        Err((place, message)) => {
            let field = place.to_string();
            complaints.push(Complaint { field, message });
            Err(complaints)
        }
    }
}

/// Whether nothing of a kind's `spec` may be left out.
fn is_strict(kind: Kind) -> bool {
    kind.is_shipped()
        || matches!(
            kind,
            Kind::HttpRoute
                | Kind::GrpcRoute
                | Kind::TlsRoute
                | Kind::TcpRoute
                | Kind::ReferenceGrant
                | Kind::BackendTlsPolicy
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn complaints(kind: Kind, json: Value) -> Vec<(String, String)> {
        let complaints = read(kind, json).expect_err("must not be used");
        complaints
            .into_iter()
            .map(|one| (one.field, one.message))
            .collect()
    }

    #[test]
    fn a_wrong_field_is_named() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"rules": [{"to": [{"operation": {"ports": 80}}]}]}});
        let all = complaints(Kind::AuthorizationPolicy, policy);
        assert_eq!(all[0].0, "spec.rules[0].to[0].operation.ports");
        assert!(all[0].1.contains("expected a sequence"), "{all:?}");
    }

    #[test]
    fn an_unknown_field_of_a_policy_makes_it_unusable_and_one_of_a_pod_does_not() {
        let policy =
            json!({"metadata": {"name": "p", "newInKubernetes": 1}, "spec": {"rulez": []}});
        assert_eq!(
            complaints(Kind::AuthorizationPolicy, policy)[0].0,
            "spec.rulez"
        );
        let route = json!({"metadata": {"name": "r"},
            "spec": {"rules": [{"matches": [{"cookies": []}]}]}});
        assert_eq!(
            complaints(Kind::HttpRoute, route)[0].0,
            "spec.rules[0].matches[0].cookies"
        );
        let pod =
            json!({"metadata": {"name": "p"}, "spec": {"newInKubernetes": true, "containers": []}});
        assert!(read(Kind::Pod, pod).is_ok());
    }
}
