//! What a user's ConfigMap changes of the objects that are made for a Gateway (`spec.infrastructure.parametersRef`).
//!
//! As Istio has it: one key per object, each a part of that object as YAML. Lists of named things (containers, ports,
//! variables, volumes) are merged by name, other lists are replaced, and `null` takes a field away.

use serde_json::Value;

/// Lays `over` over `base`.
pub(super) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.as_str()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(base), Value::Array(over)) if named(base) && named(over) => {
            for value in over {
                match base.iter_mut().find(|one| one["name"] == value["name"]) {
                    Some(one) => merge(one, value),
                    None => base.push(value.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn named(items: &[Value]) -> bool {
    items.iter().all(|item| item["name"].is_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn named_lists_merge_by_name_and_null_takes_away() {
        let mut base = json!({"spec": {"replicas": 1, "containers": [{"name": "a", "image": "i", "args": ["x"]}], "keep": 1}});
        let over = json!({"spec": {"replicas": null, "containers": [{"name": "a", "args": ["y"]}, {"name": "b"}]}});
        merge(&mut base, &over);
        assert_eq!(
            base,
            json!({"spec": {"containers": [{"name": "a", "image": "i", "args": ["y"]}, {"name": "b"}], "keep": 1}})
        );
    }
}
