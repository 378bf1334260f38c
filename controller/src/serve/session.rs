//! The server's half of delta xDS for one stream, as a state machine over [`Tables`]. Pure.
//!
//! ```text
//!   request ──handle()──► subscription, ack or nack            (per type: a position in the order of changes)
//!   next_response(&Tables) ──► what is after that position, as much as fits one message, until 4 are unacknowledged
//! ```
//!
//! Types are served in a fixed order, policies before addresses and routes after them, so that no workload arrives before the policies that
//! it names, not even where policies wait for acknowledgements. What takes a policy away from workloads (its removal, or
//! a selector where it had none) waits until the addresses of the same time are acknowledged: until then they may name
//! it, or not name it yet. Everything after it goes ahead.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use karst_proto::{
    dialect, discovery::DeltaDiscoveryRequest, encoded::DeltaDiscoveryResponse, type_url,
};

use super::{
    peer::Peer,
    resources::{Revision, Table, TableKey, Tables},
};

/// Responses of one type that may wait for their acknowledgement.
const UNACKED_MAX: usize = 4;
/// Bytes of resources in one message to our own agents.
const CHUNK_BYTES: usize = 1 << 20;
/// The same to other clients, which take the first message of a type for all of it.
const CHUNK_BYTES_FOREIGN: usize = 64 << 20;
/// Names in one message.
const CHUNK_NAMES: usize = 100_000;
/// Names that one client may ask for on demand.
const ASKED_MAX: usize = 100_000;

/// The state of one stream.
pub struct Session {
    /// What the caller proved to be.
    peer: Peer,
    chunk_bytes: usize,
    nonces: u64,
    subscriptions: BTreeMap<Place, Subscription>,
}

/// Types in the order in which they are served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Authorization,
    WaypointPolicy,
    RequestAuthentication,
    Address,
    NodeWorkload,
    Route,
    ServiceTraffic,
    RateLimit,
    Telemetry,
    TrustDomains,
    /// Answered with nothing, so that its asker does not wait.
    Unknown(String),
}

/// What a stream follows of one type.
#[derive(Default)]
struct Subscription {
    /// Names asked for on demand; `None` for all.
    asked: Option<HashSet<String>>,
    /// Names asked for and not yet answered.
    questions: VecDeque<String>,
    /// On demand: resources that were sent, and so are followed.
    followed: HashSet<Arc<str>>,
    position: Revision,
    /// Names to be told as they then are, when addresses are acknowledged up to a revision; oldest first.
    late: VecDeque<(Revision, Arc<str>)>,
    /// What the client holds from an earlier stream, while that is compared.
    resync: Option<Resync>,
    answered: bool,
    /// Nonces of responses in flight, with the position after each.
    unacked: VecDeque<(u64, Revision)>,
    acked: Revision,
}

/// The first pass over a table: the client's versions, and where the pass ends.
struct Resync {
    versions: HashMap<String, String>,
    until: Option<Revision>,
}

/// What a request was, for counters and the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Handled {
    Subscribed,
    Acked,
    /// The client's text.
    Nacked(String),
    /// Its nonce is none that waits.
    Stale,
}

/// The stream cannot go on; the client comes back with the versions that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error(
        "this client is so far behind that removals it has not seen are forgotten: it has to reconnect"
    )]
    TooFarBehind,
    #[error("more than {ASKED_MAX} names asked for on demand: subscribe to everything instead")]
    TooManyNames,
}

