//! What a watch of one kind says, as differences: pure.
//!
//! ```text
//!   Init, InitApply*, InitDone   (a list: the first, or again after the watch fell too far behind)
//!   Apply, Delete                (changes)         ──► Feed ──► Applied | Deleted | Unusable, only where something differs
//! ```

use hashbrown::{HashMap, HashSet};
use karst_k8s_api::{Kind, Object, ObjectKey};
use kube::runtime::watcher;

use super::{
    last_resort::last_resort,
    raw::{Raw, Version},
    read::{Complaint, read},
};

/// A difference.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// The object is there, in this form; nothing is wrong with it.
    Applied(Box<Object>),
    Deleted(ObjectKey),
    /// The object cannot be used as it is written. Its last good form stays; where there was none, `instead` (if any)
    /// takes its place.
    Unusable {
        key: ObjectKey,
        complaints: Vec<Complaint>,
        instead: Option<Box<Object>>,
    },
}

/// What is known of one kind.
#[derive(Debug)]
pub(super) struct Feed {
    kind: Kind,
    known: HashMap<ObjectKey, Known>,
    /// While a list comes in: the objects that were in it.
    listing: Option<HashSet<ObjectKey>>,
    complete: bool,
}

#[derive(Debug)]
struct Known {
    version: Version,
    /// Whether some form of it is in use.
    in_use: bool,
    unusable: bool,
}

impl Feed {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            known: HashMap::new(),
            listing: None,
            complete: false,
        }
    }

    /// Takes one event; what differs is added to `changes`.
    pub(super) fn handle(&mut self, event: watcher::Event<Raw>, changes: &mut Vec<Change>) {
        match event {
            watcher::Event::Init => self.listing = Some(HashSet::new()),
            watcher::Event::InitApply(raw) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(raw.key(self.kind));
                }
                changes.extend(self.seen(raw));
            }
            watcher::Event::InitDone => {
                changes.extend(self.listed());
                self.complete = true;
            }
            watcher::Event::Apply(raw) => changes.extend(self.seen(raw)),
            watcher::Event::Delete(raw) => changes.extend(self.gone(raw.key(self.kind))),
        }
    }

    /// Whether the kind has been listed to its end once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether a list is coming in: its changes may be handed on together.
    pub(super) fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    pub(super) fn objects(&self) -> usize {
        self.known.len()
    }

    pub(super) fn unusable(&self) -> usize {
        self.known.values().filter(|known| known.unusable).count()
    }

    fn seen(&mut self, raw: Raw) -> Option<Change> {
        let (key, version) = (raw.key(self.kind), raw.version());
        let before = self.known.get(&key);
        if before.is_some_and(|known| known.version == version) {
            return None;
        }
        let was_in_use = before.is_some_and(|known| known.in_use);
        let (change, in_use, unusable) = match read(self.kind, raw.json.clone()) {
            Ok(object) => (Change::Applied(Box::new(object)), true, false),
            Err(complaints) => {
                let instead = (!was_in_use)
                    .then(|| last_resort(self.kind, &raw.json))
                    .flatten();
                let in_use = was_in_use || instead.is_some();
                let instead = instead.map(Box::new);
                let key = key.clone();
                let change = Change::Unusable {
                    key,
                    complaints,
                    instead,
                };
                (change, in_use, true)
            }
        };
        let known = Known {
            version,
            in_use,
            unusable,
        };
        self.known.insert(key, known);
        Some(change)
    }

    fn gone(&mut self, key: ObjectKey) -> Option<Change> {
        self.known.remove(&key).map(|_| Change::Deleted(key))
    }

    /// What was known and was not in the list is gone.
    fn listed(&mut self) -> Vec<Change> {
        let Some(listing) = self.listing.take() else {
            return Vec::new();
        };
        let gone = self
            .known
            .extract_if(|key, _| !listing.contains(key))
            .map(|(key, _)| Change::Deleted(key));
        gone.collect()
    }
}

#[cfg(test)]
mod tests;
