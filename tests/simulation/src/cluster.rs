//! The objects of a small cluster, and random edits of them.

use std::collections::BTreeMap;

use karst_index::Event;
use karst_k8s_api::{Kind, Object, ObjectKey};
use rand::{Rng, RngExt as _};
use serde_json::{Value, json};

/// The nodes; each has an agent.
pub const NODES: [&str; 2] = ["n1", "n2"];
const NAMESPACES: [&str; 3] = ["shop", "bank", "vault"];
const PODS: [&str; 3] = ["a", "b", "c"];
const APPS: [&str; 2] = ["web", "db"];

/// A pod that is there now.
#[derive(Clone, Debug)]
pub struct Pod {
    pub uid: String,
    pub node: &'static str,
}

/// Whether policies refuse everything to this pod at all times: one of its namespace, one that selects it, or one that
/// is edited between these two forms.
pub fn is_always_refused(namespace: &str, name: &str) -> bool {
    matches!(
        (namespace, name),
        ("vault", _) | ("shop", "a") | ("bank", "b")
    )
}

/// Everything that is there now.
#[derive(Default)]
pub struct Cluster {
    objects: BTreeMap<ObjectKey, Object>,
    /// By address, which no two pods ever share.
    pods: BTreeMap<String, Pod>,
    /// Pods made so far.
    made: u32,
}

impl Cluster {
    /// A cluster with policies that refuse everything to some pods at all times; see [`is_always_refused`].
    pub fn new() -> Self {
        let mut cluster = Self::default();
        cluster.refuse_all("vault", "guard", None);
        cluster.refuse_all("shop", "guard", Some("a"));
        cluster.refuse_all("bank", "guard", None);
        cluster
    }