impl Session {
    /// A stream of `peer`.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            chunk_bytes: CHUNK_BYTES_FOREIGN,
            nonces: 0,
            subscriptions: BTreeMap::new(),
        }
    }

    /// Takes a request.
    pub fn handle(&mut self, request: DeltaDiscoveryRequest) -> Result<Handled, SessionError> {
        if request
            .node
            .as_ref()
            .is_some_and(|node| node.user_agent_name == dialect::USER_AGENT)
        {
            self.chunk_bytes = CHUNK_BYTES;
        }
        let place = Place::of(&request.type_url);
        let on_demand = place == Place::Address;
        let first = !self.subscriptions.contains_key(&place);
        let subscription = self.subscriptions.entry(place).or_default();
        let subscribed = subscription.subscribe(&request, first, on_demand)?;
        if request.response_nonce.is_empty() || first {
            return Ok(Handled::Subscribed);
        }
        let known = subscription.acknowledge(&request.response_nonce);
        Ok(match (known, request.error_detail, subscribed) {
            (true, Some(error), _) => Handled::Nacked(error.message),
            (true, None, _) => Handled::Acked,
            (false, _, true) => Handled::Subscribed,
            (false, _, false) => Handled::Stale,
        })
    }

    /// The next message to send, if there is one and the client keeps up.
    pub fn next_response(
        &mut self,
        tables: &Tables,
    ) -> Result<Option<DeltaDiscoveryResponse>, SessionError> {
        loop {
            let told = self.told_addresses();
            let response = self.pass(tables)?;
            // Addresses with nothing to send are told up to now without a message: what waited for them can go.
            if response.is_some() || self.told_addresses() == told {
                return Ok(response);
            }
        }
    }

    /// One look at each type, in order.
    fn pass(&mut self, tables: &Tables) -> Result<Option<DeltaDiscoveryResponse>, SessionError> {
        for place in self.subscriptions.keys().cloned().collect::<Vec<_>>() {
            if place == Place::Address && self.policies_wait() {
                continue;
            }
            let told = self.told_addresses();
            let Some(subscription) = self.subscriptions.get_mut(&place) else {
                continue;
            };
            let empty = Table::default();
            let table = place
                .key(&self.peer)
                .and_then(|key| tables.table(&key))
                .unwrap_or(&empty);
            let limits = Limits {
                bytes: self.chunk_bytes,
                told: match place {
                    Place::Authorization | Place::WaypointPolicy | Place::RequestAuthentication => {
                        told
                    }
                    _ => Revision::MAX,
                },
                end: tables.revision(),
            };
            let Some(message) = subscription.next(table, &limits)? else {
                continue;
            };
            self.nonces += 1;
            subscription
                .unacked
                .push_back((self.nonces, subscription.position));
            return Ok(Some(DeltaDiscoveryResponse {
                system_version_info: if message.more {
                    dialect::MORE_FOLLOWS.into()
                } else {
                    tables.revision().to_string()
                },
                resources: message.resources,
                type_url: place.type_url().to_owned(),
                nonce: self.nonces.to_string(),
                removed_resources: message.removed,
            }));
        }
        Ok(None)
    }

    /// The revision up to which the client has acknowledged all addresses; `None` if it follows none.
    pub fn acked_addresses(&self) -> Option<Revision> {
        self.subscriptions
            .get(&Place::Address)
            .map(Subscription::settled)
    }

    /// The revision up to which the client has acknowledged all that it acts on; 0 while it does not follow all of it.
    pub fn acked_all(&self) -> Revision {
        let acts_on: &[Place] = match self.peer {
            Peer::Agent(_) => &[Place::Authorization, Place::Address],
            Peer::Waypoint { .. } => &[
                Place::WaypointPolicy,
                Place::RequestAuthentication,
                Place::Address,
                Place::ServiceTraffic,
                Place::RateLimit,
                Place::Route,
            ],
        };
        let settled = |place| self.subscriptions.get(place).map(Subscription::settled);
        let slowest = acts_on.iter().map(settled).min();
        slowest.flatten().unwrap_or_default()
    }

    /// Whether policies may have to be sent that cannot be sent now: addresses that name them have to wait too.
    fn policies_wait(&self) -> bool {
        let waits = |place| {
            let policies = self.subscriptions.get(place);
            policies.is_some_and(|policies| policies.unacked.len() >= UNACKED_MAX)
        };
        [
            Place::Authorization,
            Place::WaypointPolicy,
            Place::RequestAuthentication,
        ]
        .iter()
        .any(waits)
    }

    /// Up to where the client acts on addresses as they are. Our own agents ask for policies first and for addresses at
    /// once after that: until then they hold those of an earlier stream.
    fn told_addresses(&self) -> Revision {
        match self.subscriptions.get(&Place::Address) {
            Some(addresses) => addresses.settled(),
            None if self.chunk_bytes == CHUNK_BYTES_FOREIGN => Revision::MAX,
            None => 0,
        }
    }
}

impl Place {
    fn of(type_url: &str) -> Self {
        match type_url {
            type_url::AUTHORIZATION => Self::Authorization,
            type_url::ADDRESS => Self::Address,
            type_url::NODE_WORKLOAD => Self::NodeWorkload,
            type_url::WAYPOINT_POLICY => Self::WaypointPolicy,
            type_url::REQUEST_AUTHENTICATION => Self::RequestAuthentication,
            type_url::ROUTE => Self::Route,
            type_url::SERVICE_TRAFFIC => Self::ServiceTraffic,
            type_url::RATE_LIMIT => Self::RateLimit,
            type_url::TELEMETRY => Self::Telemetry,
            type_url::TRUST_DOMAINS => Self::TrustDomains,
            other => Self::Unknown(other.to_owned()),
        }
    }

