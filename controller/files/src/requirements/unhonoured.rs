//! What is set and this version does not honour, by the table of `karst_k8s_api::honoured`.

use karst_k8s_api::{
    Kind,
    honoured::{self, Unhonoured, Verdict},
};
use serde_json::Value;

use crate::{problem::Severity, read::Finding, tree::Step};

pub(super) fn check(kind: Kind, object: &Value, findings: &mut Vec<Finding>) {
    findings.extend(honoured::unhonoured(kind, object).into_iter().map(finding));
}

fn finding(found: Unhonoured) -> Finding {
    let (severity, word) = match found.verdict {
        Verdict::Refused => (Severity::Error, "refused"),
        Verdict::NotYet => (Severity::Warning, "not honoured yet"),
        Verdict::NoEffect | Verdict::Honoured => (Severity::Warning, "has no effect"),
    };
    let step = |step: honoured::Step| match step {
        honoured::Step::Key(key) => Step::Key(key),
        honoured::Step::Index(index) => Step::Index(index),
    };
    Finding {
        severity,
        path: found.path.into_iter().map(step).collect(),
        message: format!("{word}: {}", found.note),
    }
}
