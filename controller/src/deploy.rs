//! Waypoints on Kubernetes: what a Gateway asks for is deployed, and its status and that of its class are written.
//!
//! ```text
//!   Gateways (watch) ───┐                      ┌─ render (pure) + overlay ──► ServiceAccount, Service, Deployment, …
//!   the index's word ───┴──► Waypoints ──► Deployer                           (server-side apply, owned by the Gateway)
//!                            (what differs)    └─ status (pure) ────────────► Gateway and GatewayClass
//!                                                only while this replica leads
//!   XMeshes (asked now and then) ──────────► mesh (pure) ──► one XMesh and its status, where the cluster knows the kind
//! ```
//!
//! Level-triggered: everything is compared again when this replica begins to lead, and every few minutes. What was made
//! goes with its Gateway, by the owner reference.

mod mesh;
mod overlay;
mod render;
mod shell;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use karst_index::{Event, GatewayStatus};
use karst_k8s_api::{
    Kind, Object, ObjectKey,
    gateway::{Gateway, GatewayClass},
};
use karst_model::name::GatewayKey;

pub use self::{
    render::Settings,
    shell::{DeployMetrics, Deployer},
};
use crate::status::Source;

/// Label on what is made here, by which an uninstallation finds it and `karst check` knows it from another mesh's.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
const CONTROLLER: &str = "karst-controller";

/// Gateways and what the index says of them, shared by those who know something and the one who deploys.
pub struct Waypoints {
    /// A directory of files deploys nothing.
    used: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    gateways: BTreeMap<ObjectKey, Known>,
    classes: Classes,
    changed: BTreeSet<ObjectKey>,
    classes_changed: bool,
}

/// Classes by name.
type Classes = BTreeMap<String, GatewayClass>;

/// One Gateway.
#[derive(Clone, Default)]
struct Known {
    gateway: Option<Gateway>,
    /// `None`: it is no waypoint.
    status: Option<GatewayStatus>,
}

impl Waypoints {
    pub fn new(source: Source) -> Self {
        Self {
            used: source == Source::Cluster,
            inner: Mutex::default(),
        }
    }

    /// Objects came, changed or went; [`Self::said`] follows.
    pub fn observe(&self, events: &[Event]) {
        if !self.used {
            return;
        }
        let mut inner = self.lock();
        for event in events {
            match event {
                Event::Apply(Object::Gateway(gateway)) => {
                    let key = ObjectKey::new(
                        Kind::Gateway,
                        gateway.metadata.namespace.as_deref().unwrap_or_default(),
                        gateway.metadata.name.as_deref().unwrap_or_default(),
                    );
                    inner.gateways.entry(key.clone()).or_default().gateway =
                        Some((**gateway).clone());
                    inner.changed.insert(key);
                }
                Event::Apply(Object::GatewayClass(class)) => {
                    let name = class.metadata.name.clone().unwrap_or_default();
                    inner.classes.insert(name, (**class).clone());
                    inner.classes_changed = true;
                }
                Event::Delete(key) if key.kind == Kind::Gateway => {
                    inner.gateways.remove(key);
                    inner.changed.remove(key);
                }
                Event::Delete(key) if key.kind == Kind::GatewayClass => {
                    inner.classes.remove(&*key.name);
                    inner.classes_changed = true;
                }
                _ => {}
            }
        }
    }

    /// What the index says of Gateways.
    pub fn said(&self, statuses: &[(ObjectKey, Option<GatewayStatus>)]) {
        if !self.used {
            return;
        }
        let mut inner = self.lock();
        for (key, status) in statuses {
            if let Some(known) = inner.gateways.get_mut(key) {
                known.status.clone_from(status);
                inner.changed.insert(key.clone());
            }
        }
    }

    /// The Gateways whose waypoints are to believe proxies in front of them, and how many.
    pub fn trusted_proxies(&self) -> Vec<(GatewayKey, u16)> {
        let inner = self.lock();
        let known = inner.gateways.iter();
        let trusting = known.filter_map(|(key, known)| {
            let trusted = known.status.as_ref()?.trusted_proxies;
            let gateway = GatewayKey {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            (trusted > 0).then_some((gateway, trusted))
        });
        trusting.collect()
    }

    /// Everything is to be compared again.
    fn refresh(&self) {
        let mut inner = self.lock();
        inner.changed = inner.gateways.keys().cloned().collect();
        inner.classes_changed = true;
    }

    fn class_again(&self) {
        self.lock().classes_changed = true;
    }

    fn again(&self, key: ObjectKey) {
        self.lock().changed.insert(key);
    }

    /// The Gateways that are to be looked at, and the classes where these are.
    fn take(&self) -> (Vec<(ObjectKey, Known)>, Option<Classes>) {
        let mut inner = self.lock();
        let changed = std::mem::take(&mut inner.changed);
        let gateways = changed.into_iter().filter_map(|key| {
            let known = inner.gateways.get(&key)?.clone();
            Some((key, known))
        });
        let gateways = gateways.collect();
        let classes = std::mem::take(&mut inner.classes_changed).then(|| inner.classes.clone());
        (gateways, classes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
