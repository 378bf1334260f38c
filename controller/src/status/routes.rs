//! What routes of the Gateway API should say in `status.parents`, and BackendTLSPolicies in `status.ancestors`, and which
//! say something else. Pure.
//!
//! The list belongs to several controllers and is replaced as a whole, so a write names the version of the object that
//! it was made from: if somebody else was faster the API server refuses it, and the newer object is looked at again.
//! Only entries with our `controllerName` are ours. Source: Gateway API v1.6, `RouteStatus` and
//! `PolicyStatus`.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use karst_index::{Condition, ParentStatus, ROUTE_CONTROLLER, RouteStatus};
use karst_k8s_api::{Kind, Object, ObjectKey, gateway::RouteStatus as Present};
use serde_json::{Value, json};

/// Entries that the API takes, of all controllers together.
const PARENTS_MAX: usize = 32;
const ANCESTORS_MAX: usize = 16;
/// Longest message of a condition; the API server takes 32 KiB, people read less.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// The parents that one route, or the ancestors that one policy, should have in its status.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedParents {
    pub key: ObjectKey,
    /// `metadata.resourceVersion` of the object that this was made from.
    pub resource_version: String,
    /// As JSON, with times.
    pub parents: Vec<Value>,
}

/// All routes that anything is or was to be said about.
#[derive(Debug, Default)]
pub struct RouteLedger {
    objects: HashMap<ObjectKey, Seen>,
    said: HashMap<ObjectKey, RouteStatus>,
    /// Routes to be looked at.
    fresh: BTreeSet<ObjectKey>,
}

/// A route as the API server has it.
#[derive(Debug)]
struct Seen {
    resource_version: String,
    generation: Option<i64>,
    parents: Vec<Value>,
}

impl RouteLedger {
    /// The object is there in this form.
    pub fn applied(&mut self, object: &Object) {
        let parents = |status: &Option<Present>| {
            let status = status.as_ref();
            status.map_or(Vec::new(), |status| status.parents.clone())
        };
        let parents = match object {
            Object::HttpRoute(route) => parents(&route.status),
            Object::GrpcRoute(route) => parents(&route.status),
            Object::TlsRoute(route) => parents(&route.status),
            Object::TcpRoute(route) => parents(&route.status),
            Object::BackendTlsPolicy(policy) => {
                let status = policy.status.as_ref();
                status.map_or(Vec::new(), |status| status.ancestors.clone())
            }
            _ => return,
        };
        let meta = object.metadata();
        let seen = Seen {
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation,
            parents,
        };
        let key = object.key();
        self.objects.insert(key.clone(), seen);
        self.fresh.insert(key);
    }

    pub fn deleted(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
        self.said.remove(key);
        self.fresh.remove(key);
    }

    /// What the index says of routes that changed.
    pub fn said(&mut self, statuses: &[RouteStatus]) {
        for status in statuses {
            let key = status.route.clone();
            match status.parents.is_empty() {
                true => drop(self.said.remove(&key)),
                false => drop(self.said.insert(key.clone(), status.clone())),
            }
            self.fresh.insert(key);
        }
    }

    /// Everything is looked at again, as after another replica has written.
    pub fn refresh(&mut self) {
        self.fresh.extend(self.objects.keys().cloned());
    }

    /// The route is looked at again, as after a write that failed.
    pub fn again(&mut self, key: ObjectKey) {
        self.fresh.insert(key);
    }

    /// Up to `most` routes whose status says something else than it should.
    pub fn take(&mut self, most: usize, now: &str) -> Vec<WantedParents> {
        let mut wanted = Vec::new();
        while wanted.len() < most
            && let Some(key) = self.fresh.pop_first()
        {
            wanted.extend(self.difference(key, now));
        }
        wanted
    }

