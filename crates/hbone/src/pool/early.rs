//! Bytes that ride along with a CONNECT request, before its answer: they save a round trip.
//!
//! A tunnel whose connection ends before the answer is opened again elsewhere; with bytes already sent that is allowed
//! only where the peer says that it did nothing with them. So they ride only on a connection that answered a moment
//! ago, where its end under the request is as rare as under an established tunnel.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use h2::Reason;
use tokio::time::Instant;

/// How long after an answer a connection counts as alive.
const ALIVE: Duration = Duration::from_secs(1);

/// When a connection last answered a request.
#[derive(Debug)]
pub(super) struct LastAnswer {
    born: Instant,
    /// Milliseconds from `born`, plus one; 0 before the first answer.
    answered_ms: AtomicU64,
}

impl LastAnswer {
    pub(super) fn none(now: Instant) -> Self {
        Self {
            born: now,
            answered_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn answered(&self, now: Instant) {
        self.answered_ms
            .store(self.age_ms(now) + 1, Ordering::Relaxed);
    }

    /// Whether bytes may ride with a request.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        match self.answered_ms.load(Ordering::Relaxed) {
            0 => false,
            answered_ms => self.age_ms(now) < answered_ms + ALIVE.as_millis() as u64,
        }
    }

    fn age_ms(&self, now: Instant) -> u64 {
        now.duration_since(self.born).as_millis() as u64
    }
}

/// Whether a request that failed so may be sent again on another connection. `rode`: bytes went with it.
///
/// REFUSED_STREAM, and a GOAWAY that excludes the stream, say that nothing was processed (RFC 9113, sections 8.7 and
/// 6.8). Any other end of the connection proves nothing, but harms only a request that carried bytes.
pub(super) fn may_repeat(error: &h2::Error, rode: bool) -> bool {
    if error.reason() == Some(Reason::REFUSED_STREAM) {
        return true;
    }
    let unprocessed = error.is_go_away() && error.is_remote();
    !error.is_reset() && (!rode || unprocessed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_recent_answer_counts() {
        let now = Instant::now();
        let last = LastAnswer::none(now);
        assert!(!last.is_recent(now));
        last.answered(now);
        assert!(last.is_recent(now + Duration::from_millis(900)));
        assert!(!last.is_recent(now + Duration::from_millis(1100)));
    }
}
