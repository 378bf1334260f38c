//! All resources, each encoded once, in the order in which they last changed.
//!
//! A client is a position in that order ([`Revision`]): what it has not seen is what comes after. However slow it is,
//! what waits for it is names and never messages, and a name that changes twice waits once. Removed names stay as
//! tombstones so that a client hears of them; their number is bounded, and a client that is further behind is cut off
//! and comes back with the versions that it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use hashbrown::HashMap;
use karst_model::name::GatewayKey;
use karst_proto::discovery;
use prost::Message as _;
use smallvec::SmallVec;
use tokio::sync::watch;
use xxhash_rust::xxh64::xxh64;

/// Tombstones kept per table.
const TOMBSTONES_MAX: usize = 20_000;

/// A position in the order of changes. 0 is before the first.
pub type Revision = u64;

/// Which table a resource lives in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TableKey {
    Address,
    Authorization,
    /// Pods of this node.
    Node(Arc<str>),
    /// Routes of the services that are bound to this waypoint.
    Routes(GatewayKey),
    /// Request policies that concern this waypoint.
    WaypointPolicies(GatewayKey),
    /// What holds for the services that this waypoint sends to.
    Traffic(GatewayKey),
    RequestAuthentications(GatewayKey),
    /// What this waypoint counts.
    RateLimits(GatewayKey),
    /// What is recorded, for everybody.
    Telemetry,
    TrustDomains,
}

/// One change to publish.
#[derive(Clone, Debug)]
pub struct Publication {
    pub table: TableKey,
    pub name: Arc<str>,
    /// `None` removes.
    pub content: Option<Content>,
}

/// A resource before it is encoded for the wire.
#[derive(Clone, Debug)]
pub struct Content {
    pub type_url: &'static str,
    pub value: Vec<u8>,
    /// Other names that it can be asked for by.
    pub aliases: Vec<String>,
    /// Names whose askers get this resource too: the services of a workload.
    pub groups: Vec<Arc<str>>,
    /// A policy that covers workloads which do not name it.
    pub covers_all: bool,
}

/// The store. Share it in an `Arc`.
#[derive(Default)]
pub struct Resources {
    tables: RwLock<Tables>,
    revision: watch::Sender<Revision>,
}

/// The tables at one moment.
#[derive(Default)]
pub struct Tables {
    revision: Revision,
    address: Table,
    authorization: Table,
    /// Tables of one agent or one waypoint.
    own: HashMap<TableKey, Table>,
}

/// Resources of one type.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Arc<str>, Entry>,
    /// Every entry and tombstone once, by its last change.
    order: BTreeMap<Revision, Arc<str>>,
    tombstones: BTreeSet<Revision>,
    /// Changes up to here may have been forgotten.
    forgotten: Revision,
    /// Nearly always of one name each.
    aliases: HashMap<Arc<str>, SmallVec<[Arc<str>; 1]>>,
    groups: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

/// A resource, or the memory of one.
pub struct Entry {
    revision: Revision,
    /// `None` once removed.
    live: Option<Live>,
    /// Since when it has covered workloads that do not name it, at some time.
    covered_since: Option<Revision>,
}

/// A resource as it goes out.
pub struct Live {
    /// Hash of its content, 16 hex digits.
    pub version: Box<str>,
    /// An encoded `envoy.service.discovery.v3.Resource`.
    pub encoded: Bytes,
    /// See [`Content::covers_all`].
    pub covers_all: bool,
    /// It covers no more workloads that do not name it, and did so from this revision on.
    pub narrowed: Option<Revision>,
    aliases: Box<[Arc<str>]>,
    groups: Box<[Arc<str>]>,
}

impl Resources {
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes changes in order and returns the revision after them. Content that is already there changes nothing.
    pub fn publish(&self, publications: impl IntoIterator<Item = Publication>) -> Revision {
        let mut tables = self
            .tables
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for publication in publications {
            tables.publish(publication);
        }
        let revision = tables.revision;
        drop(tables);
        self.revision
            .send_if_modified(|current| std::mem::replace(current, revision) != revision);
        revision
    }

    /// Wakes whenever something was published.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The tables, locked against publishing: not to be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Tables {
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The table of a key; `None` for an agent or a waypoint that there never was anything for.
    pub fn table(&self, key: &TableKey) -> Option<&Table> {
        match key {
            TableKey::Address => Some(&self.address),
            TableKey::Authorization => Some(&self.authorization),
            own => self.own.get(own),
        }
    }

    /// Every table of one agent or one waypoint.
    pub fn own(&self) -> impl Iterator<Item = (&TableKey, &Table)> {
        self.own.iter()
    }

    fn publish(&mut self, publication: Publication) {
        let table = match publication.table {
            TableKey::Address => &mut self.address,
            TableKey::Authorization => &mut self.authorization,
            own => self.own.entry(own).or_default(),
        };
        let live = publication
            .content
            .map(|content| Live::encode(&publication.name, content));
        if table.set(publication.name, live, self.revision + 1) {
            self.revision += 1;
        }
    }
}

