//! The ledger by itself: what it wants written, and when it is silent.

use karst_index::{Index, IndexConfig};

use super::*;

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

fn object(kind: Kind, json: Value) -> Object {
    Object::deserialize(kind, json).unwrap()
}

fn policy(generation: i64, spec: Value) -> Object {
    object(
        Kind::AuthorizationPolicy,
        json!({"metadata": {"name": "p", "namespace": "shop", "uid": "1", "generation": generation}, "spec": spec}),
    )
}

fn everybody(_: Revision) -> Reach {
    Reach { have: 2, of: 2 }
}

/// A ledger that was told of the object as the controller tells it.
fn told(object: &Object, revision: Revision) -> Ledger {
    let mut ledger = Ledger::default();
    tell(&mut ledger, object, revision);
    ledger
}

fn tell(ledger: &mut Ledger, object: &Object, revision: Revision) {
    let delta =
        Index::new(IndexConfig::default()).handle(karst_index::Event::Apply(object.clone()));
    ledger.applied(object);
    ledger.said(&delta.conditions);
    ledger.published(revision);
}

fn condition<'a>(wanted: &'a Wanted, kind: &str) -> &'a Value {
    let found = wanted.conditions.iter().find(|one| one["type"] == *kind);
    found.unwrap_or_else(|| panic!("no {kind} in {wanted:?}"))
}

#[test]
fn a_policy_says_that_it_is_enforced_and_where() {
    let mut ledger = told(&policy(3, json!({"action": "DENY", "rules": [{}]})), 7);
    let wanted = ledger.take_fresh(10, |_| Reach { have: 1, of: 2 }, NOW);
    assert_eq!(wanted.len(), 1);
    assert_eq!(condition(&wanted[0], "ZtunnelAccepted")["status"], "True");
    let programmed = condition(&wanted[0], "Programmed");
    assert_eq!(programmed["status"], "False");
    assert_eq!(programmed["observedGeneration"], 3);
    assert!(
        programmed["message"]
            .as_str()
            .unwrap()
            .starts_with("1 of 2 nodes")
    );
}

#[test]
fn what_is_written_is_followed_by_silence() {
    let mut ledger = told(&policy(1, json!({"action": "DENY", "rules": [{}]})), 7);
    let wanted = ledger.take_fresh(10, everybody, NOW).remove(0);
    let mut with_status =
        serde_json::to_value(match policy(1, json!({"action": "DENY", "rules": [{}]})) {
            Object::AuthorizationPolicy(policy) => policy,
            _ => unreachable!("of its own kind"),
        })
        .unwrap();
    with_status["status"] = json!({"conditions": wanted.conditions});
    ledger.written(wanted);
    ledger.applied(&object(Kind::AuthorizationPolicy, with_status));
    ledger.published(99);
    assert_eq!(ledger.take_fresh(10, everybody, LATER), []);
    assert_eq!(ledger.take_moved(10, everybody, LATER), []);
}

#[test]
fn a_node_that_comes_later_is_told_later_and_keeps_the_time() {
    let mut ledger = told(&policy(1, json!({"action": "DENY", "rules": [{}]})), 7);
    let wanted = ledger.take_fresh(10, everybody, NOW).remove(0);
    ledger.written(wanted);
    let three = |_| Reach { have: 3, of: 3 };
    let moved = ledger.take_moved(10, three, LATER).remove(0);
    let programmed = condition(&moved, "Programmed");
    assert_eq!(programmed["message"], "3 of 3 nodes have it");
    assert_eq!(programmed["lastTransitionTime"], NOW, "it was True before");
    ledger.written(moved);
    assert_eq!(ledger.take_moved(10, three, LATER), []);
}

#[test]
fn the_reach_is_asked_for_the_revision_of_the_change() {
    let mut ledger = told(&policy(1, json!({"rules": [{}]})), 7);
    let asked = std::cell::Cell::new(0);
    let reach = |revision| {
        asked.set(revision);
        Reach { have: 1, of: 1 }
    };
    ledger.take_fresh(10, reach, NOW);
    assert_eq!(asked.get(), 7);
}

