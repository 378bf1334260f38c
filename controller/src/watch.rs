//! The Kubernetes API as a source of objects: one watch per kind, each with bookmarks, paged lists and waits between
//! failures, all told to the index's owner as the same events that a directory of files gives.
//!
//! ```text
//!   API server ──list, watch──► one task per kind: Feed (pure: differences) ──► Watch ──► first: all kinds as one step
//!                                      │                                          └────► then: Command::Objects
//!                                      └── Health (metrics, readiness), Problems (objects that cannot be used)
//! ```
//!
//! With the API server away everything stays as it was, and the watches come back by themselves. A kind whose resource
//! definition is not installed counts as empty and is asked for again every few seconds.

mod backoff;
mod feed;
mod follow;
mod health;
mod last_resort;
mod mesh_config;
mod raw;
mod read;
mod trim;

use std::{collections::BTreeSet, sync::Arc};

use karst_index::Event;
use karst_k8s_api::{Kind, ObjectKey, istio::mesh_config::CONFIG_MAP};
use karst_runtime::supervise::{Shutdown, spawn_essential};
use kube::Client;
use tokio::sync::mpsc;

pub(crate) use self::{backoff::Backoff, follow::steady};
use self::{feed::Change, follow::Follow};
pub use self::{
    health::WatchHealth,
    mesh_config::{Expected, MeshConfigWatch},
    read::Complaint,
};
use crate::{mesh::Command, problems::Problems, status::Statuses};

/// The kinds that are watched in every namespace. Those of Istio may come later, or never.
const KINDS: [Kind; 24] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::ServiceEntry,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::ReferenceGrant,
    Kind::BackendTlsPolicy,
    // Roots that BackendTLSPolicies name; the mesh configuration is looked at apart.
    Kind::ConfigMap,
    Kind::RateLimit,
    Kind::HealthCheck,
    // Not honoured yet: their status says so.
    Kind::RequestAuthentication,
    Kind::WorkloadEntry,
    Kind::DestinationRule,
    Kind::VirtualService,
    Kind::Telemetry,
];

/// Batches of changes between the watches and the index's owner.
const BATCHES_MAX: usize = 64;

/// What one watch hands on at once.
struct Batch {
    kind: Kind,
    changes: Vec<Change>,
    /// The kind has been listed to its end, or is not installed.
    complete: bool,
}

/// All watches together.
pub struct Watch {
    batches: mpsc::Receiver<Batch>,
    /// Kinds that have not been listed yet.
    missing: BTreeSet<Kind>,
    told: Told,
}

/// Who is told of objects that cannot be used as they are written.
#[derive(Clone)]
pub struct Told {
    pub problems: Arc<Problems>,
    pub statuses: Arc<Statuses>,
}

impl Told {
    /// Without complaints the object can be used.
    fn of(&self, key: &ObjectKey, complaints: Vec<Complaint>) {
        self.statuses.unusable(key, &complaints);
        self.problems.set_object(key, complaints);
    }
}

impl Watch {
    /// Starts to watch every kind.
    pub fn start(client: &Client, health: &WatchHealth, told: Told, shutdown: &Shutdown) -> Self {
        let (tx, batches) = mpsc::channel(BATCHES_MAX);
        for kind in KINDS {
            let follow = Follow::new(client.clone(), kind, health.clone(), tx.clone());
            let stop = shutdown.clone();
            spawn_essential("watch", shutdown, async move {
                stop.run_until_cancelled(follow.run()).await;
            });
        }
        Self {
            batches,
            missing: KINDS.into(),
            told,
        }
    }

    /// Waits until every kind is listed; the objects of all, to be applied as one step. Nothing may be served before,
    /// as half of the objects mean something else than all of them.
    pub async fn first(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.missing.is_empty() {
            let Some(batch) = self.batches.recv().await else {
                break;
            };
            if batch.complete {
                self.missing.remove(&batch.kind);
            }
            self.take(batch.changes, &mut events);
        }
        events
    }

    /// Hands on every change from here on, as many at once as are waiting.
    pub async fn forward(mut self, commands: mpsc::Sender<Command>) {
        let mut batches = Vec::new();
        while self.batches.recv_many(&mut batches, BATCHES_MAX).await > 0 {
            let mut events = Vec::new();
            for batch in batches.drain(..) {
                self.take(batch.changes, &mut events);
            }
            if !events.is_empty() && commands.send(Command::Objects(events)).await.is_err() {
                return;
            }
        }
    }

    /// Objects become events, what is wrong with them problems.
    fn take(&self, changes: Vec<Change>, events: &mut Vec<Event>) {
        for change in changes.into_iter().filter(is_of_index) {
            match change {
                Change::Applied(object) => {
                    self.told.of(&object.key(), Vec::new());
                    events.push(Event::Apply(*object));
                }
                Change::Deleted(key) => {
                    self.told.of(&key, Vec::new());
                    events.push(Event::Delete(key));
                }
                Change::Unusable {
                    key,
                    complaints,
                    instead,
                } => {
                    self.told.of(&key, complaints);
                    events.extend(instead.map(|object| Event::Apply(*object)));
                }
            }
        }
    }
}

/// Everything but the mesh configuration, which [`MeshConfigWatch`] tells.
fn is_of_index(change: &Change) -> bool {
    let key = match change {
        Change::Applied(object) => object.key(),
        Change::Deleted(key) | Change::Unusable { key, .. } => key.clone(),
    };
    key.kind != Kind::ConfigMap || &*key.name != CONFIG_MAP
}
