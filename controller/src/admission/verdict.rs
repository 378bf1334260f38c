//! The decision about one object: refused, or taken with warnings. Pure.

use karst_ca::authorize::Account;
use karst_files::{Complaint, Severity};
use karst_index::{check_destination_rule, check_route, check_virtual_service};
use karst_k8s_api::{
    Kind,
    decode::decode,
    honoured::{REFUSED_KINDS, RefusedKind},
    labels,
};
use serde_json::{Value, json};

use super::Surroundings;

/// Warnings that one answer carries; the API server cuts longer lists.
const WARNINGS_MAX: usize = 16;
/// Bytes of one warning; the API server cuts longer ones.
const WARNING_BYTES_MAX: usize = 250;
/// Mistakes that one refusal names.
const MISTAKES_MAX: usize = 8;

/// What the API server wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    /// Deleting is never refused; nothing is said about it.
    Other,
}

/// One object, and what is to happen to it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub operation: Operation,
    pub object: &'a Value,
    /// The object as it is stored, for an update.
    pub old: &'a Value,
}

/// What the author is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the object is refused.
    pub denied: Option<String>,
    pub warnings: Vec<String>,
}

/// Decides.
pub fn verdict(surroundings: &Surroundings, asked: &Asked<'_>) -> Verdict {
    if asked.operation == Operation::Other {
        return Verdict::default();
    }
    // Finalizers and labels of an object that is wrong for long must remain changeable, else it could not be deleted.
    let same_meaning = asked.operation == Operation::Update
        && asked.object.get("spec") == asked.old.get("spec")
        && asked.object.pointer("/metadata/annotations")
            == asked.old.pointer("/metadata/annotations");
    let mut complaints = complaints(surroundings, asked);
    if same_meaning {
        complaints
            .iter_mut()
            .for_each(|complaint| complaint.severity = Severity::Warning);
    }
    answer(complaints)
}

fn complaints(surroundings: &Surroundings, asked: &Asked<'_>) -> Vec<Complaint> {
    let refused = |row: &&RefusedKind| row.kind == asked.kind && row.group == asked.group;
    if let Some(row) = REFUSED_KINDS.iter().find(refused) {
        return vec![error(
            "kind",
            format!("{} is refused: {}", row.kind, row.note),
        )];
    }
    let api_version = match asked.group {
        "" => asked.version.to_owned(),
        group => format!("{group}/{}", asked.version),
    };
    match Kind::of(&api_version, asked.kind) {
        Ok(kind) => {
            let mut all = karst_files::check(kind, asked.object);
            all.extend(in_place(surroundings, kind, asked.object));
            all.extend(unknown_waypoint(surroundings, kind, asked.object));
            all.extend(route(kind, asked.object));
            all
        }
        // Other workloads with a pod template are looked at like a Deployment.
        Err(_) if asked.object.pointer("/spec/template/metadata").is_some() => {
            karst_files::check(Kind::Deployment, asked.object)
        }
        Err(_) => Vec::new(),
    }
}

/// What is wrong only where the object stands.
fn in_place(surroundings: &Surroundings, kind: Kind, object: &Value) -> Option<Complaint> {
    let in_root =
        object.pointer("/metadata/namespace") == Some(&json!(surroundings.root_namespace));
    match kind {
        Kind::PeerAuthentication if in_root && selects(object) => {
            let message = "a PeerAuthentication of the root namespace holds for the whole mesh, and with a selector it holds for nothing: put it into the workloads' namespace";
            Some(error("spec.selector", message.to_owned()))
        }
        Kind::AuthorizationPolicy if !in_root && targets_class(object) => {
            let message = format!(
                "a GatewayClass is targeted only from the root namespace ({}): target the Gateway instead",
                surroundings.root_namespace
            );
            Some(error("spec.targetRefs", message))
        }
        _ => None,
    }
}

fn selects(object: &Value) -> bool {
    let labels = object.pointer("/spec/selector/matchLabels");
    let labels = labels.and_then(Value::as_object);
    labels.is_some_and(|labels| !labels.is_empty())
}

fn targets_class(object: &Value) -> bool {
    let many = object.pointer("/spec/targetRefs").and_then(Value::as_array);
    let mut targets = many
        .into_iter()
        .flatten()
        .chain(object.pointer("/spec/targetRef"));
    targets.any(|target| target["kind"] == "GatewayClass")
}

/// A label that names a waypoint which does not exist: it binds nothing until that is there.
fn unknown_waypoint(surroundings: &Surroundings, kind: Kind, object: &Value) -> Option<Complaint> {
    let takes = matches!(
        kind,
        Kind::Namespace | Kind::Service | Kind::ServiceEntry | Kind::Pod
    );
    let metadata = object.get("metadata").filter(|_| takes)?;
    let label = |name: &str| metadata.get("labels")?.get(name)?.as_str();
    let name = label(labels::USE_WAYPOINT).filter(|name| *name != labels::USE_WAYPOINT_NONE)?;
    let own = match kind {
        Kind::Namespace => metadata.get("name"),
        _ => metadata.get("namespace"),
    };
    let own = own.and_then(Value::as_str).unwrap_or_default();
    let namespace = label(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(own);
    let account = Account {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
    };
    (!surroundings.waypoints.contains(&account)).then(|| Complaint {
        severity: Severity::Warning,
        field: format!("metadata.labels[{:?}]", labels::USE_WAYPOINT),
        message: format!(
            "there is no waypoint {namespace}/{name}: until there is, traffic goes as without it"
        ),
    })
}

/// Faults of a route that its status will name. Never a refusal: the kind belongs to other controllers too.
fn route(kind: Kind, object: &Value) -> Vec<Complaint> {
    let check = match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => check_route,
        Kind::VirtualService => check_virtual_service,
        Kind::DestinationRule => check_destination_rule,
        _ => return Vec::new(),
    };
    let read = decode(kind, object.clone()).object;
    let faults = read.map(|route| check(&route)).unwrap_or_default();
    let complaint = |message| Complaint {
        severity: Severity::Warning,
        field: String::new(),
        message,
    };
    faults.into_iter().map(complaint).collect()
}

