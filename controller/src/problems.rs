//! What is wrong with the configuration now: for the log (each once) and for `/debug/problems`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashSet;
use karst_files::{Problem, Severity};
use karst_index::{Condition, ObjectConditions};
use karst_k8s_api::ObjectKey;
use serde_json::{Value, json};

use crate::watch::Complaint;

/// The present problems.
#[derive(Default)]
pub struct Problems {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The directory itself cannot be read.
    directory: Option<String>,
    files: Vec<Problem>,
    /// Objects of the Kubernetes API that cannot be used as they are written.
    objects: BTreeMap<ObjectKey, Vec<Complaint>>,
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
}

impl Problems {
    /// The directory cannot be read; what was read before stays.
    pub fn set_directory(&self, problem: String) {
        let mut inner = self.lock();
        if inner.directory.as_ref() != Some(&problem) {
            tracing::error!(
                problem,
                "configuration cannot be read; the last good state stays"
            );
        }
        inner.directory = Some(problem);
    }

    /// All problems of the files, after a look at the directory.
    pub fn set_files(&self, problems: Vec<Problem>) {
        let mut inner = self.lock();
        inner.directory = None;
        let known: HashSet<String> = inner.files.iter().map(text).collect();
        for problem in problems
            .iter()
            .filter(|problem| !known.contains(&text(problem)))
        {
            match problem.severity {
                Severity::Error => tracing::error!(
                    problem = text(problem),
                    "configuration not used; the last good state of the object stays"
                ),
                Severity::Warning => tracing::warn!(problem = text(problem), "configuration"),
            }
        }
        inner.files = problems;
    }

    /// What is wrong with an object of the Kubernetes API; nothing takes it off the list.
    pub fn set_object(&self, key: &ObjectKey, complaints: Vec<Complaint>) {
        let mut inner = self.lock();
        if complaints.is_empty() {
            inner.objects.remove(key);
            return;
        }
        for Complaint { field, message } in &complaints {
            tracing::error!(object = %key, field, message, "object cannot be used as it is written; its last good form stays");
        }
        inner.objects.insert(key.clone(), complaints);
    }

    /// What the index says about objects that have just changed.
    pub fn set_conditions(&self, changed: &[ObjectConditions]) {
        let mut inner = self.lock();
        for object in changed {
            let known = inner.conditions.remove(&object.object).unwrap_or_default();
            for condition in object
                .conditions
                .iter()
                .filter(|c| !c.status && !known.contains(c))
            {
                tracing::warn!(
                    object = %object.object,
                    condition = %condition.kind,
                    reason = condition.reason,
                    message = condition.message,
                    "not as written"
                );
            }
            if !object.conditions.is_empty() {
                inner
                    .conditions
                    .insert(object.object.clone(), object.conditions.clone());
            }
        }
    }

    /// Everything as JSON: `files` with place and message, `objects` with field and message, `conditions` by object.
    pub fn json(&self) -> Value {
        let inner = self.lock();
        let files: Vec<Value> = inner.files.iter().map(file_json).collect();
        let conditions: Vec<Value> = inner
            .conditions
            .iter()
            .map(|(object, all)| object_json(object, all))
            .collect();
        let objects: Vec<Value> = inner
            .objects
            .iter()
            .map(|(object, complaints)| complaints_json(object, complaints))
            .collect();
        json!({ "directory": inner.directory, "files": files, "objects": objects, "conditions": conditions })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `file:line:column: object: field: message`, leaving out what is unknown.
fn text(problem: &Problem) -> String {
    let mut text = problem.file.display().to_string();
    if problem.line > 0 {
        text += &format!(":{}:{}", problem.line, problem.column);
    }
    let object = problem.object.as_ref().map(ToString::to_string);
    let field = (!problem.field.is_empty()).then(|| problem.field.clone());
    for part in object.into_iter().chain(field) {
        text += &format!(": {part}");
    }
    format!("{text}: {}", problem.message)
}

fn file_json(problem: &Problem) -> Value {
    json!({
        "severity": match problem.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "file": problem.file.display().to_string(),
        "line": problem.line,
        "column": problem.column,
        "object": problem.object.as_ref().map(ToString::to_string),
        "field": problem.field,
        "message": problem.message,
    })
}

fn complaints_json(object: &ObjectKey, complaints: &[Complaint]) -> Value {
    let complaints: Vec<Value> = complaints
        .iter()
        .map(|Complaint { field, message }| json!({ "field": field, "message": message }))
        .collect();
    json!({ "object": object.to_string(), "problems": complaints })
}

fn object_json(object: &ObjectKey, conditions: &[Condition]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|c| json!({ "type": c.kind.to_string(), "status": c.status, "reason": c.reason, "message": c.message }))
        .collect();
    json!({ "object": object.to_string(), "conditions": conditions })
}
