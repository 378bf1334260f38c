//! What an API server keeps: objects, their versions, and what has changed since which version.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// An object or a collection, by path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// Group, version and plural, as in paths.
    kind: String,
    namespace: String,
    /// Empty for a collection.
    pub(crate) name: String,
    is_status: bool,
}

impl Target {
    pub(crate) fn of(path: &str) -> Self {
        let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (prefix, rest) = words.split_at(if words[0] == "api" { 2 } else { 3 });
        let is_namespaced = rest[0] == "namespaces" && rest.len() > 2 && rest[2] != "status";
        let (namespace, rest) = match is_namespaced {
            true => (rest[1], &rest[2..]),
            false => ("", rest),
        };
        Self {
            kind: format!("{}/{}", prefix.join("/"), rest[0]),
            namespace: namespace.to_owned(),
            name: rest.get(1).copied().unwrap_or_default().to_owned(),
            is_status: rest.get(2) == Some(&"status"),
        }
    }

    fn key(&self) -> Key {
        (self.kind.clone(), self.namespace.clone(), self.name.clone())
    }

    fn holds(&self, (kind, namespace, _): &Key) -> bool {
        self.kind == *kind && (self.namespace.is_empty() || self.namespace == *namespace)
    }
}

type Key = (String, String, String);

/// Why not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    NotFound,
    Exists,
    Conflict,
}

impl Refusal {
    pub(crate) fn answer(self) -> (u16, Value) {
        let (code, reason) = match self {
            Self::NotFound => (404, "NotFound"),
            Self::Exists => (409, "AlreadyExists"),
            Self::Conflict => (409, "Conflict"),
        };
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
            "code": code, "message": reason});
        (code, status)
    }
}

/// A change: its version, what happened, to which object.
type Change = (u64, &'static str, Value);

#[derive(Clone, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    log: Vec<(Key, Change)>,
    /// Changes up to this version are forgotten.
    compacted: u64,
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
    }

    pub(crate) fn get(&self, target: &Target) -> Option<&Value> {
        self.objects.get(&target.key())
    }

    pub(crate) fn list(&self, target: &Target, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let inside = self.objects.iter().filter(|(key, _)| target.holds(key));
        let objects = inside.map(|(_, object)| object);
        objects.filter(|object| wanted(object)).cloned().collect()
    }

    pub(crate) fn page(&self, target: &Target, wanted: impl Fn(&Value) -> bool) -> Value {
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": self.version.to_string()},
            "items": self.list(target, wanted)})
    }

    /// What has changed after a version; None where that is forgotten.
    pub(crate) fn since(&self, target: &Target, version: u64) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        let after = self
            .log
            .iter()
            .filter(|(key, change)| change.0 > version && target.holds(key));
        Some(after.map(|(_, change)| change.clone()).collect())
    }

    /// The object as it is now, made or changed; one that does not differ keeps its version.
    pub(crate) fn put(&mut self, target: &Target, mut object: Value) -> Value {
        let key = target.key();
        let before = self.objects.get(&key);
        let (uid, generation) = match before {
            Some(before) => {
                let meta = &before["metadata"];
                let same = before["spec"] == object["spec"];
                let generation = meta["generation"].as_u64().unwrap_or_default();
                (meta["uid"].clone(), generation + u64::from(!same))
            }
            None => (json!(format!("uid-{}", self.version + 1)), 1),
        };
        let meta = &mut object["metadata"];
        meta["name"] = json!(key.2);
        if !key.1.is_empty() {
            meta["namespace"] = json!(key.1);
        }
        meta["uid"] = uid;
        meta["generation"] = json!(generation);
        meta["resourceVersion"] = before.map_or(Value::Null, |before| {
            before["metadata"]["resourceVersion"].clone()
        });
        if before == Some(&object) {
            return object;
        }
        let what = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.log.push((key, (self.version, what, object.clone())));
        object
    }

    pub(crate) fn delete(&mut self, target: &Target) {
        let key = target.key();
        if let Some(mut object) = self.objects.remove(&key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.log.push((key, (self.version, "DELETED", object)));
        }
    }

    pub(crate) fn create(&mut self, target: &Target, object: Value) -> Result<Value, Refusal> {
        let named = object.pointer("/metadata/name").and_then(Value::as_str);
        let name = named.map_or_else(|| format!("made-{}", self.version + 1), str::to_owned);
        let target = Target {
            name,
            ..target.clone()
        };
        match self.get(&target) {
            Some(_) => Err(Refusal::Exists),
            None => Ok(self.put(&target, object)),
        }
    }

    pub(crate) fn replace(&mut self, target: &Target, object: Value) -> Result<Value, Refusal> {
        self.check(target, &object)?;
        Ok(self.put(target, object))
    }

    /// Applied or merged, which is the same to those who write whole fields. Of a status nothing else is taken.
    pub(crate) fn patch(&mut self, target: &Target, patch: &Value) -> Result<Value, Refusal> {
        match (self.check(target, patch), target.is_status) {
            (Err(Refusal::NotFound), false) => return Ok(self.put(target, patch.clone())),
            (checked, _) => checked?,
        }
        let mut object = self.get(target).cloned().unwrap_or_default();
        match target.is_status {
            true => merge(&mut object["status"], &patch["status"]),
            false => merge(&mut object, patch),
        }
        Ok(self.put(target, object))
    }

    /// That it is there, and in the version that the writer has seen, if it says one.
    fn check(&self, target: &Target, written: &Value) -> Result<(), Refusal> {
        let present = self.get(target).ok_or(Refusal::NotFound)?;
        let named = &written["metadata"]["resourceVersion"];
        match named.is_null() || *named == present["metadata"]["resourceVersion"] {
            true => Ok(()),
            false => Err(Refusal::Conflict),
        }
    }
}

fn merge(into: &mut Value, from: &Value) {
    let Value::Object(fields) = from else {
        *into = from.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        merge(&mut into[name], value);
    }
}
