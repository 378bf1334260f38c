//! The definitions in `manifests/crds` are what the types say, and the API server can take them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use karst_k8s_api::{Kind, crd};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../manifests/crds")
}

fn definitions() -> impl Iterator<Item = (Kind, Value)> {
    Kind::all().filter_map(|kind| Some((kind, crd::of(kind)?)))
}

#[test]
fn checked_in_definitions_are_fresh() {
    let mut expected = BTreeSet::new();
    for (kind, definition) in definitions() {
        let name = crd::file_name(kind);
        let old = fs::read_to_string(folder().join(&name)).unwrap_or_default();
        assert!(
            old == crd::to_yaml(&definition).unwrap(),
            "manifests/crds/{name} is stale: run `cargo run -p karst-k8s-api --example print_crds`"
        );
        expected.insert(name);
    }
    let found: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".istio.io.yaml") || name.ends_with(".karst.io.yaml"))
        .collect();
    assert_eq!(found, expected, "a definition has no type any more");
}

/// What a structural schema must be (Kubernetes: "Specifying a structural schema").
#[test]
fn schemas_are_structural() {
    for (kind, definition) in definitions() {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"];
            let mut wrong = Vec::new();
            inspect(schema, &mut kind.to_string(), &mut wrong);
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }
}

fn inspect(schema: &Value, path: &mut String, wrong: &mut Vec<String>) {
    let marked = |name: &str| schema[name] == true;
    let typed = schema["type"].is_string()
        || marked("x-kubernetes-int-or-string")
        || marked("x-kubernetes-preserve-unknown-fields");
    if !typed {
        wrong.push(format!("{path}: has no type: {schema}"));
    }
    for forbidden in [
        "$ref",
        "default",
        "nullable",
        "definitions",
        "patternProperties",
        "const",
    ] {
        if schema.get(forbidden).is_some() {
            wrong.push(format!("{path}: {forbidden}"));
        }
    }
    let before = path.len();
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        path.push_str(&format!(".{name}"));
        inspect(child, path, wrong);
        path.truncate(before);
    }
    for (name, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(child) = schema.get(name) {
            path.push_str(mark);
            inspect(child, path, wrong);
            path.truncate(before);
        }
    }
}
