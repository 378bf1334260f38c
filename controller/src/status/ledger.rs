//! What each object's status should say, what it says, and which differ. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;
use karst_files::Severity;
use karst_index::{Condition, EntryAddresses, ObjectConditions};
use karst_k8s_api::{Kind, Object, ObjectKey, object::wrote_addresses};
use serde_json::{Value, json};

use super::others::{Form, Summary};
use crate::{serve::resources::Revision, watch::Complaint};

/// Announcements that wait for their Event; further ones are counted and dropped, their condition stays in `/debug`.
const ANNOUNCEMENTS_MAX: usize = 1_000;
/// Announcements that are remembered, so that none is made twice.
const ANNOUNCED_MAX: usize = 50_000;
/// Findings that one message names.
const FINDINGS_MAX: usize = 4;
/// Longest message of a condition; the API server takes 32 KiB, people read less.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// Condition of objects that agents enforce or serve.
const PROGRAMMED: &str = "Programmed";
/// Condition of objects that nobody enforces, or not as written.
const ACCEPTED: &str = "Accepted";

/// How many nodes have everything up to a revision, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub have: usize,
    pub of: usize,
}

/// The conditions that an object's status should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub key: ObjectKey,
    pub observed_generation: Option<i64>,
    /// As JSON, with times.
    pub conditions: Vec<Value>,
    /// Of a ServiceEntry's hosts, as JSON.
    pub addresses: Vec<Value>,
}

/// Something to tell about an object that has no status of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    pub key: ObjectKey,
    pub uid: String,
    pub reason: String,
    pub message: String,
}

/// All objects that anything is to be said about.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<ObjectKey, Entry>,
    /// Conditions of objects, by the index; kept beside the entries since they may come first.
    said: HashMap<ObjectKey, Vec<Condition>>,
    /// Addresses of a ServiceEntry's hosts, by the index.
    addresses: HashMap<ObjectKey, Vec<Value>>,
    /// Objects that changed.
    fresh: BTreeSet<ObjectKey>,
    /// Objects whose effect is not published yet.
    unpublished: Vec<ObjectKey>,
    announcements: VecDeque<Announcement>,
    announced: BTreeSet<Announcement>,
    dropped: u64,
    /// What other replicas say of their followers.
    others: Vec<Summary>,
    /// Greatest resource version that came, by kind, for the others.
    read: Summary,
}

#[derive(Debug)]
struct Entry {
    generation: Option<i64>,
    /// Resource version by which this generation was there.
    version: Option<u64>,
    uid: String,
    /// Conditions that the object has.
    present: Vec<Value>,
    /// Addresses that we have written there.
    addresses: Vec<Value>,
    /// What checking the object found.
    own: Option<Statement>,
    unusable: Option<String>,
    /// Where its effect is published.
    revision: Option<Revision>,
    /// The reach that was written.
    told: Option<Reach>,
}

/// A condition before it has times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    kind: String,
    status: bool,
    reason: String,
    message: String,
}

impl Statement {
    fn of(condition: &Condition) -> Self {
        Self {
            kind: condition.kind.to_string(),
            status: condition.status,
            reason: condition.reason.to_owned(),
            message: condition.message.clone(),
        }
    }
}

impl Ledger {
    /// The object is there in this form; [`Self::published`] follows.
    pub fn applied(&mut self, object: &Object) {
        let key = object.key();
        if !has_status(key.kind) && !has_events(key.kind) {
            return;
        }
        let meta = object.metadata();
        let uid = meta.uid.clone().unwrap_or_default();
        let json = as_json(object);
        let present = json
            .pointer("/status/conditions")
            .filter(|_| has_status(key.kind))
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let addresses = json
            .pointer("/status/addresses")
            .filter(|_| wrote_addresses(meta))
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let own = own_statement(key.kind, &json);
        let before = self.entries.get(&key);
        // The status that we wrote comes back as a change of the object: that publishes nothing.
        let same = before.filter(|entry| {
            entry.uid == uid && entry.generation == meta.generation && meta.generation.is_some()
        });
        let version = meta.resource_version.as_ref();
        let version: Option<u64> = version.and_then(|version| version.parse().ok());
        if is_followed(key.kind) {
            self.read.read(Form {
                key: &key,
                generation: meta.generation,
                version,
            });
        }
        let entry = Entry {
            generation: meta.generation,
            version: same.map_or(version, |entry| entry.version),
            uid,
            present,
            addresses,
            own,
            unusable: None,
            revision: same.and_then(|entry| entry.revision),
            told: same.and_then(|entry| entry.told),
        };
        if entry.revision.is_none() {
            self.unpublished.push(key.clone());
        }
        self.entries.insert(key.clone(), entry);
        self.fresh.insert(key);
    }

