//! Dashboards, recording rules and alerts ask for metrics that our programs have.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// What Prometheus' text format adds to a metric's name.
const SUFFIXES: [&str; 4] = ["_total", "_bucket", "_sum", "_count"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
}

/// Every text in the sources of our programs that could be the name of a metric.
fn names_in_sources() -> BTreeSet<String> {
    let mut sources = Vec::new();
    for folder in ["agent/src", "waypoint/src", "controller/src", "crates"] {
        files(&root().join(folder), ".rs", &mut sources);
    }
    let texts = sources.iter().map(|path| fs::read_to_string(path).unwrap());
    texts
        .flat_map(|text| text.split('"').map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn asked(expression: &str) -> Vec<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expression.split(|letter: char| !is_name(letter) && letter != ':');
    let ours = ["istio_", "karst_", "workload_manager_"];
    words
        .filter(|word| ours.iter().any(|start| word.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

fn expressions() -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut boards = Vec::new();
    files(&root().join("manifests/dashboards"), ".json", &mut boards);
    assert_eq!(boards.len(), 6, "{boards:?}");
    for path in boards {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let board: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let targets = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let of_panels = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
        let variables = board["templating"]["list"].as_array().unwrap();
        let of_variables = variables
            .iter()
            .filter_map(|one| one["definition"].as_str().map(str::to_owned));
        all.extend(
            of_panels
                .chain(of_variables)
                .map(|text| (name.clone(), text)),
        );
    }
    for name in ["recording.yaml", "alerts.yaml"] {
        let text = fs::read_to_string(root().join("manifests/prometheus").join(name)).unwrap();
        let rules: Value = serde_saphyr::from_str(&text).unwrap();
        for group in rules["groups"].as_array().unwrap() {
            for rule in group["rules"].as_array().unwrap() {
                let expression = rule["expr"].as_str().unwrap().to_owned();
                all.push((name.to_owned(), expression));
            }
        }
    }
    all
}

#[test]
fn every_metric_that_is_asked_for_is_one_of_ours() {
    let known = names_in_sources();
    let mut missing = BTreeSet::new();
    let all = expressions();
    assert!(all.len() > 80, "{}", all.len());
    for (place, expression) in all {
        for metric in asked(&expression) {
            let base = SUFFIXES
                .iter()
                .find_map(|suffix| metric.strip_suffix(suffix))
                .unwrap_or(&metric);
            if !known.contains(base) && !known.contains(&metric) {
                missing.insert(format!("{place}: {metric}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
