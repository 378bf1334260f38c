//! Lists, changes and unusable objects, as a watch tells them.

use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;

fn raw(name: &str, version: u64, spec: Value) -> Raw {
    let metadata = json!({"namespace": "shop", "name": name, "uid": name, "resourceVersion": version.to_string()});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn service(name: &str, version: u64) -> Raw {
    raw(name, version, json!({"clusterIP": "10.96.0.1"}))
}

struct World {
    feed: Feed,
}

impl World {
    fn new(kind: Kind) -> Self {
        Self {
            feed: Feed::new(kind),
        }
    }

    /// The changes as short texts.
    fn take(&mut self, events: Vec<Event<Raw>>) -> Vec<String> {
        let mut changes = Vec::new();
        for event in events {
            self.feed.handle(event, &mut changes);
        }
        let mut texts: Vec<String> = changes.iter().map(text).collect();
        texts.sort();
        texts
    }

    fn list(&mut self, objects: Vec<Raw>) -> Vec<String> {
        let listed = objects.into_iter().map(Event::InitApply);
        let events = std::iter::once(Event::Init)
            .chain(listed)
            .chain([Event::InitDone]);
        self.take(events.collect())
    }
}

fn text(change: &Change) -> String {
    match change {
        Change::Applied(object) => format!("+{}", object.key().name),
        Change::Deleted(key) => format!("-{}", key.name),
        Change::Unusable {
            key,
            complaints,
            instead,
        } => {
            let instead = if instead.is_some() { ", instead" } else { "" };
            format!("!{} {}{instead}", key.name, complaints[0].field)
        }
    }
}

#[test]
fn a_list_again_tells_only_what_differs() {
    let mut world = World::new(Kind::Service);
    assert!(!world.feed.is_complete());
    let first = world.list(vec![service("a", 1), service("b", 1), service("c", 1)]);
    assert_eq!(first, ["+a", "+b", "+c"]);
    assert!(world.feed.is_complete());
    assert_eq!(
        world.take(vec![
            Event::Apply(service("a", 2)),
            Event::Delete(service("b", 3))
        ]),
        ["+a", "-b"]
    );
    let again = world.list(vec![service("a", 2), service("c", 9), service("d", 8)]);
    assert_eq!(
        again,
        ["+c", "+d"],
        "a is as it was, b was known to be gone"
    );
    assert_eq!(world.list(Vec::new()), ["-a", "-c", "-d"]);
}

#[test]
fn repeated_events_and_unknown_deletions_tell_nothing() {
    let mut world = World::new(Kind::Service);
    world.list(vec![service("a", 1)]);
    assert!(
        world
            .take(vec![
                Event::Apply(service("a", 1)),
                Event::Delete(service("x", 2))
            ])
            .is_empty()
    );
}

#[test]
fn a_state_from_before_is_taken_over_as_it_is_listed() {
    let mut world = World::new(Kind::Service);
    world.list(vec![service("a", 7), service("b", 7)]);
    // The store was restored from a snapshot: versions run back.
    assert_eq!(world.list(vec![service("a", 3)]), ["+a", "-b"]);
}

#[test]
fn a_list_that_breaks_off_deletes_nothing() {
    let mut world = World::new(Kind::Service);
    world.list(vec![service("a", 1), service("b", 1)]);
    let broken = vec![Event::Init, Event::InitApply(service("a", 1)), Event::Init];
    assert!(world.take(broken).is_empty());
    assert!(world.feed.is_listing());
    let rest = vec![Event::InitApply(service("b", 1)), Event::InitDone];
    assert_eq!(world.take(rest), ["-a"]);
}

#[test]
fn an_unusable_version_keeps_the_last_good_one() {
    let mut world = World::new(Kind::AuthorizationPolicy);
    world.list(vec![raw("p", 1, json!({"rules": [{}]}))]);
    let bad = raw("p", 2, json!({"rules": 5}));
    assert_eq!(
        world.take(vec![Event::Apply(bad.clone())]),
        ["!p spec.rules"]
    );
    assert_eq!(world.feed.unusable(), 1);
    assert!(world.list(vec![bad]).is_empty(), "it is told once");
    assert_eq!(
        world.take(vec![Event::Apply(raw("p", 3, json!({})))]),
        ["+p"]
    );
    assert_eq!(world.feed.unusable(), 0);
}

#[test]
fn a_policy_that_was_never_good_denies_instead() {
    let mut world = World::new(Kind::AuthorizationPolicy);
    let bad = |version| {
        raw(
            "p",
            version,
            json!({"selector": {"matchLabels": {"app": "a"}}, "rules": 5}),
        )
    };
    assert_eq!(world.list(vec![bad(1)]), ["!p spec.rules, instead"]);
    assert_eq!(
        world.take(vec![Event::Apply(bad(2))]),
        ["!p spec.rules"],
        "what stands instead stays"
    );
    assert_eq!(world.take(vec![Event::Delete(bad(2))]), ["-p"]);
}

#[test]
fn an_unusable_object_that_is_no_policy_is_left_out() {
    let mut world = World::new(Kind::Service);
    assert_eq!(
        world.list(vec![raw("s", 1, json!({"ports": "web"}))]),
        ["!s spec.ports"]
    );
}
