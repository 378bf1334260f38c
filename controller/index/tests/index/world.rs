//! An index under test, and the model as it stands, kept by applying deltas only.

use std::{collections::BTreeMap, sync::Arc};

use karst_index::{
    Changes, Condition, Delta, Event, Index, IndexConfig, NodeChange, RouteStatus, Transition,
};
use karst_k8s_api::{Kind, Object, ObjectKey};
use karst_model::{
    enrollment::{Generation, NodeWorkload, PodCapture},
    name::{GatewayKey, PodUid, PolicyKey, ServiceKey, WorkloadUid},
    policy::Authorization,
    rate_limit::RateLimit,
    route::{Route, RouteKey},
    service::Service,
    telemetry::Telemetry,
    traffic::ServiceTraffic,
    waypoint_policy::WaypointPolicy,
    workload::Workload,
};

/// Reads the objects of a text, separated by `---`.
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text).unwrap();
    let read = |document: serde_json::Value| {
        let field = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let kind = Kind::of(&field("apiVersion"), &field("kind")).unwrap();
        Object::deserialize(kind, document).unwrap()
    };
    documents.into_iter().map(read).collect()
}

/// The model, as a consumer of deltas would hold it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Model {
    pub(crate) workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    pub(crate) services: BTreeMap<ServiceKey, Arc<Service>>,
    pub(crate) policies: BTreeMap<PolicyKey, Arc<Authorization>>,
    pub(crate) nodes: BTreeMap<(Arc<str>, PodUid), Arc<NodeWorkload>>,
    pub(crate) conditions: BTreeMap<ObjectKey, Vec<Condition>>,
    pub(crate) routes: BTreeMap<(GatewayKey, RouteKey), Arc<Route>>,
    pub(crate) waypoint_policies: BTreeMap<(GatewayKey, PolicyKey), Arc<WaypointPolicy>>,
    pub(crate) rate_limits: BTreeMap<(GatewayKey, PolicyKey), Arc<RateLimit>>,
    pub(crate) traffic: BTreeMap<(GatewayKey, ServiceKey), Arc<ServiceTraffic>>,
    pub(crate) telemetries: BTreeMap<Arc<str>, Arc<Telemetry>>,
    pub(crate) route_statuses: BTreeMap<ObjectKey, RouteStatus>,
}

pub(crate) struct World {
    pub(crate) index: Index,
    pub(crate) model: Model,
    /// Everything that has begun.
    begun: Vec<Transition>,
}

impl World {
    pub(crate) fn of(text: &str) -> Self {
        let mut world = Self::empty();
        world.apply(text);
        world
    }

    pub(crate) fn empty() -> Self {
        Self {
            index: Index::new(IndexConfig::default()),
            model: Model::default(),
            begun: Vec::new(),
        }
    }

    /// Nobody is waited for, until nothing begins any more.
    pub(crate) fn end_transitions(&mut self) {
        while !self.begun.is_empty() {
            let begun = std::mem::take(&mut self.begun);
            self.take(begun.into_iter().map(Event::Overdue).collect());
        }
    }

    pub(crate) fn apply(&mut self, text: &str) -> Delta {
        self.take(objects(text).into_iter().map(Event::Apply).collect())
    }

    pub(crate) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Delta {
        self.take(vec![Event::Delete(ObjectKey::new(kind, namespace, name))])
    }

    /// The pod's node captures it under the generation that it was told last, and lets policy decide; or does not.
    pub(crate) fn captured(&mut self, uid: &str, captured: bool) -> Delta {
        let generation = self.generation(uid);
        self.reported(uid, captured.then_some((generation, false)))
    }

    /// The same, with plain connections passing.
    pub(crate) fn captured_open(&mut self, uid: &str) -> Delta {
        let generation = self.generation(uid);
        self.reported(uid, Some((generation, true)))
    }

    pub(crate) fn generation(&self, uid: &str) -> u64 {
        self.node_row(uid).map_or(0, |row| row.generation.0)
    }

    /// A report: generation, and whether plain connections pass.
    pub(crate) fn reported(&mut self, uid: &str, capture: Option<(u64, bool)>) -> Delta {
        let capture = capture.map(|(generation, plaintext_open)| PodCapture {
            generation: Generation(generation),
            plaintext_open,
        });
        self.take(vec![Event::Captured {
            pod_uid: uid.into(),
            capture,
        }])
    }

    /// The only transition that a delta begins.
    pub(crate) fn begun(delta: &Delta) -> Transition {
        let [begun] = &delta.transitions[..] else {
            panic!("not one transition: {delta:?}");
        };
        begun.clone()
    }

    pub(crate) fn take(&mut self, events: Vec<Event>) -> Delta {
        let delta = self.index.handle_all(events);
        self.model.apply(&delta);
        self.begun.extend(delta.transitions.iter().cloned());
        delta
    }

