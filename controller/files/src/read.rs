//! From a file's text to objects: identity first, then the fields, each trouble with its place.

use std::{collections::BTreeMap, path::Path};

use karst_k8s_api::{
    Kind, KindError, Object, ObjectKey,
    decode::{self, Place},
};

use crate::{
    MAX_FILE_BYTES, documents,
    problem::{Problem, Severity},
    requirements,
    tree::{self, Node, Position, Step, Value, display_path},
};

/// Reads a file's text: the objects that can be used, and everything that is wrong.
pub fn parse(file: &Path, text: &str) -> (Vec<Object>, Vec<Problem>) {
    let contents = read(file, text);
    let good = contents
        .documents
        .into_iter()
        .filter_map(|document| match document {
            Document::Good { object, .. } => Some(*object),
            Document::Broken(_) | Document::Unnamed => None,
        });
    (good.collect(), contents.problems)
}

/// What a file's text gives.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) documents: Vec<Document>,
    pub(crate) problems: Vec<Problem>,
}

/// One object of a file, or what stands in its place. Kinds that nobody reads leave none.
#[derive(Debug)]
pub(crate) enum Document {
    Good {
        key: ObjectKey,
        object: Box<Object>,
        line: u64,
    },
    /// Known which object is meant, but not what it says.
    Broken(ObjectKey),
    /// Not even known which object is meant.
    Unnamed,
}

pub(crate) fn read(file: &Path, text: &str) -> Contents {
    let mut reader = Reader {
        file,
        seen: BTreeMap::new(),
        contents: Contents::default(),
    };
    if text.len() > MAX_FILE_BYTES {
        let message = format!(
            "{} bytes, and at most {MAX_FILE_BYTES} are read: split the file",
            text.len()
        );
        reader.unnamed(Position::default(), message);
        return reader.contents;
    }
    for document in documents::split(text) {
        match tree::parse(document.text, document.lines_before) {
            Ok(nodes) => nodes.iter().for_each(|node| reader.object(node, None)),
            Err(error) => reader.unnamed(error.position, error.message),
        }
    }
    reader.contents
}

struct Reader<'a> {
    file: &'a Path,
    /// Line of the first definition of each object.
    seen: BTreeMap<ObjectKey, u64>,
    contents: Contents,
}

impl Reader<'_> {
    /// Reads one object. `inherited` are apiVersion and kind that a typed list gives its items.
    fn object(&mut self, node: &Node, inherited: Option<(&str, &str)>) {
        if !matches!(node.value, Value::Map(_)) {
            return self.unnamed(
                node.position,
                "expected an object with apiVersion, kind and metadata".to_owned(),
            );
        }
        let field = |name: &str| node.get(name).and_then(Node::text);
        let api_version =
            field("apiVersion").or_else(|| inherited.map(|(api_version, _)| api_version));
        let kind = field("kind").or_else(|| inherited.map(|(_, kind)| kind));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            return self.unnamed(
                node.position,
                format!("missing field `{missing}`, expected a text"),
            );
        };
        match Kind::of(api_version, kind) {
            Ok(kind) => self.known(node, kind, (api_version, kind.name())),
            Err(_) if kind.ends_with("List") && node.get("items").is_some() => {
                self.list(node, api_version, kind)
            }
            Err(error) => self.unread_kind(node, &error),
        }
    }

    /// A `kind: List`, or a typed one such as `PodList`.
    fn list(&mut self, node: &Node, api_version: &str, kind: &str) {
        let item_kind = kind.trim_end_matches("List");
        let inherited = (!item_kind.is_empty()).then_some((api_version, item_kind));
        for item in node.get("items").map(Node::items).unwrap_or_default() {
            self.object(item, inherited);
        }
    }

    fn unread_kind(&mut self, node: &Node, error: &KindError) {
        let position = node.position_of(&[Step::Key("kind".to_owned())]);
        match error {
            KindError::Unknown { .. } => {
                self.problem(
                    Severity::Warning,
                    position,
                    None,
                    "kind",
                    format!("{error}; the object is left out"),
                );
                // Without a name it may be the start of something that is still being written.
                if node
                    .get("metadata")
                    .and_then(|meta| meta.get("name"))
                    .is_none()
                {
                    self.contents.documents.push(Document::Unnamed);
                }
            }
            KindError::Version { .. } => {
                let position = node.position_of(&[Step::Key("apiVersion".to_owned())]);
                self.problem(
                    Severity::Error,
                    position,
                    None,
                    "apiVersion",
                    error.to_string(),
                );
                self.contents.documents.push(Document::Unnamed);
            }
        }
    }

    fn known(&mut self, node: &Node, kind: Kind, (api_version, kind_name): (&str, &str)) {
        let Some(key) = self.identity(node, kind) else {
            return;
        };
        if let Some(first) = self.seen.get(&key) {
            let message = format!(
                "also defined in line {first} of this file, which is used; remove one of the two"
            );
            return self.problem(Severity::Error, node.position, Some(&key), "", message);
        }
        self.seen.insert(key.clone(), node.position.line);
        let findings = Findings::of(node, kind, api_version, kind_name);
        let refused = findings
            .list
            .iter()
            .any(|finding| finding.severity == Severity::Error);
        for Finding {
            severity,
            path,
            message,
        } in findings.list
        {
            self.problem(
                severity,
                node.position_of(&path),
                Some(&key),
                &display_path(&path),
                message,
            );
        }
        self.contents.documents.push(match findings.object {
            Some(object) if !refused => Document::Good {
                key,
                object: Box::new(object),
                line: node.position.line,
            },
            _ => Document::Broken(key),
        });
    }

    /// Which object this is, or nothing after saying why it cannot be told.
    fn identity(&mut self, node: &Node, kind: Kind) -> Option<ObjectKey> {
        let meta = node.get("metadata");
        let part = |name: &str| meta.and_then(|meta| meta.get(name));
        let name = name_in(part("name")).and_then(|name| match name {
            "" => Err(format!(
                "missing field `metadata.name`, expected the name of this {kind}"
            )),
            name => Ok(name),
        });
        match (name, name_in(part("namespace"))) {
            (Ok(name), Ok(namespace)) => Some(ObjectKey::new(kind, namespace, name)),
            (Err(message), _) => self.unidentified(node, "name", message),
            (_, Err(message)) => self.unidentified(node, "namespace", message),
        }
    }

    fn unidentified<T>(&mut self, node: &Node, field: &str, message: String) -> Option<T> {
        let path = [
            Step::Key("metadata".to_owned()),
            Step::Key(field.to_owned()),
        ];
        let position = node.position_of(&path);
        self.problem(
            Severity::Error,
            position,
            None,
            &display_path(&path),
            message,
        );
        self.contents.documents.push(Document::Unnamed);
        None
    }

    fn unnamed(&mut self, position: Position, message: String) {
        self.problem(Severity::Error, position, None, "", message);
        self.contents.documents.push(Document::Unnamed);
    }

    fn problem(
        &mut self,
        severity: Severity,
        at: Position,
        object: Option<&ObjectKey>,
        field: &str,
        message: String,
    ) {
        self.contents.problems.push(Problem {
            severity,
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            object: object.cloned(),
            field: field.to_owned(),
            message,
        });
    }
}