    /// The effect of everything applied so far is published at this revision.
    pub fn published(&mut self, revision: Revision) {
        for key in self.unpublished.drain(..) {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.revision = Some(revision);
            }
        }
    }

    pub fn deleted(&mut self, key: &ObjectKey) {
        self.entries.remove(key);
        self.said.remove(key);
        self.addresses.remove(key);
        self.fresh.remove(key);
        self.announced
            .retain(|announcement| announcement.key != *key);
    }

    /// What the index says about objects that changed.
    pub fn said(&mut self, changed: &[ObjectConditions]) {
        for object in changed {
            let kind = object.object.kind;
            if !has_status(kind) && !has_events(kind) {
                continue;
            }
            match object.conditions.is_empty() {
                true => drop(self.said.remove(&object.object)),
                false => drop(
                    self.said
                        .insert(object.object.clone(), object.conditions.clone()),
                ),
            }
            self.fresh.insert(object.object.clone());
        }
    }

    /// Which addresses hosts of ServiceEntries have now.
    pub fn addressed(&mut self, changed: &[EntryAddresses]) {
        for entry in changed {
            let addresses = entry
                .addresses
                .iter()
                .map(|(host, address)| json!({"host": &**host, "value": address.to_string()}));
            self.addresses
                .insert(entry.object.clone(), addresses.collect());
            self.fresh.insert(entry.object.clone());
        }
    }

    /// The object cannot be used as it is written.
    pub fn unusable(&mut self, key: &ObjectKey, complaints: &[Complaint]) {
        if !is_followed(key.kind) || (complaints.is_empty() && !self.entries.contains_key(key)) {
            return;
        }
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            generation: None,
            version: None,
            uid: String::new(),
            present: Vec::new(),
            addresses: Vec::new(),
            own: None,
            unusable: None,
            revision: Some(0),
            told: None,
        });
        let texts: Vec<String> = complaints
            .iter()
            .map(|one| format!("{}: {}", one.field, one.message))
            .collect();
        let unusable = (!texts.is_empty()).then(|| message_of(&texts));
        if entry.unusable != unusable {
            entry.unusable = unusable;
            self.fresh.insert(key.clone());
        }
    }

    /// Up to `most` statuses that differ from what their object has, because the object changed. What has no status of
    /// ours becomes an announcement.
    pub fn take_fresh(
        &mut self,
        most: usize,
        reach: impl Fn(Revision) -> Reach,
        now: &str,
    ) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let waiting: BTreeSet<ObjectKey> = self.unpublished.iter().cloned().collect();
        self.fresh.retain(|key| !waiting.contains(key));
        while wanted.len() < most
            && let Some(key) = self.fresh.pop_first()
        {
            if has_events(key.kind) {
                self.announce(&key);
            }
            if has_status(key.kind) {
                wanted.extend(self.difference(key, &reach, now));
            }
        }
        self.fresh.extend(waiting);
        wanted
    }

    /// Up to `most` statuses whose reach is no longer what was told.
    pub fn take_moved(
        &mut self,
        most: usize,
        reach: impl Fn(Revision) -> Reach,
        now: &str,
    ) -> Vec<Wanted> {
        let moved: Vec<ObjectKey> = self
            .entries
            .iter()
            .filter(|(key, entry)| {
                let reach = reach(entry.revision.unwrap_or_default());
                entry
                    .told
                    .is_some_and(|told| told != reach + beyond(&self.others, key, entry))
            })
            .take(most)
            .map(|(key, _)| key.clone())
            .collect();
        moved
            .into_iter()
            .filter_map(|key| self.difference(key, &reach, now))
            .collect()
    }

    /// What the other replicas say of their followers now.
    pub fn hear(&mut self, others: Vec<Summary>) {
        self.others = others;
    }

    /// What to say of our followers to the replica that writes.
    pub fn summary(&self, reach: impl Fn(Revision) -> Reach) -> Summary {
        let mut summary = Summary {
            peers: reach(Revision::MAX).of,
            ..self.read.clone()
        };
        let mut behind: Vec<(&ObjectKey, &Entry, usize)> = self
            .entries
            .iter()
            .filter(|(key, _)| is_followed(key.kind))
            .filter_map(|(key, entry)| {
                let Reach { have, of } = match entry.revision {
                    Some(revision) => reach(revision),
                    None => Reach {
                        have: 0,
                        of: summary.peers,
                    },
                };
                (have < of).then_some((key, entry, have))
            })
            .collect();
        behind.sort_by_key(|(key, ..)| *key);
        for (key, entry, have) in behind {
            summary.name(form(key, entry), have);
        }
        summary
    }

    /// A write failed: it is tried again.
    pub fn again(&mut self, key: ObjectKey) {
        if self.entries.contains_key(&key) {
            self.fresh.insert(key);
        }
    }

    /// A write succeeded: the object has these now.
    pub fn written(&mut self, wanted: Wanted) {
        if let Some(entry) = self.entries.get_mut(&wanted.key) {
            entry.present = wanted.conditions;
            entry.addresses = wanted.addresses;
        }
    }

    /// Everything is looked at again, as after a change of leader.
    pub fn refresh(&mut self) {
        self.fresh.extend(self.entries.keys().cloned());
    }

    pub fn take_announcement(&mut self) -> Option<Announcement> {
        self.announcements.pop_front()
    }

    /// An announcement could not be made: it is made later.
    pub fn announce_again(&mut self, announcement: Announcement) {
        self.announcements.push_front(announcement);
    }

    /// Announcements dropped since start because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Objects whose status waits to be looked at.
    pub fn waiting(&self) -> usize {
        self.fresh.len()
    }

    fn difference(
        &mut self,
        key: ObjectKey,
        reach: impl Fn(Revision) -> Reach,
        now: &str,
    ) -> Option<Wanted> {
        let entry = self.entries.get_mut(&key)?;
        let said = self.said.get(&key).map(Vec::as_slice).unwrap_or_default();
        let reach = reach(entry.revision.unwrap_or_default());
        let reach = reach + beyond(&self.others, &key, entry);
        let statements = match is_followed(key.kind) {
            true => statements(entry, said, reach),
            false => said
                .iter()
                .filter(|one| is_apart(&one.kind.to_string()))
                .map(Statement::of)
                .collect(),
        };
        entry.told = statements
            .iter()
            .any(|statement| statement.kind == PROGRAMMED)
            .then_some(reach);
        let conditions: Vec<Value> = statements
            .into_iter()
            .map(|statement| timed(statement, entry, now))
            .collect();
        let same = conditions.len() == ours(key.kind, &entry.present).count()
            && conditions.iter().all(|one| entry.present.contains(one));
        let addresses = self.addresses.get(&key).cloned().unwrap_or_default();
        let same = same && entry.addresses == addresses;
        let nothing_to_say = conditions.is_empty()
            && ours(key.kind, &entry.present).next().is_none()
            && addresses.is_empty()
            && entry.addresses.is_empty();
        (!same && !nothing_to_say).then_some(Wanted {
            observed_generation: entry.generation.filter(|_| is_followed(key.kind)),
            key,
            conditions,
            addresses,
        })
    }

    fn announce(&mut self, key: &ObjectKey) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let said = self.said.get(key).map(Vec::as_slice).unwrap_or_default();
        let from_index = said
            .iter()
            .filter(|one| !one.status)
            .map(|one| (one.reason.to_owned(), one.message.clone()));
        let from_check = entry
            .own
            .iter()
            .map(|one| (one.reason.clone(), one.message.clone()));
        let mut new = Vec::new();
        for (reason, message) in from_index.chain(from_check) {
            new.push(Announcement {
                key: key.clone(),
                uid: entry.uid.clone(),
                reason,
                message,
            });
        }
        new.into_iter()
            .for_each(|announcement| self.push(announcement));
    }

    /// Complaints about an object that is read apart from the index, each an Event.
    pub fn complain(&mut self, key: &ObjectKey, uid: &str, complaints: &[Complaint]) {
        for complaint in complaints {
            self.push(Announcement {
                key: key.clone(),
                uid: uid.to_owned(),
                reason: "NotHonoured".to_owned(),
                message: format!("{}: {}", complaint.field, complaint.message),
            });
        }
    }

    /// Once for each text.
    fn push(&mut self, announcement: Announcement) {
        if self.announced.contains(&announcement) {
            return;
        }
        if self.announcements.len() >= ANNOUNCEMENTS_MAX {
            self.dropped += 1;
            return;
        }
        if self.announced.len() >= ANNOUNCED_MAX {
            self.announced.clear();
        }
        self.announced.insert(announcement.clone());
        self.announcements.push_back(announcement);
    }
}