#[test]
fn a_field_that_is_not_honoured_is_said() {
    let rule = object(
        Kind::DestinationRule,
        json!({"metadata": {"name": "d", "namespace": "shop"}, "spec": {"host": "a", "trafficPolicy": {"connectionPool": {"http": {"useClientProtocol": true}}}}}),
    );
    let wanted = told(&rule, 1).take_fresh(10, everybody, NOW).remove(0);
    let accepted = condition(&wanted, "Accepted");
    assert_eq!(accepted["status"], "False");
    let message = accepted["message"].as_str().unwrap();
    assert!(message.contains("useClientProtocol"), "{message}");
}

#[test]
fn an_unusable_object_says_what_is_wrong() {
    let mut ledger = told(&policy(1, json!({"rules": [{}]})), 1);
    ledger.take_fresh(10, everybody, NOW);
    let complaint = Complaint {
        field: "spec.rulez".to_owned(),
        message: "unknown field".to_owned(),
    };
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p");
    ledger.unusable(&key, std::slice::from_ref(&complaint));
    let wanted = ledger.take_fresh(10, everybody, NOW).remove(0);
    assert_eq!(wanted.conditions.len(), 1);
    assert!(
        condition(&wanted, "Accepted")["message"]
            .as_str()
            .unwrap()
            .contains("spec.rulez")
    );
    ledger.unusable(&key, &[]);
    assert_eq!(
        ledger.take_fresh(10, everybody, NOW).len(),
        1,
        "it is enforced again"
    );
}

#[test]
fn namespaces_get_one_event_for_one_mistake() {
    let namespace = object(
        Kind::Namespace,
        json!({"metadata": {"name": "shop", "uid": "5", "labels": {"istio.io/dataplane-mode": "Ambient"}}}),
    );
    let mut ledger = told(&namespace, 1);
    assert_eq!(ledger.take_fresh(10, everybody, NOW), []);
    let announcement = ledger.take_announcement().unwrap();
    assert!(
        announcement.message.contains("ambient or none"),
        "{announcement:?}"
    );
    tell(&mut ledger, &namespace, 2);
    ledger.take_fresh(10, everybody, NOW);
    assert_eq!(ledger.take_announcement(), None);
}

#[test]
fn announcements_are_bounded() {
    let mut ledger = Ledger::default();
    for number in 0..ANNOUNCEMENTS_MAX + 5 {
        let name = format!("n{number}");
        let labels = json!({"istio.io/dataplane-mode": "x"});
        ledger.applied(&object(
            Kind::Namespace,
            json!({"metadata": {"name": name, "labels": labels}}),
        ));
    }
    ledger.published(1);
    ledger.take_fresh(10, everybody, NOW);
    assert_eq!(ledger.dropped(), 5);
}

#[test]
fn nothing_is_said_before_it_is_published() {
    let mut ledger = Ledger::default();
    ledger.applied(&policy(1, json!({"rules": [{}]})));
    assert_eq!(ledger.take_fresh(10, everybody, NOW), []);
    ledger.published(3);
    assert_eq!(ledger.take_fresh(10, everybody, NOW).len(), 1);
}

