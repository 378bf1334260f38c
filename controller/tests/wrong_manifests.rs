//! Deliberately wrong manifests: each is refused, or taken with a warning and a False condition, as its first line says;
//! and none that is taken leaves traffic allowed that its author meant to refuse.
//!
//! `tests/fixtures/wrong/NN-*.yaml`: `# denied: text` or `# warning: text`, then maybe `# meant to refuse: <caller>`.
//! The cluster rung runs the same files through a real API server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use karst_controller::{
    admission::{Asked, Operation, Surroundings, Verdict, verdict},
    status::{Ledger, Reach, RouteLedger},
};
use karst_index::{Delta, Event, Index, IndexConfig};
use karst_k8s_api::{Kind, Object};
use karst_model::workload::Workload;
use karst_policy::{Compiled, Connection, applies};
use serde_json::{Value, json};

const ROOT_NAMESPACE: &str = "karst-system";
const NOW: &str = "2026-01-01T00:00:00Z";

/// One file: what it holds and what its comments promise.
struct Manifest {
    name: String,
    denied: Option<String>,
    warning: Option<String>,
    meant_to_refuse: Option<String>,
    object: Value,
}

fn manifests() -> Vec<Manifest> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/wrong");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|path| manifest(path)).collect()
}

fn manifest(path: &Path) -> Manifest {
    let text = fs::read_to_string(path).unwrap();
    let comment = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("# {name}: ")))
            .map(str::to_owned)
    };
    Manifest {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        denied: comment("denied"),
        warning: comment("warning"),
        meant_to_refuse: comment("meant to refuse"),
        object: serde_saphyr::from_str(&text).unwrap(),
    }
}

impl Manifest {
    fn text(&self, field: &str) -> &str {
        self.object[field].as_str().unwrap()
    }

    fn verdict(&self) -> Verdict {
        let (group, version) = self
            .text("apiVersion")
            .rsplit_once('/')
            .unwrap_or_else(|| ("", self.text("apiVersion")));
        let surroundings = Surroundings {
            root_namespace: ROOT_NAMESPACE.into(),
            ..Surroundings::default()
        };
        verdict(
            &surroundings,
            &Asked {
                group,
                version,
                kind: self.text("kind"),
                operation: Operation::Create,
                object: &self.object,
                old: &Value::Null,
            },
        )
    }

    fn kind(&self) -> Kind {
        Kind::of(self.text("apiVersion"), self.text("kind")).unwrap()
    }

    fn read(&self) -> Object {
        Object::deserialize(self.kind(), self.object.clone()).unwrap()
    }
}

#[test]
fn there_are_many_over_all_kinds() {
    let all = manifests();
    assert!(all.len() >= 50, "{}", all.len());
    let is_route = |kind: &Kind| kind.name().ends_with("Route");
    for kind in Kind::all().filter(|kind| kind.is_shipped() || is_route(kind)) {
        assert!(
            all.iter().any(|one| one.text("kind") == kind.name()),
            "{kind} has none"
        );
    }
}

#[test]
fn each_is_answered_as_it_says() {
    let mut wrong = Vec::new();
    for manifest in manifests() {
        let verdict = manifest.verdict();
        let fits = match (&manifest.denied, &manifest.warning) {
            (Some(text), None) => verdict
                .denied
                .as_ref()
                .is_some_and(|said| said.contains(text)),
            (None, Some(text)) => {
                verdict.denied.is_none() && verdict.warnings.iter().any(|said| said.contains(text))
            }
            _ => false,
        };
        if !fits {
            wrong.push(format!("{}: {verdict:?}", manifest.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What is taken with a warning says the same in its status, or by an Event.
#[test]
fn what_is_taken_is_told_afterwards_too() {
    for manifest in manifests().iter().filter(|one| one.warning.is_some()) {
        if manifest.kind() == Kind::Deployment {
            continue; // Its pods tell.
        }
        let object = manifest.read();
        let mut ledger = Ledger::default();
        let delta = Index::new(config()).handle(Event::Apply(object.clone()));
        ledger.applied(&object);
        ledger.said(&delta.conditions);
        ledger.published(1);
        let wanted = ledger.take_fresh(10, |_| Reach { have: 1, of: 1 }, NOW);
        let mut routes = RouteLedger::default();
        routes.applied(&object);
        routes.said(&delta.route_statuses);
        let parents = routes.take(10, NOW);
        let parents = parents.iter().flat_map(|one| &one.parents);
        let parents = parents.flat_map(|one| one["conditions"].as_array().into_iter().flatten());
        let in_status = wanted
            .iter()
            .flat_map(|one| &one.conditions)
            .chain(parents)
            .any(|condition| condition["status"] == "False");
        let in_event = ledger.take_announcement().is_some();
        assert!(
            in_status || in_event,
            "{}: nothing is said: {wanted:?}",
            manifest.name
        );
    }
}

fn config() -> IndexConfig {
    IndexConfig {
        root_namespace: ROOT_NAMESPACE.into(),
        ..IndexConfig::default()
    }
}

/// What got in, though its author meant it to refuse somebody, refuses them.
#[test]
fn none_leaves_open_what_it_was_to_close() {
    let mut checked = 0;
    for manifest in manifests() {
        let Some(caller) = &manifest.meant_to_refuse else {
            continue;
        };
        if manifest.verdict().denied.is_some() {
            continue;
        }
        assert!(
            !allowed(&manifest.read(), caller),
            "{}: {caller} gets through",
            manifest.name
        );
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} were taken");
}

/// Whether the caller reaches port 80 of the pod `web` of namespace `shop` under this policy.
fn allowed(policy: &Object, caller: &str) -> bool {
    let pod = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "web", "labels": {"app": "web", "istio.io/dataplane-mode": "ambient"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "a"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    let pod = Object::deserialize(Kind::Pod, pod).unwrap();
    let delta = Index::new(config()).handle_all([Event::Apply(policy.clone()), Event::Apply(pod)]);
    let connection = Connection {
        source: (!caller.starts_with("plaintext"))
            .then(|| "spiffe://cluster.local/ns/other/sa/evil".parse().unwrap()),
        source_ip: IpAddr::from([10, 0, 0, 9]),
        destination: SocketAddr::from(([10, 0, 0, 1], 80)),
    };
    compiled(&delta, &workload(&delta))
        .decide(&connection)
        .is_allowed()
}

fn workload(delta: &Delta) -> Arc<Workload> {
    delta.workloads.updated[0].1.clone()
}

fn compiled(delta: &Delta, workload: &Workload) -> Compiled {
    let policies = delta
        .policies
        .updated
        .iter()
        .map(|(_, policy)| policy.clone());
    Compiled::compile(policies.filter(|policy| applies(policy, workload)), &[])
}