/// How many followers of other replicas have the object in this form.
fn beyond(others: &[Summary], key: &ObjectKey, entry: &Entry) -> Reach {
    let none = Reach { have: 0, of: 0 };
    let all = others.iter().map(|said| said.reach(form(key, entry)));
    all.fold(none, |sum, one| sum + one)
}

fn form<'a>(key: &'a ObjectKey, entry: &Entry) -> Form<'a> {
    Form {
        key,
        generation: entry.generation,
        version: entry.version,
    }
}

/// Conditions that an object's status says, by us.
fn ours(kind: Kind, present: &[Value]) -> impl Iterator<Item = &Value> {
    const OURS: [&str; 10] = [
        PROGRAMMED,
        ACCEPTED,
        "Conflicted",
        "ResolvedRefs",
        "PartiallyInvalid",
        "karst.dev/KeysFetched",
        "ZtunnelAccepted",
        "WaypointAccepted",
        "istio.io/WaypointBound",
        "karst.dev/Sealed",
    ];
    present.iter().filter(move |one| {
        let mut ours = OURS
            .iter()
            .filter(|name| is_followed(kind) || is_apart(name));
        ours.any(|name| one["type"] == **name)
    })
}

/// What is to be said, each kind of condition once.
fn statements(entry: &Entry, said: &[Condition], reach: Reach) -> Vec<Statement> {
    let mut by_kind: BTreeMap<String, Statement> = BTreeMap::new();
    let mut add = |statement: Statement| match by_kind.get_mut(&statement.kind) {
        Some(present) => {
            if present.status && !statement.status {
                // A reason belongs to the status that it explains.
                present.reason.clone_from(&statement.reason);
            }
            present.status &= statement.status;
            present.message = cut(format!("{}; {}", present.message, statement.message));
        }
        None => drop(by_kind.insert(statement.kind.clone(), statement)),
    };
    if let Some(message) = &entry.unusable {
        add(Statement {
            kind: ACCEPTED.to_owned(),
            status: false,
            reason: "Invalid".to_owned(),
            message: format!("not used as written, the last good form stays: {message}"),
        });
        return by_kind.into_values().collect();
    }
    said.iter().map(Statement::of).for_each(&mut add);
    entry.own.iter().cloned().for_each(&mut add);
    let none_refused = said.iter().all(|one| one.status || one.reason != "Invalid");
    if none_refused && entry.own.is_none() {
        add(programmed(reach));
    }
    by_kind.into_values().collect()
}

