//! Which named start-up tasks are still pending. The program is ready when none is.
//!
//! Each subsystem takes a [`Pending`] before it starts and calls [`Pending::done`] when it can serve. Dropping one
//! without `done` leaves the task pending: a subsystem that died is not ready. A drain registers a task of its own, so
//! that a program that is ending is not ready either.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

/// The tasks of a program. Cheap to clone; every clone is the same set.
#[derive(Clone)]
pub struct Readiness {
    /// Name to how many times it is pending.
    pending: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

/// A task that has not finished.
#[must_use = "without done() the program never becomes ready"]
pub struct Pending {
    readiness: Readiness,
    name: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// A set without tasks: ready.
    pub fn new() -> Self {
        let (pending, _) = watch::channel(BTreeMap::new());
        Self {
            pending: Arc::new(pending),
        }
    }

    /// Adds a task: the program is not ready until it is done.
    pub fn task(&self, name: impl Into<String>) -> Pending {
        let name = name.into();
        self.pending
            .send_modify(|pending| *pending.entry(name.clone()).or_default() += 1);
        Pending {
            readiness: self.clone(),
            name,
        }
    }

    /// The names of the pending tasks, in order; empty when ready.
    pub fn pending(&self) -> Vec<String> {
        self.pending.borrow().keys().cloned().collect()
    }

    /// Whether nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Waits until nothing is pending.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.pending.subscribe().wait_for(BTreeMap::is_empty).await;
    }
}

impl Pending {
    /// The task can serve.
    pub fn done(self) {
        self.readiness.pending.send_modify(|pending| {
            if let Some(count) = pending.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(&self.name);
                }
            }
        });
        tracing::debug!(task = self.name, "ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_task_is_done() {
        let readiness = Readiness::new();
        let (first, second) = (readiness.task("discovery"), readiness.task("listeners"));
        first.done();
        assert_eq!(readiness.pending(), ["listeners"]);
        second.done();
        readiness.ready().await;
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_dropped_task_stays_pending() {
        let readiness = Readiness::new();
        drop(readiness.task("discovery"));
        assert_eq!(readiness.pending(), ["discovery"]);
    }

    #[test]
    fn a_name_used_twice_is_pending_until_both_are_done() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.task("dns"), readiness.task("dns"));
        one.done();
        assert!(!readiness.is_ready());
        two.done();
        assert!(readiness.is_ready());
    }
}
