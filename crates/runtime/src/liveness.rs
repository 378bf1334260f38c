//! Whether the program's long-lived loops still turn. Each has a [`Beat`] and beats it from time to time; one that has not
//! for [`STALE`] hangs, and only a restart helps.
//!
//! Readiness is something else: a program that waits for its controller is alive, and restarting it would help nobody.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A loop beats this often.
pub const BEAT_PERIOD: Duration = Duration::from_secs(5);
/// A loop that has not beaten for so long hangs.
pub const STALE: Duration = Duration::from_secs(60);

/// The loops of a program. Cheap to clone; every clone is the same set.
#[derive(Clone, Default)]
pub struct Liveness {
    beats: Arc<Mutex<BTreeMap<String, Instant>>>,
}

/// One loop; dropped when the loop ends, which is no hanging.
pub struct Beat {
    liveness: Liveness,
    name: String,
}

impl Liveness {
    /// A loop that begins now. Names differ.
    pub fn register(&self, name: impl Into<String>) -> Beat {
        let beat = Beat {
            liveness: self.clone(),
            name: name.into(),
        };
        beat.beat();
        beat
    }

    /// The loops that hang at `now`, in order.
    pub fn hanging(&self, now: Instant) -> Vec<String> {
        let beats = self.beats();
        let late = beats
            .iter()
            .filter(|(_, last)| now.saturating_duration_since(**last) > STALE);
        late.map(|(name, _)| name.clone()).collect()
    }

    fn beats(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    /// The loop turns.
    pub fn beat(&self) {
        self.liveness
            .beats()
            .insert(self.name.clone(), Instant::now());
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.liveness.beats().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_no_longer_beats_hangs_and_one_that_ended_does_not() {
        let liveness = Liveness::default();
        let (first, second) = (liveness.register("one"), liveness.register("two"));
        let later = Instant::now() + STALE + Duration::from_secs(1);
        assert!(liveness.hanging(Instant::now()).is_empty());
        drop(second);
        assert_eq!(liveness.hanging(later), ["one"]);
        first.beat();
        let not_yet = Instant::now() + STALE - BEAT_PERIOD;
        assert!(liveness.hanging(not_yet).is_empty());
    }
}