impl Live {
    fn encode(name: &str, content: Content) -> Self {
        let version = format!("{:016x}", xxh64(&content.value, 0));
        let resource = discovery::Resource {
            version: version.clone(),
            name: name.to_owned(),
            aliases: content.aliases.clone(),
            resource: Some(prost_types::Any {
                type_url: content.type_url.to_owned(),
                value: content.value,
            }),
        };
        Self {
            version: version.into(),
            encoded: resource.encode_to_vec().into(),
            covers_all: content.covers_all,
            narrowed: None,
            aliases: content.aliases.into_iter().map(Arc::from).collect(),
            groups: content.groups.into(),
        }
    }
}

impl Table {
    /// Sets or removes; whether that changed anything.
    fn set(&mut self, name: Arc<str>, mut live: Option<Live>, revision: Revision) -> bool {
        let old = self.entries.get(&name);
        let old_live = old.and_then(|entry| entry.live.as_ref());
        if old_live.map(|live| &live.encoded) == live.as_ref().map(|live| &live.encoded) {
            return false;
        }
        let mut covered_since = old.and_then(|entry| entry.covered_since);
        match &mut live {
            Some(live) if live.covers_all => drop(covered_since.get_or_insert(revision)),
            Some(live) => live.narrowed = covered_since,
            None => {}
        }
        if let Some(old) = self.entries.remove(&name) {
            self.forget(&name, &old);
        }
        if let Some(live) = &mut live {
            for alias in &live.aliases {
                let names = self.aliases.entry(alias.clone()).or_default();
                if !names.contains(&name) {
                    names.push(name.clone());
                }
            }
            for group in &mut live.groups {
                // One text for all members.
                if let Some((known, _)) = self.groups.get_key_value(group) {
                    *group = known.clone();
                }
                self.groups
                    .entry(group.clone())
                    .or_default()
                    .insert(name.clone());
            }
        } else {
            self.tombstones.insert(revision);
        }
        self.order.insert(revision, name.clone());
        self.entries.insert(
            name,
            Entry {
                revision,
                live,
                covered_since,
            },
        );
        self.trim();
        true
    }

    fn forget(&mut self, name: &str, old: &Entry) {
        self.order.remove(&old.revision);
        self.tombstones.remove(&old.revision);
        let Some(live) = &old.live else { return };
        for alias in &live.aliases {
            if let Some(names) = self.aliases.get_mut(alias) {
                names.retain(|known| **known != *name);
                if names.is_empty() {
                    self.aliases.remove(alias);
                }
            }
        }
        for group in &live.groups {
            release(&mut self.groups, group, name);
        }
    }

    fn trim(&mut self) {
        while self.tombstones.len() > TOMBSTONES_MAX {
            let Some(oldest) = self.tombstones.pop_first() else {
                return;
            };
            if let Some(name) = self.order.remove(&oldest) {
                self.entries.remove(&name);
            }
            self.forgotten = oldest;
        }
    }

    /// Whether a client at `position` may have missed a removal.
    pub fn has_forgotten_since(&self, position: Revision) -> bool {
        position < self.forgotten
    }

    /// What changed after `position`, oldest first; `None` for a removed name.
    pub fn since(
        &self,
        position: Revision,
    ) -> impl Iterator<Item = (Revision, &Arc<str>, Option<&Live>)> {
        let after = self
            .order
            .range((Bound::Excluded(position), Bound::Unbounded));
        after.filter_map(|(revision, name)| {
            Some((*revision, name, self.entries.get(name)?.live.as_ref()))
        })
    }

    /// A resource by its own name.
    pub fn get(&self, name: &str) -> Option<&Live> {
        self.entries.get(name)?.live.as_ref()
    }

    /// When a resource last changed or went; `None` if that is forgotten, or never was.
    pub fn changed_at(&self, name: &str) -> Option<Revision> {
        Some(self.entries.get(name)?.revision)
    }

    /// All resources that a lookup of `asked` should bring: by name, by alias, and the group of that name.
    pub fn find<'a>(&'a self, asked: &str) -> Vec<(&'a Arc<str>, &'a Live)> {
        let own = self.entries.get_key_value(asked).map(|(name, _)| name);
        let aliased = self.aliases.get(asked).into_iter().flatten();
        let mut names: BTreeSet<&Arc<str>> = own.into_iter().chain(aliased).collect();
        for service in names.clone() {
            names.extend(self.groups.get(service).into_iter().flatten());
        }
        names
            .into_iter()
            .filter_map(|name| Some((name, self.get(name)?)))
            .collect()
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.order.len() - self.tombstones.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Live {
    /// Whether it was asked for by one of its other names, or by a group that it belongs to.
    pub fn is_asked_for(&self, asked: impl Fn(&str) -> bool) -> bool {
        self.aliases.iter().any(|alias| asked(alias))
            || self.groups.iter().any(|group| asked(group))
    }
}

fn release(index: &mut HashMap<Arc<str>, BTreeSet<Arc<str>>>, key: &str, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