    fn difference(&self, key: ObjectKey, now: &str) -> Option<WantedParents> {
        let seen = self.objects.get(&key)?;
        let said = self.said.get(&key);
        // What was said about an older form: the newer form is on its way through the index.
        if said.is_some_and(|said| said.observed_generation < seen.generation) {
            return None;
        }
        let (ours, others): (Vec<&Value>, Vec<&Value>) =
            seen.parents.iter().partition(|one| is_ours(one));
        let parents = said.map(|said| said.parents.as_slice()).unwrap_or_default();
        let generation = said.and_then(|said| said.observed_generation);
        let wanted = parents
            .iter()
            .map(|parent| entry(&key, parent, (generation, now), &ours));
        let wanted: Vec<Value> = wanted
            .take(most_of(&key).saturating_sub(others.len()))
            .collect();
        let same = wanted.len() == ours.len() && wanted.iter().zip(&ours).all(|(a, b)| a == *b);
        (!same).then(|| WantedParents {
            key,
            resource_version: seen.resource_version.clone(),
            parents: others.into_iter().cloned().chain(wanted).collect(),
        })
    }
}

/// What an entry calls whom it is about.
fn reference_of(key: &ObjectKey) -> &'static str {
    match key.kind {
        Kind::BackendTlsPolicy => "ancestorRef",
        _ => "parentRef",
    }
}

fn most_of(key: &ObjectKey) -> usize {
    match key.kind {
        Kind::BackendTlsPolicy => ANCESTORS_MAX,
        _ => PARENTS_MAX,
    }
}

fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == ROUTE_CONTROLLER
}

/// Our entry for one parent. A condition that says the same as before keeps its time; those of others stay.
fn entry(
    key: &ObjectKey,
    parent: &ParentStatus,
    (generation, now): (Option<i64>, &str),
    ours: &[&Value],
) -> Value {
    let (named, reference) = (reference_of(key), json!(parent.parent));
    let before = ours.iter().find(|one| one[named] == reference);
    let present = before.and_then(|one| one["conditions"].as_array());
    let present = present.map(Vec::as_slice).unwrap_or_default();
    let mut conditions: Vec<Value> = parent
        .conditions
        .iter()
        .map(|one| condition(one, generation, present, now))
        .collect();
    let foreign = present.iter().filter(|one| {
        let kind = one["type"].as_str().unwrap_or_default();
        !OURS.contains(&kind)
    });
    conditions.extend(foreign.cloned());
    json!({
        named: reference,
        "controllerName": ROUTE_CONTROLLER,
        "conditions": conditions,
    })
}

/// Types of conditions that we set.
const OURS: [&str; 4] = ["Accepted", "ResolvedRefs", "PartiallyInvalid", "Programmed"];