/// Which nodes have it.
fn programmed(Reach { have, of }: Reach) -> Statement {
    let (status, reason, message) = match (have, of) {
        (_, 0) => (
            false,
            "NoNodes",
            "no agent follows this controller: nothing is enforced yet".to_owned(),
        ),
        (have, of) if have >= of => (true, "AllNodes", format!("{of} of {of} nodes have it")),
        (have, of) => (
            false,
            "Waiting",
            format!("{have} of {of} nodes have it; the others have not acknowledged it yet"),
        ),
    };
    Statement {
        kind: PROGRAMMED.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// With the time of its last change: that of the present one where the status is the same.
fn timed(statement: Statement, entry: &Entry, now: &str) -> Value {
    let status = if statement.status { "True" } else { "False" };
    let before = entry
        .present
        .iter()
        .find(|one| one["type"] == *statement.kind && one["status"] == *status)
        .and_then(|one| one["lastTransitionTime"].as_str());
    let mut condition = json!({
        "type": statement.kind,
        "status": status,
        "reason": statement.reason,
        "message": cut(statement.message),
        "lastTransitionTime": before.unwrap_or(now),
    });
    if let Some(generation) = entry.generation {
        condition["observedGeneration"] = generation.into();
    }
    condition
}

/// What checking says about an object: fields that are not honoured, what could never match, labels without a meaning.
fn own_statement(kind: Kind, json: &Value) -> Option<Statement> {
    let mut found = karst_files::check(kind, json);
    // Of these the index says by itself what is enforced without a part.
    if matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication) {
        found.retain(|one| one.severity == Severity::Error);
    }
    let wrong = found.iter().any(|one| one.severity == Severity::Error);
    let texts: Vec<String> = found
        .into_iter()
        .map(|one| format!("{}: {}", one.field, one.message))
        .collect();
    (!texts.is_empty()).then(|| Statement {
        kind: ACCEPTED.to_owned(),
        status: false,
        reason: if wrong { "Invalid" } else { "NotHonoured" }.to_owned(),
        message: message_of(&texts),
    })
}

fn message_of(texts: &[String]) -> String {
    let mut message = texts[..texts.len().min(FINDINGS_MAX)].join("; ");
    if texts.len() > FINDINGS_MAX {
        message += &format!("; and {} more", texts.len() - FINDINGS_MAX);
    }
    cut(message)
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX - 3));
        text.push('…');
    }
    text
}

