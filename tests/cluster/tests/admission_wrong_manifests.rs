//! Deliberately wrong manifests at a real API server: each is refused, or taken with a warning that status or an Event
//! repeats, all within two seconds. What each promises stands in its first line; `controller/tests/wrong_manifests.rs`
//! checks the same files against the pure decision, and that none leaves open what it was to close.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use karst_test_cluster::{Cluster, eventually, namespace::Namespace};
use serde_json::Value;

/// Longest from `kubectl apply` to the answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/wrong");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// `kubectl apply` or `delete` of a text.
fn kubectl(cluster: &Cluster, verb: &[&str], yaml: &str) -> Output {
    let mut child = cluster
        .kubectl()
        .args(verb)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(yaml.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn wrong_manifests_are_answered_at_once() {
    let cluster = Cluster::get();
    let namespace = Namespace::new("wrong-manifests");
    for file in files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).unwrap();
        let yaml = text.replace(
            "namespace: shop",
            &format!("namespace: {}", namespace.name()),
        );
        let started = Instant::now();
        let answer = kubectl(cluster, &["apply"], &yaml);
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        // Of a kind that is not installed kubectl asks again and again before it says so.
        let unknown = said.contains("no matches for kind");
        let took = started.elapsed();
        assert!(unknown || took < ANSWER_MAX, "{name}: {took:?}");
        match text.strip_prefix("# warning: ") {
            None => assert!(!answer.status.success(), "{name} was taken: {said}"),
            // What we warn of the API server refuses by the kind's own schema.
            Some(_) if said.contains(" is invalid: ") => {}
            Some(rest) => {
                let expected = rest.lines().next().unwrap();
                assert!(answer.status.success(), "{name}: {said}");
                assert!(
                    said.contains("Warning:") && said.contains(expected),
                    "{name}: {said}"
                );
                told_afterwards(cluster, &yaml, &name);
                kubectl(cluster, &["delete", "--wait=false"], &yaml);
            }
        }
    }
}

/// A False condition, or an Event.
fn told_afterwards(cluster: &Cluster, yaml: &str, name: &str) {
    let object = read(cluster, yaml);
    let kind = object["kind"].as_str().unwrap();
    if kind == "Deployment" {
        return; // Its pods tell.
    }
    let uid = object["metadata"]["uid"].as_str().unwrap();
    eventually(&format!("{name} is told"), || {
        let object = read(cluster, yaml);
        // A route has a status for each of its parents.
        let parents = object["status"]["parents"].as_array().into_iter().flatten();
        let lists = parents.chain([&object["status"]]);
        let conditions = lists.flat_map(|one| one["conditions"].as_array().into_iter().flatten());
        conditions
            .into_iter()
            .any(|one| one["status"] == "False" && one["type"] != "Ready")
            || has_event(cluster, uid)
    });
}

/// The object of a manifest with one; Null when there is none. kubectl shows what it is given as a list.
fn read(cluster: &Cluster, yaml: &str) -> Value {
    let read = kubectl(cluster, &["get", "-o", "json"], yaml);
    let mut shown: Value = serde_json::from_slice(&read.stdout).unwrap_or_default();
    match shown.pointer_mut("/items/0") {
        Some(first) => first.take(),
        None => shown,
    }
}

fn has_event(cluster: &Cluster, uid: &str) -> bool {
    let events = cluster.object(&["events.events.k8s.io", "-A"]);
    let mut items = events["items"].as_array().into_iter().flatten();
    items.any(|event| event["regarding"]["uid"] == *uid && event["reportingController"] == "karst")
}
