//! What stands in for a policy that cannot be read and of which no good version is known: something that denies what
//! the author may have meant to deny. Without it, a policy with one unreadable field would let everything pass after a
//! restart of the controller.

use karst_k8s_api::{Kind, Object, decode::decode};
use serde_json::{Value, json};

/// The stand-in, for kinds that restrict: an AuthorizationPolicy that denies all connections, a PeerAuthentication that
/// takes no plaintext; both for the workloads that the object selects, or its whole namespace where even that is
/// unreadable.
pub(super) fn last_resort(kind: Kind, json: &Value) -> Option<Object> {
    let restriction = match kind {
        Kind::AuthorizationPolicy => json!({"action": "DENY", "rules": [{}]}),
        Kind::PeerAuthentication => json!({"mtls": {"mode": "STRICT"}}),
        _ => return None,
    };
    let metadata = named_only(json.get("metadata")?);
    let selector = json.pointer("/spec/selector");
    let with = |selector: Option<&Value>| {
        let mut spec = restriction.clone();
        if let (Value::Object(spec), Some(selector)) = (&mut spec, selector) {
            spec.insert("selector".to_owned(), selector.clone());
        }
        decode(kind, json!({"metadata": metadata, "spec": spec}))
            .object
            .ok()
    };
    with(selector).or_else(|| with(None))
}

fn named_only(metadata: &Value) -> Value {
    json!({"name": metadata.get("name"), "namespace": metadata.get("namespace"), "uid": metadata.get("uid")})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand_in(kind: Kind, spec: Value) -> Object {
        let json =
            json!({"metadata": {"name": "p", "namespace": "shop", "labels": 5}, "spec": spec});
        last_resort(kind, &json).expect("policies have one")
    }

    #[test]
    fn it_denies_what_the_policy_selects() {
        let Object::AuthorizationPolicy(policy) = stand_in(
            Kind::AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"app": "a"}}, "action": "ALOW"}),
        ) else {
            panic!("of its own kind")
        };
        let selector = policy.spec.selector.unwrap();
        assert_eq!(selector.match_labels["app"], "a");
        assert_eq!(policy.spec.rules.len(), 1);
        let Object::AuthorizationPolicy(policy) =
            stand_in(Kind::AuthorizationPolicy, json!({"selector": "app=a"}))
        else {
            panic!("of its own kind")
        };
        assert!(policy.spec.selector.is_none(), "the whole namespace");
    }

    #[test]
    fn kinds_that_do_not_restrict_have_none() {
        assert_eq!(
            last_resort(Kind::Pod, &json!({"metadata": {"name": "p"}})),
            None
        );
    }
}