    /// The pod's workload in namespace `shop`.
    pub(crate) fn pod(&self, name: &str) -> &Workload {
        let uid: WorkloadUid = format!("Kubernetes//Pod/shop/{name}").as_str().into();
        self.model
            .workloads
            .get(&uid)
            .unwrap_or_else(|| panic!("no workload {uid}"))
    }

    /// A service of namespace `shop`.
    pub(crate) fn service(&self, name: &str) -> &Service {
        let key: ServiceKey = format!("shop/{name}.shop.svc.cluster.local")
            .parse()
            .unwrap();
        self.model
            .services
            .get(&key)
            .unwrap_or_else(|| panic!("no service {key}"))
    }

    pub(crate) fn host(&self, key: &str) -> &Service {
        self.model
            .services
            .get(&key.parse().unwrap())
            .unwrap_or_else(|| panic!("no service {key}"))
    }

    pub(crate) fn policy(&self, key: &str) -> Option<&Authorization> {
        self.model
            .policies
            .get(&key.parse().unwrap())
            .map(|policy| &**policy)
    }

    pub(crate) fn node_row(&self, uid: &str) -> Option<&NodeWorkload> {
        self.model
            .nodes
            .iter()
            .find(|((_, pod), _)| *pod == uid.into())
            .map(|(_, row)| &**row)
    }

    /// Messages of the conditions of an object.
    pub(crate) fn said(&self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        let key = ObjectKey::new(kind, namespace, name);
        let conditions = self.model.conditions.get(&key).into_iter().flatten();
        conditions.map(|one| one.message.clone()).collect()
    }

    /// Reasons of the conditions of an object.
    pub(crate) fn reasons(&self, kind: Kind, namespace: &str, name: &str) -> Vec<&'static str> {
        let key = ObjectKey::new(kind, namespace, name);
        self.model
            .conditions
            .get(&key)
            .into_iter()
            .flatten()
            .map(|condition| condition.reason)
            .collect()
    }
}

impl Model {
    /// Generations tell in which order things came.
    pub(crate) fn without_generations(mut self) -> Self {
        for row in self.nodes.values_mut() {
            Arc::make_mut(row).generation = Generation(0);
        }
        self
    }

    pub(crate) fn of_snapshot(index: &Index) -> Self {
        let mut model = Self::default();
        model.apply(&index.snapshot());
        model
    }

    pub(crate) fn apply(&mut self, delta: &Delta) {
        put(&mut self.workloads, &delta.workloads);
        put(&mut self.services, &delta.services);
        put(&mut self.policies, &delta.policies);
        put(&mut self.routes, &delta.routes);
        put(&mut self.waypoint_policies, &delta.waypoint_policies);
        put(&mut self.rate_limits, &delta.rate_limits);
        put(&mut self.traffic, &delta.traffic);
        put(&mut self.telemetries, &delta.telemetries);
        for status in &delta.route_statuses {
            match status.parents.is_empty() {
                true => drop(self.route_statuses.remove(&status.route)),
                false => drop(
                    self.route_statuses
                        .insert(status.route.clone(), status.clone()),
                ),
            }
        }
        for change in &delta.node_workloads {
            match change.clone() {
                NodeChange::Updated { node, workload } => {
                    self.nodes
                        .insert((node, workload.pod_uid.clone()), workload);
                }
                NodeChange::Removed { node, pod_uid } => drop(self.nodes.remove(&(node, pod_uid))),
            }
        }
        for change in &delta.conditions {
            match change.conditions.is_empty() {
                true => drop(self.conditions.remove(&change.object)),
                false => drop(
                    self.conditions
                        .insert(change.object.clone(), change.conditions.clone()),
                ),
            }
        }
    }
}

fn put<K: Ord + Clone, V>(table: &mut BTreeMap<K, Arc<V>>, changes: &Changes<K, V>) {
    changes
        .removed
        .iter()
        .for_each(|key| drop(table.remove(key)));
    table.extend(changes.updated.iter().cloned());
}

/// A ready pod of namespace `shop` on node n1; `more` is added to its metadata, two spaces deep.
pub(crate) fn pod(name: &str, ip: &str, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  uid: uid-{name}
{more}
spec:
  nodeName: n1
  serviceAccountName: {name}
  containers:
  - name: main
    ports: [{{name: web, containerPort: 8080}}, {{name: admin, containerPort: 9090}}]
status:
  phase: Running
  podIPs: [{{ip: {ip}}}]
  conditions: [{{type: Ready, status: \"True\"}}]
"
    )
}

pub(crate) fn namespace(name: &str, mode: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{istio.io/dataplane-mode: {mode}}}}}\n"
    )
}