/// The name that a field gives; empty where it gives none.
fn name_in(field: Option<&Node>) -> Result<&str, String> {
    match field.map(|field| &field.value) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::Text(text)) if requirements::is_object_name(text) => Ok(text),
        Some(Value::Text(text)) => Err(format!(
            "{text:?} is no name: expected lower-case letters, digits, '-' and '.'"
        )),
        // YAML reads n, y, no, on and numbers as something else than text.
        Some(_) => Err("is no text, expected a name; put it in quotes".to_owned()),
    }
}

/// Something wrong inside one object.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) path: Vec<Step>,
    pub(crate) message: String,
}

/// Everything that is wrong with one object as the API server holds it, or would hold it: what an author is told at
/// admission, in the same words as for a file.
///
/// Unknown fields of Kubernetes' own kinds are fine, since the API server may be newer; so are their missing ones, which
/// the API server has checked.
pub fn check(kind: Kind, object: &serde_json::Value) -> Vec<Complaint> {
    let mut list = Vec::new();
    if kind.is_shipped() {
        requirements::check(kind, object, &mut list);
        // Status belongs to controllers, and is no part of what the author wrote.
        let mut written = object.clone();
        if let Some(fields) = written.as_object_mut() {
            fields.remove("status");
        }
        decode(kind, written, Severity::Error, &mut list);
    } else {
        requirements::check_meaning(kind, object, &mut list);
    }
    let complaint = |finding: Finding| Complaint {
        severity: finding.severity,
        field: display_path(&finding.path),
        message: finding.message,
    };
    list.into_iter().map(complaint).collect()
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub severity: Severity,
    /// Path inside the object, for example `spec.ports[0].targetPort`; empty for the object itself.
    pub field: String,
    /// What is wrong, and what was expected instead.
    pub message: String,
}

/// An object as far as it could be read, and all that is wrong with it.
struct Findings {
    object: Option<Object>,
    list: Vec<Finding>,
}

impl Findings {
    fn of(node: &Node, kind: Kind, api_version: &str, kind_name: &str) -> Self {
        let mut list = Vec::new();
        // A policy with a misspelt or empty field would mean something else, mostly something weaker.
        let strict = if kind.is_shipped() {
            Severity::Error
        } else {
            Severity::Warning
        };
        let mut on_null = |path: &[Step]| {
            let expected = path
                .iter()
                .any(|step| *step == Step::Key("creationTimestamp".to_owned()));
            if !expected {
                let message = "has no value; expected one, or the field left out".to_owned();
                list.push(Finding {
                    severity: strict,
                    path: path.to_vec(),
                    message,
                });
            }
        };
        let mut json = node.to_json(&mut Vec::new(), &mut on_null);
        requirements::quantities_as_text(&mut json);
        if let serde_json::Value::Object(map) = &mut json {
            map.insert("apiVersion".to_owned(), api_version.into());
            map.insert("kind".to_owned(), kind_name.into());
        }
        requirements::check(kind, &json, &mut list);
        let object = decode(kind, json, strict, &mut list);
        Self { object, list }
    }
}

fn decode(
    kind: Kind,
    json: serde_json::Value,
    strict: Severity,
    list: &mut Vec<Finding>,
) -> Option<Object> {
    let decoded = decode::decode(kind, json);
    list.extend(decoded.unknown.into_iter().map(|place| Finding {
        severity: strict,
        path: steps(place),
        message: "unknown field".to_owned(),
    }));
    let wrong = |(place, message)| {
        list.push(Finding {
            severity: Severity::Error,
            path: steps(place),
            message,
        });
    };
    decoded.object.map_err(wrong).ok()
}

fn steps(place: Place) -> Vec<Step> {
    let step = |step| match step {
        decode::Step::Key(key) => Step::Key(key),
        decode::Step::Index(index) => Step::Index(index),
    };
    place.0.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests;