    fn type_url(&self) -> &str {
        match self {
            Self::Authorization => type_url::AUTHORIZATION,
            Self::Address => type_url::ADDRESS,
            Self::NodeWorkload => type_url::NODE_WORKLOAD,
            Self::WaypointPolicy => type_url::WAYPOINT_POLICY,
            Self::RequestAuthentication => type_url::REQUEST_AUTHENTICATION,
            Self::Route => type_url::ROUTE,
            Self::ServiceTraffic => type_url::SERVICE_TRAFFIC,
            Self::RateLimit => type_url::RATE_LIMIT,
            Self::Telemetry => type_url::TELEMETRY,
            Self::TrustDomains => type_url::TRUST_DOMAINS,
            Self::Unknown(other) => other,
        }
    }

    /// The table that `peer` may follow; `None`: it is told that there is nothing.
    fn key(&self, peer: &Peer) -> Option<TableKey> {
        match (self, peer) {
            (Self::Authorization, _) => Some(TableKey::Authorization),
            (Self::Address, _) => Some(TableKey::Address),
            (Self::Telemetry, _) => Some(TableKey::Telemetry),
            (Self::TrustDomains, _) => Some(TableKey::TrustDomains),
            (Self::NodeWorkload, Peer::Agent(node)) => Some(TableKey::Node(node.clone())),
            (Self::Route, Peer::Waypoint { gateway, .. }) => {
                Some(TableKey::Routes(gateway.clone()))
            }
            (Self::ServiceTraffic, Peer::Waypoint { gateway, .. }) => {
                Some(TableKey::Traffic(gateway.clone()))
            }
            (Self::RateLimit, Peer::Waypoint { gateway, .. }) => {
                Some(TableKey::RateLimits(gateway.clone()))
            }
            (Self::WaypointPolicy, Peer::Waypoint { gateway, .. }) => {
                Some(TableKey::WaypointPolicies(gateway.clone()))
            }
            (Self::RequestAuthentication, Peer::Waypoint { gateway, .. }) => {
                Some(TableKey::RequestAuthentications(gateway.clone()))
            }
            (
                Self::NodeWorkload
                | Self::Route
                | Self::ServiceTraffic
                | Self::RateLimit
                | Self::WaypointPolicy
                | Self::RequestAuthentication
                | Self::Unknown(_),
                _,
            ) => None,
        }
    }
}

/// What bounds one message.
struct Limits {
    bytes: usize,
    /// Up to where the client has what may refer to this type.
    told: Revision,
    /// The latest revision.
    end: Revision,
}

/// The content of one message.
#[derive(Default)]
struct Message {
    resources: Vec<Bytes>,
    removed: Vec<String>,
    bytes: usize,
    more: bool,
}

impl Limits {
    /// Whether what takes something away has to wait.
    fn holds_back(&self) -> bool {
        self.told < self.end
    }
}

impl Message {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }

    fn is_full(&self, limits: &Limits) -> bool {
        self.bytes >= limits.bytes || self.resources.len() + self.removed.len() >= CHUNK_NAMES
    }

    fn add(&mut self, encoded: &Bytes) {
        self.bytes += encoded.len();
        self.resources.push(encoded.clone());
    }

    fn remove(&mut self, name: &str) {
        self.bytes += name.len();
        self.removed.push(name.to_owned());
    }
}

impl Subscription {
    /// Applies what a request says about names; whether it said anything.
    fn subscribe(
        &mut self,
        request: &DeltaDiscoveryRequest,
        first: bool,
        on_demand: bool,
    ) -> Result<bool, SessionError> {
        if first {
            self.resync = Some(Resync {
                versions: request.initial_resource_versions.clone(),
                until: None,
            });
        }
        if !on_demand {
            return Ok(first);
        }
        let names = || {
            request
                .resource_names_subscribe
                .iter()
                .filter(|name| *name != "*")
        };
        let all_wanted = request
            .resource_names_subscribe
            .iter()
            .any(|name| name == "*");
        let all_unwanted = request
            .resource_names_unsubscribe
            .iter()
            .any(|name| name == "*");
        if all_unwanted || (first && !all_wanted && names().next().is_some()) {
            self.asked.get_or_insert_default();
        } else if all_wanted && self.asked.take().is_some() {
            self.position = 0;
        }
        for name in names() {
            if let Some(asked) = &mut self.asked {
                asked.insert(name.clone());
            }
            self.questions.push_back(name.clone());
        }
        if let Some(asked) = &mut self.asked {
            for name in &request.resource_names_unsubscribe {
                asked.remove(name);
                self.followed.remove(&**name);
            }
        }
        if self.questions.len() > ASKED_MAX
            || self
                .asked
                .as_ref()
                .is_some_and(|asked| asked.len() > ASKED_MAX)
        {
            return Err(SessionError::TooManyNames);
        }
        let silent = request.resource_names_subscribe.is_empty()
            && request.resource_names_unsubscribe.is_empty();
        Ok(first || !silent)
    }