fn condition(
    condition: &Condition,
    generation: Option<i64>,
    present: &[Value],
    now: &str,
) -> Value {
    let kind = condition.kind.to_string();
    let status = if condition.status { "True" } else { "False" };
    let before = present
        .iter()
        .find(|one| one["type"] == *kind && one["status"] == *status);
    let since = before.and_then(|one| one["lastTransitionTime"].as_str());
    let mut message = condition.message.clone();
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    let mut value = json!({
        "type": kind,
        "status": status,
        "reason": condition.reason,
        "message": message,
        "lastTransitionTime": since.unwrap_or(now),
    });
    if let Some(generation) = generation {
        value["observedGeneration"] = generation.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use karst_index::{Event, Index, IndexConfig};

    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-01-02T00:00:00Z";

    /// An HTTPRoute with a good and a missing parent, as the API server holds it.
    fn route(version: u32, generation: i64, parents: &Value) -> Object {
        let object = json!({
            "metadata": {"name": "r", "namespace": "shop", "generation": generation,
                "resourceVersion": version.to_string()},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "nobody"}], "rules": []},
            "status": {"parents": parents},
        });
        Object::deserialize(Kind::HttpRoute, object).unwrap()
    }

    struct Mesh {
        index: Index,
        ledger: RouteLedger,
    }

    impl Mesh {
        fn new() -> Self {
            Self {
                index: Index::new(IndexConfig::default()),
                ledger: RouteLedger::default(),
            }
        }

        fn apply(&mut self, object: Object) {
            self.ledger.applied(&object);
            let delta = self.index.handle(Event::Apply(object));
            self.ledger.said(&delta.route_statuses);
        }

        fn take(&mut self, now: &str) -> Option<WantedParents> {
            let mut wanted = self.ledger.take(10, now);
            assert!(wanted.len() <= 1);
            wanted.pop()
        }
    }

    #[test]
    fn a_write_is_followed_by_silence() {
        let mut mesh = Mesh::new();
        mesh.apply(route(1, 1, &json!([])));
        let wanted = mesh.take(NOW).unwrap();
        assert_eq!(wanted.resource_version, "1");
        let [parent] = &wanted.parents[..] else {
            panic!()
        };
        assert_eq!(parent["conditions"][0]["reason"], "NoMatchingParent");
        assert_eq!(parent["conditions"][0]["observedGeneration"], 1);
        mesh.apply(route(2, 1, &json!(wanted.parents)));
        assert_eq!(mesh.take(LATER), None);
    }

    /// The service has no waypoint, so it is its own ancestor.
    #[test]
    fn a_policy_says_the_same_in_its_ancestors() {
        let policy = |version: u32, ancestors: &Value| {
            let object = json!({
                "metadata": {"name": "p", "namespace": "shop", "generation": 3, "resourceVersion": version.to_string()},
                "spec": {
                    "targetRefs": [{"group": "", "kind": "Service", "name": "nobody"}],
                    "validation": {"hostname": "a.example", "wellKnownCACertificates": "System"},
                },
                "status": {"ancestors": ancestors},
            });
            Object::deserialize(Kind::BackendTlsPolicy, object).unwrap()
        };
        let foreign = json!({"ancestorRef": {"name": "ingress"}, "controllerName": "example.com/c", "conditions": []});
        let mut mesh = Mesh::new();
        mesh.apply(policy(1, &json!([foreign])));
        let wanted = mesh.take(NOW).unwrap();
        assert_eq!(wanted.parents[0], foreign);
        let own = &wanted.parents[1];
        assert_eq!(own["ancestorRef"]["name"], "nobody");
        let conditions = own["conditions"].as_array().unwrap();
        let told: Vec<[&Value; 3]> = conditions
            .iter()
            .map(|one| [&one["type"], &one["reason"], &one["observedGeneration"]])
            .collect();
        let expected = [
            ["Accepted".into(), "TargetNotFound".into(), json!(3)],
            ["ResolvedRefs".into(), "ResolvedRefs".into(), json!(3)],
        ];
        assert_eq!(json!(told), json!(expected));
        mesh.apply(policy(2, &json!(wanted.parents)));
        assert_eq!(mesh.take(LATER), None, "a write is followed by silence");
    }

    #[test]
    fn times_stay_while_nothing_turns_and_the_generation_moves() {
        let mut mesh = Mesh::new();
        mesh.apply(route(1, 1, &json!([])));
        let parents = json!(mesh.take(NOW).unwrap().parents);
        mesh.apply(route(2, 2, &parents));
        let wanted = mesh.take(LATER).unwrap();
        let condition = &wanted.parents[0]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], NOW);
        assert_eq!(condition["observedGeneration"], 2);
    }

    #[test]
    fn entries_of_others_stay_as_they_are_and_ours_go_when_the_parent_does() {
        let foreign = json!({"parentRef": {"name": "ingress"}, "controllerName": "example.com/c",
            "conditions": [{"type": "Accepted", "status": "True"}]});
        let stale = json!({"parentRef": {"name": "gone"}, "controllerName": ROUTE_CONTROLLER, "conditions": []});
        let mut mesh = Mesh::new();
        mesh.apply(route(1, 1, &json!([foreign, stale])));
        let wanted = mesh.take(NOW).unwrap();
        assert_eq!(wanted.parents.len(), 2);
        assert_eq!(wanted.parents[0], foreign);
        assert_eq!(wanted.parents[1]["parentRef"]["name"], "nobody");

        let elsewhere = json!({
            "metadata": {"name": "r", "namespace": "shop", "generation": 2, "resourceVersion": "3"},
            "spec": {"parentRefs": [{"name": "ingress"}], "rules": []},
            "status": {"parents": wanted.parents},
        });
        mesh.apply(Object::deserialize(Kind::HttpRoute, elsewhere).unwrap());
        assert_eq!(mesh.take(NOW).unwrap().parents, [foreign]);
    }

    #[test]
    fn what_was_said_of_an_older_form_waits_for_the_newer() {
        let mut mesh = Mesh::new();
        mesh.apply(route(1, 1, &json!([])));
        mesh.take(NOW).unwrap();
        mesh.ledger.applied(&route(2, 2, &json!([])));
        assert_eq!(mesh.take(NOW), None);
    }
}
