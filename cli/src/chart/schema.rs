//! The part of JSON Schema that `values.schema.json` uses: `type`, `enum`, `properties`, `additionalProperties` (false, or
//! a schema), `items`, `minimum`, `minLength`, `required`. Helm checks the same file with a whole implementation.

use serde_json::{Map, Value};

/// Everything wrong with `value`, one sentence each; empty when it fits.
pub(super) fn mistakes(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(schema, value, "", &mut found);
    found
}

fn look(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let name = if at.is_empty() { "the values" } else { at };
    if let Some(types) = schema.get("type") {
        let wanted: Vec<&str> = match types {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !wanted.iter().any(|wanted| is(wanted, value)) {
            found.push(format!(
                "{name}: expected {}, found {value}",
                wanted.join(" or ")
            ));
            return;
        }
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(value)
    {
        let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
        found.push(format!(
            "{name}: expected one of {}, found {value}",
            choices.join(", ")
        ));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_i64(), value.as_i64())
        && number < least
    {
        found.push(format!("{name}: expected at least {least}, found {number}"));
    }
    if let (Some(least), Some(text)) = (schema["minLength"].as_u64(), value.as_str())
        && (text.len() as u64) < least
    {
        found.push(format!("{name}: must not be empty"));
    }
    let needed = schema["required"].as_array().into_iter().flatten();
    for key in needed.filter_map(Value::as_str) {
        if value.is_object() && value.get(key).is_none() {
            found.push(format!("{name}: {key} is needed"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            look(items, value, &format!("{at}[{index}]"), found);
        }
    }
    fields(schema, value, at, found);
}

fn fields(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let none = Map::new();
    let known = schema["properties"].as_object().unwrap_or(&none);
    let Some(fields) = value.as_object() else {
        return;
    };
    for (key, value) in fields {
        let path = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        match known.get(key) {
            Some(schema) => look(schema, value, &path, found),
            None if schema["additionalProperties"] == Value::Bool(false) => {
                let known: Vec<&str> = known.keys().map(String::as_str).collect();
                found.push(format!(
                    "{path}: no such value; known here: {}",
                    known.join(", ")
                ));
            }
            None if schema["additionalProperties"].is_object() => {
                look(&schema["additionalProperties"], value, &path, found);
            }
            None => {}
        }
    }
}

fn is(wanted: &str, value: &Value) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    }
}
