//! A YAML or JSON document as values that know where they stand.
//!
//! Parsing happens once, into this tree; objects are read from its plain JSON form, and whatever is wrong with a field
//! finds its line here. Anchors, depth and size are bounded, see [`options`].

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{Options, Spanned, options::DuplicateKeyPolicy};

/// Where something starts: line and column from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) position: Position,
    pub(crate) value: Node,
}

/// Text that is no YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) position: Position,
    pub(crate) message: String,
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// Reads the documents of `text`, which starts after so many lines of its file.
pub(crate) fn parse(text: &str, lines_before: u64) -> Result<Vec<Node>, SyntaxError> {
    let mut nodes: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| syntax_error(&error))
        .map_err(|mut error| {
            error.position.line += lines_before;
            error
        })?;
    nodes.iter_mut().for_each(|node| node.shift(lines_before));
    Ok(nodes)
}

/// Bounds for one document; each is far above what Kubernetes objects need. `yes` and `0644` mean what they mean to
/// kubectl (YAML 1.1).
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 1_000_000,
            max_events: 4_000_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_total_scalar_bytes: 2 * crate::MAX_FILE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000, max_replay_stack_depth: 16 },
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        emit_comments: false,
    }
}

fn syntax_error(error: &serde_saphyr::Error) -> SyntaxError {
    let position = error
        .location()
        .map_or_else(Position::default, |at| Position {
            line: at.line(),
            column: at.column(),
        });
    let mut message = plain_message(error);
    if message.contains("tab") {
        message.push_str("; YAML is indented with spaces");
    }
    SyntaxError { position, message }
}

/// The message without the place, which is told apart.
fn plain_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    first
        .rsplit_once(" at line ")
        .map_or(first, |(message, _)| message)
        .trim()
        .to_owned()
}

impl Node {
    /// The value under a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list; nothing for anything else.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Where the place that a path names starts: the key for a field of a map, else the value; the deepest part that
    /// is there.
    pub(crate) fn position_of(&self, path: &[Step]) -> Position {
        let Some((step, rest)) = path.split_first() else {
            return self.position;
        };
        match (step, &self.value) {
            (Step::Key(key), Value::Map(entries)) => {
                match entries.iter().find(|entry| entry.key == *key) {
                    Some(entry) if rest.is_empty() => entry.position,
                    Some(entry) => entry.value.position_of(rest),
                    None => self.position,
                }
            }
            (Step::Index(index), Value::List(items)) => items
                .get(*index)
                .map_or(self.position, |item| item.position_of(rest)),
            _ => self.position,
        }
    }

    /// The plain value. Keys without a value are left out, as the API server reads them; `on_null` is told their path.
    pub(crate) fn to_json(
        &self,
        path: &mut Vec<Step>,
        on_null: &mut impl FnMut(&[Step]),
    ) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::Text(value) => value.clone().into(),
            Value::List(items) => {
                let element = |(index, item): (usize, &Self)| {
                    path.push(Step::Index(index));
                    let json = item.to_json(path, on_null);
                    path.pop();
                    json
                };
                items.iter().enumerate().map(element).collect()
            }
            Value::Map(entries) => {
                let mut map = serde_json::Map::new();
                for entry in entries {
                    path.push(Step::Key(entry.key.clone()));
                    match entry.value.value {
                        Value::Null => on_null(path),
                        _ => {
                            drop(map.insert(entry.key.clone(), entry.value.to_json(path, on_null)))
                        }
                    }
                    path.pop();
                }
                map.into()
            }
        }
    }

    fn shift(&mut self, lines: u64) {
        self.position.line += lines;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.position.line += lines;
                    entry.value.shift(lines);
                }
            }
            _ => {}
        }
    }
}

/// `spec.ports[0].name`.
pub(crate) fn display_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) if key.contains(['.', '/']) => text.push_str(&format!("[{key:?}]")),
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
        }
    }
    text
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let position = Position {
            line: spanned.referenced.line(),
            column: spanned.referenced.column(),
        };
        Ok(Self {
            position,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let position = Position {
                line: key.referenced.line(),
                column: key.referenced.column(),
            };
            entries.push(Entry {
                key: key.value,
                position,
                value: map.next_value()?,
            });
        }
        Ok(Value::Map(entries))
    }
}
