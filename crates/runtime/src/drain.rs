//! Drain: tell everything that holds connections to finish, and know when it has.
//!
//! A [`Watch`] is cloned into each listener and connection. [`Drain::drain`] signals all of them and returns when the
//! last clone is dropped or the deadline passes.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The end that starts a drain.
pub struct Drain {
    signal: watch::Sender<bool>,
    /// Closes when the last [`Watch`] is gone.
    idle: mpsc::Receiver<()>,
}

/// Held by everything that must finish before the program ends.
#[derive(Clone)]
pub struct Watch {
    signal: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything finished by itself.
    Idle,
    /// The deadline passed with work still open.
    DeadlinePassed,
}

/// A new drain and its first watch.
pub fn channel() -> (Drain, Watch) {
    let (signal, observed) = watch::channel(false);
    let (alive, idle) = mpsc::channel(1);
    (
        Drain { signal, idle },
        Watch {
            signal: observed,
            _alive: alive,
        },
    )
}

impl Drain {
    /// Signals all watches and waits until the last is dropped, at most for `deadline`.
    pub async fn drain(mut self, deadline: Duration) -> Outcome {
        self.signal.send_replace(true);
        match tokio::time::timeout(deadline, self.idle.recv()).await {
            Ok(_) => Outcome::Idle,
            Err(_elapsed) => Outcome::DeadlinePassed,
        }
    }
}

impl Watch {
    /// Completes when the drain starts (also when its [`Drain`] is dropped: a program without one is ending).
    pub async fn signaled(&mut self) {
        while !*self.signal.borrow_and_update() {
            if self.signal.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.signal.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_the_last_watch() {
        let (drain, mut watch) = channel();
        let mut other = watch.clone();
        let work = async move {
            watch.signaled().await;
            drop(watch);
            other.signaled().await;
            assert!(other.is_draining());
        };
        let (outcome, ()) = tokio::join!(drain.drain(Duration::from_secs(5)), work);
        assert_eq!(outcome, Outcome::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_watch_costs_the_deadline() {
        let (drain, watch) = channel();
        assert_eq!(
            drain.drain(Duration::from_secs(5)).await,
            Outcome::DeadlinePassed
        );
        drop(watch);
    }
}