/// Whether a kind's status has conditions that are ours to write.
fn has_status(kind: Kind) -> bool {
    is_followed(kind) || kind == Kind::Service
}

/// Whether a kind's status is ours alone, and says which nodes have the object.
fn is_followed(kind: Kind) -> bool {
    kind.is_shipped()
}

/// Whether a condition's name says whose it is, so that it may stand among those of others.
fn is_apart(name: &str) -> bool {
    name.contains('/')
}

/// Whether an Event tells what a kind's status cannot, or what few look for there.
fn has_events(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Namespace | Kind::Pod | Kind::Service | Kind::ConfigMap | Kind::BackendTlsPolicy
    )
}

fn as_json(object: &Object) -> Value {
    let json = match object {
        Object::Namespace(it) => serde_json::to_value(it),
        Object::Pod(it) => serde_json::to_value(it),
        Object::Service(it) => serde_json::to_value(it),
        Object::ConfigMap(it) => serde_json::to_value(it),
        Object::AuthorizationPolicy(it) => serde_json::to_value(it),
        Object::PeerAuthentication(it) => serde_json::to_value(it),
        Object::RequestAuthentication(it) => serde_json::to_value(it),
        Object::ServiceEntry(it) => serde_json::to_value(it),
        Object::WorkloadEntry(it) => serde_json::to_value(it),
        Object::DestinationRule(it) => serde_json::to_value(it),
        Object::VirtualService(it) => serde_json::to_value(it),
        Object::Telemetry(it) => serde_json::to_value(it),
        Object::GatewayClass(it) => serde_json::to_value(it),
        Object::Gateway(it) => serde_json::to_value(it),
        Object::HttpRoute(it) => serde_json::to_value(it),
        Object::GrpcRoute(it) => serde_json::to_value(it),
        Object::TlsRoute(it) => serde_json::to_value(it),
        Object::TcpRoute(it) => serde_json::to_value(it),
        Object::ReferenceGrant(it) => serde_json::to_value(it),
        Object::BackendTlsPolicy(it) => serde_json::to_value(it),
        Object::RateLimit(it) => serde_json::to_value(it),
        Object::HealthCheck(it) => serde_json::to_value(it),
        Object::Node(_)
        | Object::ServiceAccount(_)
        | Object::EndpointSlice(_)
        | Object::Deployment(_) => Ok(Value::Null),
    };
    json.unwrap_or_default()
}

#[cfg(test)]
mod tests;
