//! What Karst does with each label, annotation and field of Istio's API: honoured, refused, or not yet.
//!
//! One table for everybody: admission and files report what is set and not honoured ([`unhonoured`]), status repeats
//! it, and `docs/reference/istio-compat.md` is printed from it. A test walks the schemas and fails on a field without a
//! row, so no field can be accepted and ignored.

mod destination_rule;
mod fields;
mod gateway;
mod keys;
mod mesh;
mod page;
mod proofs;
mod refused;
mod virtual_service;

use std::borrow::Cow;

use serde_json::Value;

pub use destination_rule::DESTINATION_RULE;
pub use fields::FIELDS;
pub use gateway::GATEWAY_FIELDS;
pub use keys::{IDLE_KEYS, KEYS};
pub use mesh::{MESH_CONFIG, MeshRow};
pub use page::{gateway_page, page};
pub use proofs::{PROOFS, Proof, proof};
pub use refused::REFUSED_KINDS;
pub use virtual_service::VIRTUAL_SERVICE;

use crate::Kind;

/// What Karst does with a field or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It does what Istio's documents say.
    Honoured,
    /// It does nothing yet: whoever sets it is told, and traffic goes as without it.
    NotYet,
    /// It has no meaning in a mesh without sidecars, or for this controller: whoever sets it is told.
    NoEffect,
    /// An object that has it is not accepted, because what it asks for would silently not hold.
    Refused,
}

/// One field of one kind, and what is below it unless that has rows of its own.
#[derive(Clone, Copy, Debug)]
pub struct FieldRow {
    pub kind: Kind,
    /// `spec.rules[].from[].source.principals`: `[]` for list items, `{}` for map values, `.*` for all below.
    pub path: &'static str,
    pub verdict: Verdict,
    /// What happens, for the author.
    pub note: &'static str,
}

/// One label or annotation.
#[derive(Clone, Copy, Debug)]
pub struct KeyRow {
    pub key: &'static str,
    pub place: Place,
    /// Kinds that it has a meaning on, for the page.
    pub on: &'static str,
    /// The values that it can have; none: any.
    pub values: &'static [&'static str],
    pub verdict: Verdict,
    pub note: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Label,
    Annotation,
}

/// A kind that Karst does not take at all.
#[derive(Clone, Copy, Debug)]
pub struct RefusedKind {
    pub kind: &'static str,
    pub plural: &'static str,
    pub group: &'static str,
    /// Why, and what to use instead.
    pub note: &'static str,
}

/// A field that is set and not honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhonoured {
    pub path: Vec<Step>,
    pub verdict: Verdict,
    pub note: &'static str,
}

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// The rows of a kind, in the order of Istio's reference.
pub fn fields(kind: Kind) -> impl Iterator<Item = &'static FieldRow> + Clone {
    let all = FIELDS.iter().chain(DESTINATION_RULE).chain(VIRTUAL_SERVICE);
    all.filter(move |row| row.kind == kind)
}

/// Every label and annotation that has a row.
pub fn keys() -> impl Iterator<Item = &'static KeyRow> + Clone {
    KEYS.iter().chain(IDLE_KEYS)
}

/// The path whose row speaks for a path, where fields of the same meaning stand in several places.
fn canonical(kind: Kind, path: &str) -> Cow<'_, str> {
    match kind {
        Kind::DestinationRule => destination_rule::canonical(path),
        _ => Cow::Borrowed(path),
    }
}

/// The row that speaks for a field: its own, else one above it that does not only say "honoured", or that ends
/// with `.*` and so stands for everything below it.
pub fn row(kind: Kind, path: &str) -> Option<&'static FieldRow> {
    let path = &*canonical(kind, path);
    let mut rows = fields(kind);
    let own = rows.clone().find(|row| row.path == path);
    let below = |above: &str| {
        let rest = path.strip_prefix(above);
        rest.is_some_and(|rest| rest.starts_with(['.', '[', '{']))
    };
    let covers = |row: &&FieldRow| match row.path.strip_suffix(".*") {
        Some(above) => below(above),
        None => row.verdict != Verdict::Honoured && below(row.path),
    };
    own.or_else(|| rows.find(covers))
}

/// Everything set in an object of this kind that is not honoured: the outermost field of each.
pub fn unhonoured(kind: Kind, object: &Value) -> Vec<Unhonoured> {
    let mut walk = Walk {
        kind,
        pattern: "spec".to_owned(),
        path: vec![Step::Key("spec".to_owned())],
        found: Vec::new(),
    };
    if kind.is_istio()
        && let Some(spec) = object.get("spec")
    {
        walk.visit(spec);
    }
    walk.found
}

/// What a key of a label or annotation means; nothing for keys of others.
pub fn key_row(place: Place, key: &str) -> Option<&'static KeyRow> {
    keys().find(|row| row.place == place && row.key == key)
}

/// Whether a field says anything: empty lists, maps and texts, and null, are as good as left out.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

struct Walk {
    kind: Kind,
    /// The path as rows write it.
    pattern: String,
    path: Vec<Step>,
    found: Vec<Unhonoured>,
}

impl Walk {
    fn visit(&mut self, value: &Value) {
        if !says_something(value) {
            return;
        }
        match row(self.kind, &self.pattern) {
            Some(row) if row.verdict != Verdict::Honoured => self.found.push(Unhonoured {
                path: self.path.clone(),
                verdict: row.verdict,
                note: row.note,
            }),
            _ => self.descend(value),
        }
    }

    fn descend(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.step(Step::Index(index), "[]", item);
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    let own = format!(".{name}");
                    let known = row(self.kind, &format!("{}{own}", self.pattern)).is_some();
                    let mark = if known { own.as_str() } else { "{}" };
                    self.step(Step::Key(name.clone()), mark, field);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, step: Step, mark: &str, value: &Value) {
        let before = self.pattern.len();
        self.pattern.push_str(mark);
        self.path.push(step);
        self.visit(value);
        self.path.pop();
        self.pattern.truncate(before);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reported(kind: Kind, spec: Value) -> Vec<(Vec<Step>, Verdict)> {
        let found = unhonoured(kind, &json!({ "spec": spec }));
        found
            .into_iter()
            .map(|one| (one.path, one.verdict))
            .collect()
    }

    #[test]
    fn what_is_set_and_not_honoured_is_found_once_with_its_place() {
        let found = reported(
            Kind::Telemetry,
            json!({"tracing": [{}, {"useRequestIdForTraceSampling": true, "match": {}}]}),
        );
        let [(path, Verdict::NotYet)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(path.len(), 4, "{path:?}");
        assert_eq!(path[2], Step::Index(1));
        assert_eq!(
            path[3],
            Step::Key("useRequestIdForTraceSampling".to_owned())
        );
    }

    #[test]
    fn honoured_fields_are_silent() {
        let peer = json!({"mtls": {"mode": "STRICT"}, "selector": {"matchLabels": {"a": "b"}},
            "portLevelMtls": {"80": {"mode": "DISABLE"}}});
        assert_eq!(reported(Kind::PeerAuthentication, peer), []);
    }

    #[test]
    fn keys_are_listed_once() {
        for (position, row) in keys().enumerate() {
            let again = keys()
                .take(position)
                .any(|other| other.place == row.place && other.key == row.key);
            assert!(!again, "{} has two rows", row.key);
        }
    }
}
