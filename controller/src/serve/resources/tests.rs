//! The order of changes, tombstones and lookups.

use super::*;

fn put(name: &str, value: &str, aliases: &[&str], groups: &[&str]) -> Publication {
    let content = Content {
        type_url: karst_proto::type_url::ADDRESS,
        value: value.into(),
        aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        groups: groups.iter().map(|g| (*g).into()).collect(),
        covers_all: false,
    };
    Publication {
        table: TableKey::Address,
        name: name.into(),
        content: Some(content),
    }
}

fn remove(name: &str) -> Publication {
    Publication {
        table: TableKey::Address,
        name: name.into(),
        content: None,
    }
}

fn since(resources: &Resources, position: Revision) -> Vec<(String, bool)> {
    let tables = resources.read();
    let table = tables.table(&TableKey::Address).unwrap();
    table
        .since(position)
        .map(|(_, name, live)| (name.to_string(), live.is_some()))
        .collect()
}

fn found(resources: &Resources, asked: &str) -> Vec<String> {
    let tables = resources.read();
    tables
        .table(&TableKey::Address)
        .unwrap()
        .find(asked)
        .iter()
        .map(|(name, _)| name.to_string())
        .collect()
}

#[test]
fn a_name_waits_once_however_often_it_changes() {
    let resources = Resources::new();
    let first = resources.publish([put("a", "1", &[], &[]), put("b", "1", &[], &[])]);
    assert_eq!(
        resources.publish([put("a", "1", &[], &[])]),
        first,
        "nothing changed"
    );
    for n in 2..50 {
        resources.publish([put("a", &n.to_string(), &[], &[])]);
    }
    assert_eq!(since(&resources, first), [("a".to_owned(), true)]);
    resources.publish([remove("a"), remove("unknown")]);
    assert_eq!(since(&resources, first), [("a".to_owned(), false)]);
    assert_eq!(
        since(&resources, 0),
        [("b".to_owned(), true), ("a".to_owned(), false)]
    );
}

#[test]
fn forgotten_removals_are_known_to_be_forgotten() {
    let resources = Resources::new();
    let start = resources.publish([put("keep", "1", &[], &[])]);
    for n in 0..=TOMBSTONES_MAX {
        let name = format!("n{n}");
        resources.publish([put(&name, "1", &[], &[]), remove(&name)]);
    }
    let tables = resources.read();
    let table = tables.table(&TableKey::Address).unwrap();
    assert!(table.has_forgotten_since(start) && !table.has_forgotten_since(tables.revision()));
    assert_eq!((table.len(), table.order.len()), (1, TOMBSTONES_MAX + 1));
}

#[test]
fn lookups_by_alias_and_group_follow_changes() {
    let resources = Resources::new();
    resources.publish([
        put("ns/svc", "s", &["/10.96.0.1"], &[]),
        put("pod", "p", &["/10.0.0.1"], &["ns/svc"]),
    ]);
    assert_eq!(found(&resources, "/10.0.0.1"), ["pod"]);
    assert_eq!(
        found(&resources, "/10.96.0.1"),
        ["ns/svc", "pod"],
        "a service brings its workloads"
    );
    resources.publish([put("pod", "p", &["/10.0.0.2"], &[])]);
    assert!(found(&resources, "/10.0.0.1").is_empty());
    assert_eq!(found(&resources, "ns/svc"), ["ns/svc"]);
    resources.publish([remove("ns/svc")]);
    assert!(found(&resources, "/10.96.0.1").is_empty());
}