fn entry(status: &Value, manager: &str) -> Object {
    object(
        Kind::ServiceEntry,
        json!({
            "metadata": {
                "name": "bank", "namespace": "shop", "uid": "1", "generation": 1,
                "managedFields": [{"manager": manager, "operation": "Apply", "subresource": "status",
                    "fieldsV1": {"f:status": {"f:addresses": {}}}}],
            },
            "spec": {"hosts": ["api.bank.example"], "resolution": "DNS",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
            "status": status,
        }),
    )
}

fn tell_addresses(ledger: &mut Ledger, object: &Object) {
    let delta =
        Index::new(IndexConfig::default()).handle(karst_index::Event::Apply(object.clone()));
    ledger.applied(object);
    ledger.said(&delta.conditions);
    ledger.addressed(&delta.entry_addresses);
    ledger.published(1);
}

#[test]
fn a_service_entry_is_told_its_addresses_once_and_those_of_others_stay() {
    let mut ledger = Ledger::default();
    tell_addresses(&mut ledger, &entry(&json!({}), "other"));
    let wanted = ledger.take_fresh(10, everybody, NOW).remove(0);
    assert_eq!(wanted.addresses.len(), 2, "{:?}", wanted.addresses);
    assert_eq!(wanted.addresses[0]["host"], "api.bank.example");
    let first = wanted.addresses[0]["value"].as_str().unwrap();
    assert!(first.starts_with("240.240."), "{first}");

    // It comes back as we wrote it, also to a controller that has just begun: silence.
    let status = json!({"conditions": wanted.conditions, "addresses": wanted.addresses});
    let written = entry(&status, karst_k8s_api::object::FIELD_MANAGER);
    ledger.written(wanted);
    tell_addresses(&mut ledger, &written);
    assert_eq!(ledger.take_fresh(10, everybody, LATER), []);
    let mut fresh = Ledger::default();
    tell_addresses(&mut fresh, &written);
    assert_eq!(fresh.take_fresh(10, everybody, LATER), []);

    // What somebody else has written is not ours to change.
    let theirs = json!({"addresses": [{"host": "api.bank.example", "value": "240.240.9.9"}]});
    let mut ledger = Ledger::default();
    tell_addresses(&mut ledger, &entry(&theirs, "istiod"));
    let wanted = ledger.take_fresh(10, everybody, NOW);
    assert!(wanted.iter().all(|one| one.addresses.is_empty()));
}

#[test]
fn a_condition_that_holds_no_more_goes() {
    let rule = |conditions: Value| {
        object(
            Kind::DestinationRule,
            json!({"metadata": {"name": "d", "namespace": "shop", "uid": "1", "generation": 1},
                "spec": {"host": "nobody"}, "status": {"conditions": conditions}}),
        )
    };
    let mut ledger = told(&rule(json!([])), 1);
    let mut wanted = ledger.take_fresh(10, everybody, NOW).remove(0).conditions;
    wanted.push(json!({"type": "Conflicted", "status": "True", "reason": "Other", "message": ""}));
    let mut ledger = told(&rule(wanted.into()), 1);
    let wanted = ledger.take_fresh(10, everybody, LATER);
    assert_eq!(wanted.len(), 1, "it is written without the old condition");
    assert!(
        wanted[0]
            .conditions
            .iter()
            .all(|one| one["type"] != "Conflicted")
    );
}

/// A sealed Service that asks for a waypoint that is not there, with these conditions.
fn sealed_service(annotations: Value, conditions: Value) -> Object {
    object(
        Kind::Service,
        json!({
            "metadata": {"name": "orders", "namespace": "shop", "uid": "1", "annotations": annotations,
                "labels": {"istio.io/use-waypoint": "w"}},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
            "status": {"conditions": conditions},
        }),
    )
}

#[test]
fn a_service_says_its_waypoint_and_its_seal_among_conditions_of_others() {
    let sealed = json!({"karst.dev/seal": "true"});
    let theirs = json!({"type": "Programmed", "status": "False", "reason": "TheirOwn", "message": "",
        "lastTransitionTime": NOW});
    let mut ledger = told(&sealed_service(sealed.clone(), json!([theirs])), 1);
    let wanted = ledger.take_fresh(10, everybody, NOW).remove(0);
    let said = |wanted: &Wanted| -> Vec<String> {
        let names = wanted.conditions.iter();
        names
            .map(|one| format!("{}={}", one["type"], one["status"]).replace('"', ""))
            .collect()
    };
    assert_eq!(
        said(&wanted),
        ["istio.io/WaypointBound=False", "karst.dev/Sealed=True"],
        "its own, and none that could be somebody else's"
    );
    assert_eq!(
        wanted.observed_generation, None,
        "a Service's status has none"
    );
    let event = ledger.take_announcement().unwrap();
    assert_eq!(event.reason, "WaypointIsMissing");

    // It comes back as we wrote it, beside theirs: silence.
    let mut present = wanted.conditions.clone();
    present.push(theirs.clone());
    ledger.written(wanted);
    tell(
        &mut ledger,
        &sealed_service(sealed.clone(), json!(present)),
        2,
    );
    assert_eq!(ledger.take_fresh(10, everybody, LATER), []);
    let mut fresh = told(&sealed_service(sealed, json!(present)), 1);
    assert_eq!(fresh.take_fresh(10, everybody, LATER), []);

    // No seal any more: the condition goes.
    let mut ledger = told(&sealed_service(json!({}), json!(present)), 1);
    let wanted = ledger.take_fresh(10, everybody, LATER);
    assert_eq!(said(&wanted[0]), ["istio.io/WaypointBound=False"]);
    // Nothing of ours: nothing is written.
    let plain = object(
        Kind::Service,
        json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {}, "status": {"conditions": [theirs]}}),
    );
    assert_eq!(told(&plain, 1).take_fresh(10, everybody, NOW), []);
}