fn error(field: &str, message: String) -> Complaint {
    Complaint {
        severity: Severity::Error,
        field: field.to_owned(),
        message,
    }
}

fn answer(complaints: Vec<Complaint>) -> Verdict {
    let (errors, warnings): (Vec<_>, Vec<_>) = complaints
        .iter()
        .partition(|complaint| complaint.severity == Severity::Error);
    let mut texts: Vec<String> = warnings.into_iter().map(text).collect();
    texts.iter_mut().for_each(cut);
    if texts.len() > WARNINGS_MAX {
        let more = texts.len() - (WARNINGS_MAX - 1);
        texts.truncate(WARNINGS_MAX - 1);
        texts.push(format!("and {more} more of this kind"));
    }
    let mut mistakes: Vec<String> = errors
        .iter()
        .copied()
        .take(MISTAKES_MAX)
        .map(text)
        .collect();
    if errors.len() > MISTAKES_MAX {
        mistakes.push(format!("and {} more", errors.len() - MISTAKES_MAX));
    }
    Verdict {
        denied: (!mistakes.is_empty()).then(|| mistakes.join("; ")),
        warnings: texts,
    }
}

fn text(complaint: &Complaint) -> String {
    match complaint.field.as_str() {
        "" => complaint.message.clone(),
        field => format!("{field}: {}", complaint.message),
    }
}

fn cut(text: &mut String) {
    if text.len() > WARNING_BYTES_MAX {
        let end = text.floor_char_boundary(WARNING_BYTES_MAX - 3);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(group: &str, kind: &str, operation: Operation, object: Value, old: Value) -> Verdict {
        let surroundings = Surroundings {
            root_namespace: "root".into(),
            ..Surroundings::default()
        };
        verdict(
            &surroundings,
            &Asked {
                group,
                version: "v1",
                kind,
                operation,
                object: &object,
                old: &old,
            },
        )
    }

    #[test]
    fn a_wrong_policy_is_refused_with_its_field() {
        let policy = json!({"spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}});
        let verdict = ask(
            "security.istio.io",
            "AuthorizationPolicy",
            Operation::Create,
            policy,
            Value::Null,
        );
        let denied = verdict.denied.unwrap();
        assert!(
            denied.starts_with("spec.rules[0].to[0].operation.ports[0]: \"http\", expected a port"),
            "{denied}"
        );
    }

    #[test]
    fn kinds_of_envoy_are_refused_and_may_still_be_deleted() {
        let filter = json!({"metadata": {"finalizers": ["x"]}, "spec": {"priority": 1}});
        let asked = |operation, object: &Value| {
            ask(
                "networking.istio.io",
                "EnvoyFilter",
                operation,
                object.clone(),
                filter.clone(),
            )
        };
        assert!(
            asked(Operation::Create, &filter)
                .denied
                .unwrap()
                .contains("no Envoy")
        );
        let released = json!({"metadata": {}, "spec": {"priority": 1}});
        let verdict = asked(Operation::Update, &released);
        assert_eq!((verdict.denied, verdict.warnings.len()), (None, 1));
        assert!(
            asked(Operation::Update, &json!({"spec": {"priority": 2}}))
                .denied
                .is_some()
        );
        assert_eq!(asked(Operation::Other, &filter), Verdict::default());
    }

    #[test]
    fn labels_warn_and_never_refuse() {
        let namespace =
            json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "Ambient"}}});
        let verdict = ask("", "Namespace", Operation::Create, namespace, Value::Null);
        assert_eq!(verdict.denied, None);
        assert!(
            verdict.warnings[0].contains("ambient or none"),
            "{verdict:?}"
        );
        let set = json!({"spec": {"template": {"metadata": {"labels": {"istio.io/dataplane-mod": "none"}}}}});
        let verdict = ask("apps", "StatefulSet", Operation::Create, set, Value::Null);
        assert!(
            verdict.warnings[0].starts_with("spec.template.metadata.labels"),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_selector_in_the_root_namespace_is_refused() {
        let peer = json!({"metadata": {"namespace": "root"}, "spec": {"mtls": {"mode": "STRICT"}, "selector": {"matchLabels": {"a": "b"}}}});
        let verdict = ask(
            "security.istio.io",
            "PeerAuthentication",
            Operation::Create,
            peer,
            Value::Null,
        );
        assert!(verdict.denied.unwrap().contains("holds for nothing"));
    }

    #[test]
    fn many_mistakes_stay_readable() {
        let ports: Vec<String> = (0..100).map(|n| format!("p{n}")).collect();
        let policy = json!({"spec": {"rules": [{"to": [{"operation": {"ports": ports}}]}]}});
        let verdict = ask(
            "security.istio.io",
            "AuthorizationPolicy",
            Operation::Create,
            policy,
            Value::Null,
        );
        assert!(verdict.denied.unwrap().ends_with("and 92 more"));
    }
}