    /// A DENY of everything, to the pods of a namespace or to the one of this name.
    fn refuse_all(&mut self, namespace: &str, name: &str, pod: Option<&str>) -> Event {
        let mut spec = json!({"action": "DENY", "rules": [{}]});
        if let Some(pod) = pod {
            spec["selector"] = json!({"matchLabels": {"pod": pod}});
        }
        self.apply(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}),
        )
    }

    /// The events that bring an empty index to this cluster.
    pub fn events(&self) -> Vec<Event> {
        self.objects.values().cloned().map(Event::Apply).collect()
    }

    /// The pod at an address, if it is still there.
    pub fn pod_at(&self, address: &str) -> Option<&Pod> {
        self.pods.get(address)
    }

    /// The pods that are there.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// One random edit.
    pub fn edit(&mut self, rng: &mut impl Rng) -> Event {
        match rng.random_range(0..22) {
            0..5 => self.edit_namespace(rng),
            5..10 => self.edit_pod(rng),
            10..12 => self.edit_service(rng),
            12..17 => self.edit_policy(rng),
            17..20 => self.edit_peer_authentication(rng),
            _ => {
                let pod = rng.random_bool(0.5).then_some("b");
                self.refuse_all("bank", "guard", pod)
            }
        }
    }

    fn edit_namespace(&mut self, rng: &mut impl Rng) -> Event {
        let mode = pick(rng, &["ambient", "ambient", "none"]);
        self.apply(
            "v1",
            "Namespace",
            json!({"metadata": {"name": pick(rng, &NAMESPACES), "labels": {"istio.io/dataplane-mode": mode}}}),
        )
    }

    /// A new pod, new labels for one that is there, or its end.
    fn edit_pod(&mut self, rng: &mut impl Rng) -> Event {
        let (namespace, name) = (pick(rng, &NAMESPACES), pick(rng, &PODS));
        let key = ObjectKey::new(Kind::Pod, namespace, name);
        let there = self.objects.contains_key(&key);
        if there && rng.random_ratio(1, 4) {
            let prefix = format!("uid-{namespace}-{name}-");
            self.pods.retain(|_, pod| !pod.uid.starts_with(&prefix));
            return self.delete(key);
        }
        let app = pick(rng, &APPS);
        let (uid, address, node) = self.pod_of(namespace, name);
        self.apply(
            "v1",
            "Pod",
            json!({
                "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": app, "pod": name}},
                "spec": {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "main"}]},
                "status": {
                    "phase": "Running",
                    "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }),
        )
    }

    /// The living pod of that name, or a new one.
    fn pod_of(&mut self, namespace: &str, name: &str) -> (String, String, &'static str) {
        let prefix = format!("uid-{namespace}-{name}-");
        let living = self
            .pods
            .iter()
            .find(|(_, pod)| pod.uid.starts_with(&prefix));
        if let Some((address, pod)) = living {
            return (pod.uid.clone(), address.clone(), pod.node);
        }
        self.made += 1;
        let (uid, address) = (
            format!("{prefix}{}", self.made),
            format!("10.0.{}.{}", self.made / 250, self.made % 250 + 1),
        );
        let node = NODES[self.made as usize % NODES.len()];
        self.pods.insert(
            address.clone(),
            Pod {
                uid: uid.clone(),
                node,
            },
        );
        (uid, address, node)
    }

    fn edit_service(&mut self, rng: &mut impl Rng) -> Event {
        let (namespace, app) = (pick(rng, &NAMESPACES), pick(rng, &APPS));
        if rng.random_ratio(1, 4) {
            return self.delete(ObjectKey::new(Kind::Service, namespace, app));
        }
        let port = rng.random_range(80..84);
        let number = namespace.len();
        self.apply(
            "v1",
            "Service",
            json!({
                "metadata": {"name": app, "namespace": namespace},
                "spec": {"clusterIP": format!("10.96.{number}.{}", app.len()), "selector": {"app": app}, "ports": [{"name": "http", "port": port}]},
            }),
        )
    }

    /// Names keep to one scope: a policy that comes back under its name with a selector, after it covered a namespace and
    /// was removed, is told late, and its workloads refuse everybody until then.
    fn edit_policy(&mut self, rng: &mut impl Rng) -> Event {
        let namespace = pick(rng, &["shop", "bank", "vault", "istio-system"]);
        let name = pick(rng, &["p", "q"]);
        if rng.random_ratio(1, 4) {
            return self.delete(ObjectKey::new(Kind::AuthorizationPolicy, namespace, name));
        }
        let from = pick(
            rng,
            &[
                r#"[{"from": [{"source": {"namespaces": ["shop"]}}]}]"#,
                r#"[{"from": [{"source": {"principals": ["cluster.local/ns/bank/sa/a"]}}]}]"#,
                r#"[{"to": [{"operation": {"ports": ["80"]}}]}]"#,
                "[{}]",
            ],
        );
        let rules: Value = serde_json::from_str(from).expect("the rules above are JSON");
        let mut spec = json!({"action": pick(rng, &["ALLOW", "DENY", "DENY"]), "rules": rules});
        if name == "p" {
            spec["selector"] = json!({"matchLabels": {"app": pick(rng, &APPS)}});
        }
        self.apply(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}),
        )
    }

    fn edit_peer_authentication(&mut self, rng: &mut impl Rng) -> Event {
        let namespace = pick(rng, &["shop", "bank", "vault", "istio-system"]);
        if rng.random_ratio(1, 4) {
            return self.delete(ObjectKey::new(
                Kind::PeerAuthentication,
                namespace,
                "strict",
            ));
        }
        let mut spec = json!({"mtls": {"mode": pick(rng, &["STRICT", "PERMISSIVE"])}});
        selector(rng, &mut spec);
        if spec.get("selector").is_some() {
            spec["portLevelMtls"] = json!({"80": {"mode": pick(rng, &["STRICT", "PERMISSIVE"])}});
        }
        self.apply(
            "security.istio.io/v1",
            "PeerAuthentication",
            json!({"metadata": {"name": "strict", "namespace": namespace}, "spec": spec}),
        )
    }

    fn apply(&mut self, version: &str, kind: &str, mut value: Value) -> Event {
        value["apiVersion"] = version.into();
        value["kind"] = kind.into();
        let kind = Kind::of(version, kind).expect("a kind that the index knows");
        let object = Object::deserialize(kind, value).expect("an object of that kind");
        self.objects.insert(object.key(), object.clone());
        Event::Apply(object)
    }

    fn delete(&mut self, key: ObjectKey) -> Event {
        self.objects.remove(&key);
        Event::Delete(key)
    }
}

fn selector(rng: &mut impl Rng, spec: &mut Value) {
    if rng.random_ratio(2, 3) {
        spec["selector"] = json!({"matchLabels": {"app": pick(rng, &APPS)}});
    }
}

fn pick(rng: &mut impl Rng, from: &[&'static str]) -> &'static str {
    from[rng.random_range(0..from.len())]
}