    /// Takes an ack or nack; whether its nonce was one that waits. A later nonce answers the earlier ones too.
    fn acknowledge(&mut self, nonce: &str) -> bool {
        let waiting = self
            .unacked
            .iter()
            .position(|(n, _)| n.to_string() == nonce);
        let Some(at) = waiting else { return false };
        if let Some((_, position)) = self.unacked.drain(..=at).next_back() {
            self.acked = position;
        }
        true
    }

    fn settled(&self) -> Revision {
        if self.unacked.is_empty() {
            self.position
        } else {
            self.acked
        }
    }

    /// The next message, if there is one.
    fn next(&mut self, table: &Table, limits: &Limits) -> Result<Option<Message>, SessionError> {
        if self.unacked.len() >= UNACKED_MAX {
            return Ok(None);
        }
        if self.position > 0 && table.has_forgotten_since(self.position) {
            return Err(SessionError::TooFarBehind);
        }
        let mut message = Message::default();
        self.answer_questions(table, limits, &mut message);
        match self.asked {
            Some(_) => self.follow_asked(table, limits, &mut message),
            None => self.follow_all(table, limits, &mut message),
        }
        let send = !message.is_empty() || !self.answered;
        self.answered |= send && !message.more;
        Ok(send.then_some(message))
    }

    fn answer_questions(&mut self, table: &Table, limits: &Limits, message: &mut Message) {
        while !message.is_full(limits) {
            let Some(question) = self.questions.pop_front() else {
                return;
            };
            let found = table.find(&question);
            if found.is_empty() {
                message.remove(&question);
            }
            for (name, live) in found {
                if self.asked.is_none() || self.followed.insert(name.clone()) || **name == *question
                {
                    message.add(&live.encoded);
                }
            }
        }
        message.more = !self.questions.is_empty();
    }

    /// On demand: changes of what was sent, and newcomers under a name that was asked for.
    fn follow_asked(&mut self, table: &Table, limits: &Limits, message: &mut Message) {
        let Some(asked) = &self.asked else { return };
        self.resync = None;
        if self.position == 0 {
            // What is there already comes when it is asked for.
            self.position = limits.end;
            return;
        }
        for (revision, name, live) in table.since(self.position) {
            if message.is_full(limits) {
                return;
            }
            match live {
                Some(live) => {
                    let wanted = self.followed.contains(name)
                        || asked.contains(&**name)
                        || live.is_asked_for(|alias| asked.contains(alias));
                    if wanted {
                        self.followed.insert(name.clone());
                        message.add(&live.encoded);
                    }
                }
                None if self.followed.remove(name) => message.remove(name),
                None => {}
            }
            self.position = revision;
        }
        self.position = limits.end;
    }

    fn follow_all(&mut self, table: &Table, limits: &Limits, message: &mut Message) {
        if let Some(resync) = &mut self.resync {
            resync.until.get_or_insert(limits.end);
        }
        let (before, late) = (self.position, &mut self.late);
        let mut wait = |name: &Arc<str>| late.push_back((limits.end, name.clone()));
        for (revision, name, live) in table.since(self.position) {
            if message.is_full(limits) {
                message.more = self
                    .resync
                    .as_ref()
                    .is_some_and(|r| r.until.is_some_and(|end| revision <= end));
                return;
            }
            match (live, &mut self.resync) {
                (Some(live), Some(resync)) => match resync.versions.remove(&**name) {
                    Some(held) if *held == *live.version => {}
                    // What the client holds may cover more.
                    Some(_) if !live.covers_all && limits.holds_back() => wait(name),
                    _ => message.add(&live.encoded),
                },
                (Some(live), None)
                    if live.narrowed.is_some_and(|since| since <= before)
                        && limits.holds_back() =>
                {
                    wait(name);
                }
                (Some(live), None) => message.add(&live.encoded),
                // Gone before the pass began: told at its end, if the client holds it.
                (None, Some(resync)) if resync.until.is_some_and(|end| revision <= end) => {}
                (None, _) => wait(name),
            }
            self.position = revision;
        }
        self.position = self.position.max(limits.end);
        if let Some(resync) = self.resync.take() {
            let gone = resync.versions.into_keys();
            gone.filter(|name| table.get(name).is_none())
                .for_each(|name| wait(&name.into()));
        }
        self.tell_late(table, limits, message);
    }

    fn tell_late(&mut self, table: &Table, limits: &Limits, message: &mut Message) {
        while let Some((revision, name)) = self.late.front()
            && *revision <= limits.told
            && !message.is_full(limits)
        {
            match table.get(name) {
                // What it became later is told, or waits, on its own.
                _ if table.changed_at(name).is_some_and(|at| at > *revision) => {}
                Some(live) => message.add(&live.encoded),
                None => message.remove(name),
            }
            self.late.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
