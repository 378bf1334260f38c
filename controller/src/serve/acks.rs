//! Who has acknowledged what: lets a withdrawal wait until no peer acts on the old state any more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{peer::Peer, resources::Revision};

/// Positions up to which every stream's addresses are acknowledged.
#[derive(Default)]
pub struct Acks {
    next: AtomicU64,
    streams: Mutex<HashMap<u64, Stream>>,
    moved: Notify,
}

struct Stream {
    peer: Peer,
    acked: Revision,
    /// Up to where policies are acknowledged as well.
    held: Revision,
    /// What it has rejected and keeps in its last good form, with its own words.
    refused: Option<Arc<str>>,
}

/// What a node's agent has said to what it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAck {
    /// Up to here its addresses are acknowledged.
    pub acked: Revision,
    /// What it has rejected, while that holds.
    pub refused: Option<Arc<str>>,
}

/// One stream's entry; leaves with the value.
pub struct Ack<'a> {
    acks: &'a Acks,
    id: u64,
}

impl Acks {
    /// Registers a stream that has acknowledged nothing yet.
    pub fn register(&self, peer: Peer) -> Ack<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.streams().insert(
            id,
            Stream {
                peer,
                acked: 0,
                held: 0,
                refused: None,
            },
        );
        Ack { acks: self, id }
    }

    /// How far each node is: its furthest stream, as an old one may not have ended yet.
    pub fn by_node(&self) -> BTreeMap<Arc<str>, NodeAck> {
        let mut nodes: BTreeMap<_, NodeAck> = BTreeMap::new();
        for stream in self.streams().values() {
            let Peer::Agent(node) = &stream.peer else {
                continue;
            };
            let known = nodes.entry(node.clone()).or_default();
            known.acked = stream.acked.max(known.acked);
            known.refused = known.refused.take().or_else(|| stream.refused.clone());
        }
        nodes
    }

    /// The same of agents and waypoints, up to where policies are acknowledged as well: what each acts on.
    pub fn held_by_peer(&self) -> BTreeMap<Peer, Revision> {
        let mut peers = BTreeMap::new();
        for stream in self.streams().values() {
            let held: &mut Revision = peers.entry(stream.peer.clone()).or_default();
            *held = stream.held.max(*held);
        }
        peers
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.streams().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until every present stream has acknowledged `revision`, at most for `patience`; whether they have.
    pub async fn reached(&self, revision: Revision, patience: Duration) -> bool {
        let all = async {
            loop {
                let moved = self.moved.notified();
                if self
                    .streams()
                    .values()
                    .all(|stream| stream.acked >= revision)
                {
                    return;
                }
                moved.await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ack<'_> {
    /// Everything up to `revision` is acknowledged.
    pub fn set(&self, revision: Revision) {
        let mut streams = self.acks.streams();
        let Some(stream) = streams.get_mut(&self.id) else {
            return;
        };
        if std::mem::replace(&mut stream.acked, revision) != revision {
            self.acks.moved.notify_waiters();
        }
    }
}

impl Ack<'_> {
    /// What the peer rejects now; nothing where it has taken all.
    pub fn refuse(&self, refused: Option<Arc<str>>) {
        if let Some(stream) = self.acks.streams().get_mut(&self.id) {
            stream.refused = refused;
        }
    }

    /// Policies and addresses up to `revision` are acknowledged.
    pub fn hold(&self, revision: Revision) {
        if let Some(stream) = self.acks.streams().get_mut(&self.id) {
            stream.held = revision;
        }
    }
}

impl Drop for Ack<'_> {
    fn drop(&mut self) {
        self.acks.streams().remove(&self.id);
        self.acks.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_stream_or_its_end() {
        let acks = Acks::default();
        let patience = Duration::from_secs(5);
        assert!(acks.reached(7, patience).await, "nobody listens");
        let (quick, slow) = (acks.register("a".into()), acks.register("b".into()));
        quick.set(7);
        assert!(!acks.reached(7, patience).await);
        let at = |acked| NodeAck {
            acked,
            refused: None,
        };
        let nodes = [("a".into(), at(7)), ("b".into(), at(0))];
        assert_eq!(acks.by_node(), nodes.into());
        slow.refuse(Some("a policy".into()));
        assert_eq!(acks.by_node()["b"].refused.as_deref(), Some("a policy"));
        slow.refuse(None);
        assert_eq!(acks.by_node()["b"].refused, None);
        let (reached, ()) = tokio::join!(acks.reached(7, patience), async { slow.set(8) });
        assert!(reached);
        let (reached, ()) = tokio::join!(acks.reached(8, patience), async { drop(quick) });
        assert!(reached);
    }
}
