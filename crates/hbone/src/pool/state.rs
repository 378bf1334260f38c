//! The pool's bookkeeping, without sockets, tasks or clocks of its own.
//!
//! ```text
//!  acquire ─┬─► Use(conn)                 a usable connection with room: its stream count is one higher now
//!           ├─► Dial ──► dialed │ dial_failed          at most one per key, the others
//!           ├─► Wait ──► (acquire again)               wait for it
//!           └─► Refuse
//!  conn:  usable ──retire (GOAWAY, idle, failed)──► retired ──last stream──► (driver ends) closed
//! ```

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;
use tokio::time::Instant;

use super::PoolKey;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of the pool, all keys together, dials included.
    pub connections: usize,
    /// Requests that wait for dials, all keys together.
    pub waiters: usize,
    /// Streams on one connection, whatever the peer would allow.
    pub streams_per_connection: usize,
    /// A connection without streams leaves the pool after this time.
    pub idle_timeout: Duration,
}

/// Name of a connection inside the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

/// What to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// Open a stream there; [`State::release`] when it ends.
    Use(ConnId),
    /// Dial, then [`State::dialed`] or [`State::dial_failed`]. Where `evict` names a connection, it has made room and its
    /// handle is to be dropped.
    Dial {
        evict: Option<ConnId>,
    },
    /// Somebody dials already: [`State::waited`] when that is over, then acquire again.
    Wait,
    Refuse(Refusal),
}

/// Which bound was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Connections,
    Waiters,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub dials: u64,
    pub reused: u64,
    pub evicted: u64,
    pub refused_connections: u64,
    pub refused_waiters: u64,
}

#[derive(Default)]
struct Entry {
    usable: Vec<ConnId>,
    dialing: bool,
    waiters: usize,
}

struct Conn {
    key: Arc<PoolKey>,
    streams: usize,
    streams_max: usize,
    /// When the last stream ended.
    idle_since: Instant,
}

/// All connections, by key and by id.
pub struct State {
    limits: Limits,
    entries: HashMap<Arc<PoolKey>, Entry>,
    conns: HashMap<ConnId, Conn>,
    dialing: usize,
    waiters: usize,
    next_id: u64,
    counters: Counters,
}

impl State {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            conns: HashMap::new(),
            dialing: 0,
            waiters: 0,
            next_id: 0,
            counters: Counters::default(),
        }
    }

    /// Decides how a request gets its stream.
    pub fn acquire(&mut self, key: &Arc<PoolKey>) -> Acquire {
        let entry = self.entries.entry(key.clone()).or_default();
        let with_room = |id: &&ConnId| {
            self.conns
                .get(*id)
                .is_some_and(|conn| conn.streams < conn.streams_max)
        };
        if let Some(id) = entry.usable.iter().find(with_room).copied() {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.streams += 1;
                self.counters.reused += 1;
            }
            return Acquire::Use(id);
        }
        if entry.dialing {
            return self.wait(key);
        }
        let decision = self.dial(key);
        self.forget_if_empty(key);
        decision
    }

    fn wait(&mut self, key: &Arc<PoolKey>) -> Acquire {
        if self.waiters >= self.limits.waiters {
            self.counters.refused_waiters += 1;
            return Acquire::Refuse(Refusal::Waiters);
        }
        self.waiters += 1;
        self.entries.entry(key.clone()).or_default().waiters += 1;
        Acquire::Wait
    }

    fn dial(&mut self, key: &Arc<PoolKey>) -> Acquire {
        let mut evict = None;
        if self.conns.len() + self.dialing >= self.limits.connections {
            evict = self.longest_idle();
            let Some(id) = evict else {
                self.counters.refused_connections += 1;
                return Acquire::Refuse(Refusal::Connections);
            };
            self.closed(id);
            self.counters.evicted += 1;
        }
        self.entries.entry(key.clone()).or_default().dialing = true;
        self.dialing += 1;
        self.counters.dials += 1;
        Acquire::Dial { evict }
    }

    fn longest_idle(&self) -> Option<ConnId> {
        let idle = self.conns.iter().filter(|(_, conn)| conn.streams == 0);
        idle.min_by_key(|(id, conn)| (conn.idle_since, **id))
            .map(|(id, _)| *id)
    }

    /// A dial succeeded: the connection is in the pool, without streams.
    pub fn dialed(&mut self, now: Instant, key: &Arc<PoolKey>) -> ConnId {
        let id = ConnId(self.next_id);
        self.next_id += 1;
        self.dialing -= 1;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.dialing = false;
        entry.usable.push(id);
        let streams_max = self.limits.streams_per_connection;
        self.conns.insert(
            id,
            Conn {
                key: key.clone(),
                streams: 0,
                streams_max,
                idle_since: now,
            },
        );
        id
    }

    /// A dial failed or was given up.
    pub fn dial_failed(&mut self, key: &Arc<PoolKey>) {
        self.dialing -= 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.dialing = false;
        }
        self.forget_if_empty(key);
    }

    /// A waiter goes on, with or without success.
    pub fn waited(&mut self, key: &Arc<PoolKey>) {
        self.waiters -= 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.waiters -= 1;
        }
        self.forget_if_empty(key);
    }

    /// A stream ended, or its request failed. Unknown ids belong to connections that are already gone.
    pub fn release(&mut self, now: Instant, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.streams -= 1;
            conn.idle_since = now;
        }
    }

    /// The peer allows this many streams on the connection. Returns how many may be used.
    pub fn set_peer_limit(&mut self, id: ConnId, peer_max: usize) -> usize {
        let streams_max = peer_max.min(self.limits.streams_per_connection);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.streams_max = streams_max;
        }
        streams_max
    }

    /// Whose connection it is.
    pub fn key(&self, id: ConnId) -> Option<Arc<PoolKey>> {
        self.conns.get(&id).map(|conn| conn.key.clone())
    }

    /// Streams open on the connection.
    pub fn streams(&self, id: ConnId) -> usize {
        self.conns.get(&id).map_or(0, |conn| conn.streams)
    }

    /// No new streams there: GOAWAY came, or it failed. Its streams live on and it counts until [`State::closed`].
    pub fn retire(&mut self, id: ConnId) {
        let Some(key) = self.conns.get(&id).map(|conn| conn.key.clone()) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.usable.retain(|usable| *usable != id);
        }
        self.forget_if_empty(&key);
    }

    /// The connection is gone.
    pub fn closed(&mut self, id: ConnId) {
        self.retire(id);
        self.conns.remove(&id);
    }

    /// Retires the connection if it has been without streams for the idle time; true when it was.
    pub fn retire_if_idle(&mut self, now: Instant, id: ConnId) -> bool {
        let idle = self.conns.get(&id).is_some_and(|conn| {
            conn.streams == 0
                && now.saturating_duration_since(conn.idle_since) >= self.limits.idle_timeout
        });
        if idle {
            self.retire(id);
        }
        idle
    }

    /// Connections that exist, retired ones included.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn forget_if_empty(&mut self, key: &Arc<PoolKey>) {
        let empty = |entry: &Entry| entry.usable.is_empty() && !entry.dialing && entry.waiters == 0;
        if self.entries.get(key).is_some_and(empty) {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
