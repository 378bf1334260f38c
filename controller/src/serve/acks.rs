//! Who has acknowledged what: lets a withdrawal wait until no peer acts on the old state any more.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::resources::Revision;

/// Positions up to which every stream's addresses are acknowledged.
#[derive(Default)]
pub struct Acks {
    next: AtomicU64,
    streams: Mutex<HashMap<u64, Revision>>,
    moved: Notify,
}

/// One stream's entry; leaves with the value.
pub struct Ack<'a> {
    acks: &'a Acks,
    id: u64,
}

impl Acks {
    /// Registers a stream that has acknowledged nothing yet.
    pub fn register(&self) -> Ack<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.streams().insert(id, 0);
        Ack { acks: self, id }
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
                if self.streams().values().all(|acked| *acked >= revision) {
                    return;
                }
                moved.await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Revision>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ack<'_> {
    /// Everything up to `revision` is acknowledged.
    pub fn set(&self, revision: Revision) {
        let old = self.acks.streams().insert(self.id, revision);
        if old != Some(revision) {
            self.acks.moved.notify_waiters();
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
        let (quick, slow) = (acks.register(), acks.register());
        quick.set(7);
        assert!(!acks.reached(7, patience).await);
        let (reached, ()) = tokio::join!(acks.reached(7, patience), async { slow.set(8) });
        assert!(reached);
        let (reached, ()) = tokio::join!(acks.reached(8, patience), async { drop(quick) });
        assert!(reached);
    }
}
