//! `sessionAffinity: ClientIP`: which endpoint a client used last, for as long as it was not idle too long.
//!
//! A bounded table; at its bound the client that was idle longest is forgotten, and counted. The caller owns the table
//! (one per worker or behind a lock), passes the time in, and asks [`crate::balance::choose`] to prefer what it finds:
//! whether that endpoint still is one, and healthy, is decided there.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use karst_model::{
    addr,
    name::{ServiceKey, WorkloadUid},
    service::SessionAffinity,
};

/// Who sticks to an endpoint: a client of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    service: ServiceKey,
    port: u16,
    client: IpAddr,
}

impl Session {
    /// `port` is the service's, `client` the address of the client's pod.
    pub fn new(service: &ServiceKey, port: u16, client: IpAddr) -> Self {
        Self {
            service: service.clone(),
            port,
            client: addr::canonical_ip(client),
        }
    }
}

/// The endpoints that clients used last.
#[derive(Debug)]
pub struct AffinityTable {
    capacity: usize,
    sessions: HashMap<Session, Last>,
    /// Sessions by their last use, oldest first.
    by_use: BTreeMap<Use, Session>,
    uses: u64,
    evicted: u64,
}

/// Moment of a use; the number tells apart uses of one moment.
type Use = (Instant, u64);

#[derive(Debug)]
struct Last {
    endpoint: WorkloadUid,
    used: Use,
}

impl AffinityTable {
    /// A table of at most `capacity` sessions; 0 remembers nothing.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            sessions: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            evicted: 0,
        }
    }

    /// The endpoint that the session used within the service's idle timeout. Does not count as a use.
    pub fn endpoint(
        &mut self,
        session: &Session,
        affinity: SessionAffinity,
        now: Instant,
    ) -> Option<&WorkloadUid> {
        let used = self.sessions.get(session)?.used.0;
        let idle_timeout = Duration::from_secs(affinity.idle_timeout_seconds.into());
        if now.saturating_duration_since(used) >= idle_timeout {
            self.forget(session);
            return None;
        }
        self.sessions.get(session).map(|last| &last.endpoint)
    }

    /// Records that the session uses this endpoint now; its idle time starts again.
    pub fn record(&mut self, session: Session, endpoint: WorkloadUid, now: Instant) {
        if self.capacity == 0 {
            return;
        }
        self.forget(&session);
        if self.sessions.len() >= self.capacity {
            self.evict_oldest();
        }
        self.uses += 1;
        let used = (now, self.uses);
        self.by_use.insert(used, session.clone());
        self.sessions.insert(session, Last { endpoint, used });
    }

    /// Forgets every session that was not used since `cutoff`; to be called now and then with the longest timeout.
    pub fn expire(&mut self, cutoff: Instant) {
        while let Some((used, session)) = self.by_use.first_key_value()
            && used.0 <= cutoff
        {
            let session = session.clone();
            self.forget(&session);
        }
    }

    /// How many sessions were forgotten because the table was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn forget(&mut self, session: &Session) {
        if let Some(last) = self.sessions.remove(session) {
            self.by_use.remove(&last.used);
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((_, session)) = self.by_use.pop_first() {
            self.sessions.remove(&session);
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFFINITY: SessionAffinity = SessionAffinity {
        idle_timeout_seconds: 10,
    };

    fn session(client: u8) -> Session {
        let key = ServiceKey {
            namespace: "shop".into(),
            hostname: "orders".into(),
        };
        Session::new(&key, 80, IpAddr::from([10, 0, 0, client]))
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_session_lasts_until_it_was_idle_for_the_timeout() {
        let (mut table, start) = (AffinityTable::new(4), Instant::now());
        table.record(session(1), "a".into(), start);
        assert_eq!(
            table.endpoint(&session(1), AFFINITY, after(start, 9)),
            Some(&"a".into())
        );
        table.record(session(1), "a".into(), after(start, 9));
        assert_eq!(
            table.endpoint(&session(1), AFFINITY, after(start, 18)),
            Some(&"a".into()),
            "use renews it"
        );
        assert_eq!(
            table.endpoint(&session(1), AFFINITY, after(start, 19)),
            None
        );
        assert!(table.is_empty());
    }

    #[test]
    fn clients_ports_and_services_are_apart() {
        let (mut table, start) = (AffinityTable::new(4), Instant::now());
        table.record(session(1), "a".into(), start);
        assert_eq!(table.endpoint(&session(2), AFFINITY, start), None);
        let key = ServiceKey {
            namespace: "shop".into(),
            hostname: "orders".into(),
        };
        let mapped = Session::new(&key, 80, "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(table.endpoint(&mapped, AFFINITY, start), Some(&"a".into()));
        let other_port = Session::new(&key, 81, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(table.endpoint(&other_port, AFFINITY, start), None);
    }

    #[test]
    fn the_table_never_outgrows_its_bound() {
        let (mut table, start) = (AffinityTable::new(3), Instant::now());
        for client in 0..10 {
            table.record(session(client), "a".into(), after(start, u64::from(client)));
            assert!(table.len() <= 3 && table.by_use.len() == table.len());
        }
        assert_eq!(table.evicted(), 7);
        assert_eq!(
            table.endpoint(&session(6), AFFINITY, after(start, 9)),
            None,
            "the oldest went first"
        );
        assert_eq!(
            table.endpoint(&session(7), AFFINITY, after(start, 9)),
            Some(&"a".into())
        );
        table.expire(after(start, 8));
        assert_eq!(table.len(), 1);
        assert_eq!(AffinityTable::new(0).len(), 0);
    }
}
