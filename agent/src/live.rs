//! Live connections: everything that policy admitted and may yet revoke.
//!
//! A connection is registered before its first decision, so that a policy change in between is not missed. On a change
//! all connections of the affected workloads are decided again with their stored context; those now denied are cut.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use hashbrown::HashMap;
use karst_hbone::Flow;
use karst_model::name::WorkloadUid;
use karst_policy::Connection;
use serde::Serialize;

/// All live inbound connections of this node.
#[derive(Default)]
pub(crate) struct LiveConnections {
    entries: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
}

struct Entry {
    destination: WorkloadUid,
    connection: Arc<Connection>,
    cut: Cut,
    since: SystemTime,
}

/// Tells a connection that it is no longer allowed, and why.
#[derive(Clone, Default)]
pub(crate) struct Cut {
    /// The relay's own view of the connection: how much it moved, and the means to end it.
    pub(crate) flow: Arc<Flow>,
    reason: Arc<OnceLock<String>>,
}

impl Cut {
    /// Why the connection was cut, if it was.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    fn call(&self, reason: String) {
        // The first reason stands.
        let _first_stands = self.reason.set(reason);
        self.flow.cut();
    }
}

/// Keeps a connection registered; dropping it removes the entry.
pub(crate) struct Registered {
    live: Arc<LiveConnections>,
    id: u64,
    pub(crate) cut: Cut,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.live.lock().remove(&self.id);
    }
}

/// A connection as `/connections` shows it.
#[derive(Serialize)]
pub(crate) struct Shown {
    pub(crate) destination: String,
    pub(crate) source: String,
    pub(crate) source_identity: Option<String>,
    pub(crate) target: String,
    pub(crate) age_seconds: u64,
    /// Bytes that the application was sent, and sent back.
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

impl LiveConnections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        // A panic while holding the lock cannot leave a map half-changed: every critical section is one map call.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection to `destination`.
    pub(crate) fn register(
        self: &Arc<Self>,
        destination: &WorkloadUid,
        connection: &Arc<Connection>,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = Cut::default();
        let entry = Entry {
            destination: destination.clone(),
            connection: connection.clone(),
            cut: cut.clone(),
            since: SystemTime::now(),
        };
        self.lock().insert(id, entry);
        Registered {
            live: self.clone(),
            id,
            cut,
        }
    }

    /// Decides every connection again: `denied` returns the reason for those that must end. Returns how many were cut.
    pub(crate) fn recheck(
        &self,
        denied: impl Fn(&WorkloadUid, &Connection) -> Option<String>,
    ) -> usize {
        let entries: Vec<_> = self
            .lock()
            .values()
            .map(|entry| {
                (
                    entry.destination.clone(),
                    entry.connection.clone(),
                    entry.cut.clone(),
                )
            })
            .collect();
        let mut cut_count = 0;
        for (destination, connection, cut) in entries {
            if cut.reason().is_some() {
                continue;
            }
            if let Some(reason) = denied(&destination, &connection) {
                cut.call(reason);
                cut_count += 1;
            }
        }
        cut_count
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// `limit` of the connections, for people who look.
    pub(crate) fn show(&self, limit: usize) -> Vec<Shown> {
        self.lock().values().take(limit).map(Entry::show).collect()
    }
}

impl Entry {
    fn show(&self) -> Shown {
        Shown {
            destination: self.destination.to_string(),
            source: self.connection.source_ip.to_string(),
            source_identity: self.connection.source.as_ref().map(ToString::to_string),
            target: self.connection.destination.to_string(),
            age_seconds: self.since.elapsed().unwrap_or_default().as_secs(),
            request_bytes: self.cut.flow.received(),
            response_bytes: self.cut.flow.sent(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16) -> Arc<Connection> {
        Arc::new(Connection {
            source: None,
            source_ip: "10.0.0.1".parse().unwrap(),
            destination: ([10, 0, 0, 2], port).into(),
        })
    }

    #[test]
    fn only_denied_connections_are_cut_and_each_once() {
        let live = Arc::new(LiveConnections::default());
        let uid = WorkloadUid::from("w");
        let kept = live.register(&uid, &connection(80));
        let lost = live.register(&uid, &connection(81));
        let deny_81 =
            |_: &WorkloadUid, c: &Connection| (c.destination.port() == 81).then(|| "no".to_owned());
        assert_eq!(live.recheck(deny_81), 1);
        assert_eq!(lost.cut.reason(), Some("no"));
        assert_eq!(live.recheck(deny_81), 0);
        assert_eq!(kept.cut.reason(), None);
        drop((kept, lost));
        assert!(live.show(10).is_empty());
    }
}