fn of_version(version: &str, generation: i64) -> Object {
    let mut json = serde_json::to_value(match policy(generation, json!({"rules": [{}]})) {
        Object::AuthorizationPolicy(policy) => policy,
        _ => unreachable!("of its own kind"),
    })
    .unwrap();
    json["metadata"]["resourceVersion"] = version.into();
    object(Kind::AuthorizationPolicy, json)
}

#[test]
fn followers_of_every_replica_are_counted() {
    let two = |have| move |_: Revision| Reach { have, of: 2 };
    let message = |wanted: &[Wanted]| {
        let programmed = condition(&wanted[0], "Programmed");
        programmed["message"].as_str().unwrap().to_owned()
    };
    // The replica that does not write saw the same object at its own revision.
    let mut other = told(&of_version("10", 1), 70);
    let mut leader = told(&of_version("10", 1), 7);
    leader.hear(vec![other.summary(two(1))]);
    let wanted = leader.take_fresh(10, two(2), NOW);
    assert!(message(&wanted).starts_with("3 of 4 nodes"), "{wanted:?}");
    leader.written(wanted.into_iter().next().unwrap());

    leader.hear(vec![other.summary(two(2))]);
    let wanted = leader.take_moved(10, two(2), NOW);
    assert_eq!(message(&wanted), "4 of 4 nodes have it");
    leader.written(wanted.into_iter().next().unwrap());

    // A change that the other replica has not read yet is nowhere among its followers.
    let before = other.summary(two(2));
    tell(&mut leader, &of_version("20", 2), 8);
    leader.hear(vec![before]);
    let wanted = leader.take_fresh(10, two(2), NOW);
    assert!(message(&wanted).starts_with("2 of 4 nodes"), "{wanted:?}");
    leader.written(wanted.into_iter().next().unwrap());
    // One that it has read and not published neither.
    other.applied(&of_version("20", 2));
    leader.hear(vec![other.summary(two(2))]);
    assert_eq!(leader.take_moved(10, two(2), NOW), []);
    other.published(71);
    leader.hear(vec![other.summary(two(2))]);
    assert_eq!(
        message(&leader.take_moved(10, two(2), NOW)),
        "4 of 4 nodes have it"
    );
    // The other replica is gone, and its followers are ours.
    leader.hear(Vec::new());
    let wanted = leader.take_moved(10, |_| Reach { have: 4, of: 4 }, NOW);
    assert_eq!(wanted, [], "nothing is different");
}
