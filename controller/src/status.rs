//! What objects are told about themselves: conditions in their status, Events for kinds without one, and both of Services,
//! whose status is others' too.
//!
//! ```text
//!   objects (watch) ─┐                                            ┌─ write: server-side apply of status, field manager karst
//!   index conditions ┼──► Ledger (pure: what differs, bounded) ───┤
//!   acknowledgements ┘        only while this replica leads       └─ events: events.k8s.io, rate limited
//! ```
//!
//! The leader knows who follows it; of those who follow other replicas these tell it (`share`, `others`).
//!
//! A status is written only where it differs from what the object has, so that a write is followed by silence. Changes
//! of objects go first; changes of how many nodes have them follow slowly.

mod announce;
mod ledger;
mod others;
mod routes;
mod share;
mod write;

pub use ledger::{Announcement, Ledger, Reach, Wanted};
pub use routes::{RouteLedger, WantedParents};
pub use share::Share;
pub use write::{StatusMetrics, run};

use std::sync::{Mutex, MutexGuard, PoisonError};

use karst_index::{Delta, Event};
use karst_k8s_api::ObjectKey;

use crate::{serve::resources::Revision, watch::Complaint};

/// The ledger, shared by those who know something and the one who writes.
#[derive(Default)]
pub struct Statuses {
    /// Objects of files have no status, and nothing is remembered of them.
    used: bool,
    ledger: Mutex<Ledger>,
    routes: Mutex<RouteLedger>,
}

impl Statuses {
    /// For objects of a cluster, or of files.
    pub fn new(source: Source) -> Self {
        Self {
            used: source == Source::Cluster,
            ledger: Mutex::default(),
            routes: Mutex::default(),
        }
    }

    /// Objects came, changed or went; [`Self::published`] follows.
    pub fn observe(&self, events: &[Event]) {
        if !self.used {
            return;
        }
        let (mut ledger, mut routes) = (self.lock(), self.routes());
        for event in events {
            match event {
                Event::Apply(object) => {
                    ledger.applied(object);
                    routes.applied(object);
                }
                Event::Delete(key) => {
                    ledger.deleted(key);
                    routes.deleted(key);
                }
                _ => {}
            }
        }
    }

    /// What the index says of it, and where its effect is published.
    pub fn published(&self, delta: &Delta, revision: Revision) {
        if self.used {
            let mut ledger = self.lock();
            ledger.said(&delta.conditions);
            ledger.addressed(&delta.entry_addresses);
            ledger.published(revision);
            self.routes().said(&delta.route_statuses);
        }
    }

    /// An object cannot be used as it is written; without complaints it can.
    pub fn unusable(&self, key: &ObjectKey, complaints: &[Complaint]) {
        if self.used {
            self.lock().unusable(key, complaints);
        }
    }

    /// Complaints about an object that is read apart from the index.
    pub fn complain(&self, key: &ObjectKey, uid: &str, complaints: &[Complaint]) {
        if self.used {
            self.lock().complain(key, uid, complaints);
        }
    }

    pub(super) fn routes(&self) -> MutexGuard<'_, RouteLedger> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Cluster,
    Files,
}
