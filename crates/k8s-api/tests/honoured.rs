//! Every field of every schema has a row that says what Karst does with it, and the page is what the rows say.

use std::{collections::BTreeSet, fs, path::Path};

use karst_k8s_api::{Kind, crd, honoured};
use serde_json::Value;

/// All paths of a schema, as rows write them.
fn paths(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        paths(child, &path, all);
        all.insert(path);
    }
    for (part, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(child) = schema.get(part) {
            paths(child, &format!("{path}{mark}"), all);
        }
    }
}

#[test]
fn every_field_has_a_row() {
    let mut missing = Vec::new();
    for kind in Kind::all().filter(|kind| kind.is_istio()) {
        let Some(schema) = crd::spec_schema(kind) else {
            continue;
        };
        let mut all = BTreeSet::from(["spec".to_owned()]);
        paths(&schema, "spec", &mut all);
        missing.extend(
            all.iter()
                .filter(|path| honoured::row(kind, path).is_none())
                .map(|path| format!("{kind} {path}")),
        );
        let stale: Vec<&str> = honoured::fields(kind)
            .map(|row| row.path)
            .filter(|path| !path.ends_with(['}', ']', '*']) && !all.contains(*path))
            .collect();
        assert!(stale.is_empty(), "{kind} has no field {stale:?}");
    }
    assert!(missing.is_empty(), "fields without a row: {missing:#?}");
}

#[test]
fn the_pages_are_fresh() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    for (name, page) in [
        ("istio-compat.md", honoured::page()),
        ("gateway-api.md", honoured::gateway_page()),
    ] {
        let old = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            old == page,
            "docs/reference/{name} is stale: run `cargo run -p karst-k8s-api --example print_reference`"
        );
    }
}

/// Fields that Istio's definitions have, as a list of `<kind> <path>`.
const ISTIO: &str = include_str!("istio-fields.txt");

#[test]
fn every_field_of_istios_definitions_has_a_row() {
    let mut missing = Vec::new();
    for line in ISTIO.lines().filter(|line| !line.starts_with('#')) {
        let (kind, path) = line.split_once(' ').unwrap();
        let kind = Kind::all().find(|known| known.to_string() == kind).unwrap();
        if honoured::row(kind, path).is_none() {
            missing.push(line);
        }
    }
    assert!(ISTIO.lines().count() > 500, "the list is cut");
    assert!(missing.is_empty(), "fields without a row: {missing:#?}");
}

#[test]
fn every_honoured_field_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for proof in honoured::PROOFS {
        let text = fs::read_to_string(root.join(proof.file)).unwrap_or_default();
        let function = format!("fn {}(", proof.test);
        assert!(text.contains(&function), "{} has no {function}", proof.file);
    }
    let honoured = Kind::all()
        .flat_map(honoured::fields)
        .filter(|row| row.verdict == honoured::Verdict::Honoured);
    let without: Vec<String> = honoured
        .filter(|row| honoured::proof(row.kind, row.path).is_none())
        .map(|row| format!("{} {}", row.kind, row.path))
        .collect();
    assert!(
        without.is_empty(),
        "honoured fields without a test: {without:#?}"
    );
}
