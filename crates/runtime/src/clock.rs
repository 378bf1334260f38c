//! Time for the shells that drive the pure decisions: the decisions themselves take `now` as an argument.
//!
//! A [`Clock`] is a real one in the programs; tests pass one that they move by hand.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Both kinds of time at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For intervals: never goes back.
    pub monotonic: Instant,
    /// For certificates and log lines: may be set by an administrator.
    pub wall: SystemTime,
}

/// Where the time comes from. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    source: Arc<dyn Fn() -> Now + Send + Sync>,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::from_source(|| Now {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        })
    }

    /// A clock that asks `source`: for tests.
    pub fn from_source(source: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self {
            source: Arc::new(source),
        }
    }

    /// The time now.
    pub fn now(&self) -> Now {
        (self.source)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// Seconds since 1970; 0 for a time before it.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How long until `time`; zero when it has passed.
pub fn until(now: SystemTime, time: SystemTime) -> Duration {
    time.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_past_are_zero_away() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(until(now, UNIX_EPOCH), Duration::ZERO);
        assert_eq!(until(UNIX_EPOCH, now), Duration::from_secs(100));
        assert_eq!(unix_seconds(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }

    #[test]
    fn a_clock_says_what_its_source_says() {
        let fixed = Now {
            monotonic: Instant::now(),
            wall: UNIX_EPOCH,
        };
        assert_eq!(Clock::from_source(move || fixed).now(), fixed);
    }
}
