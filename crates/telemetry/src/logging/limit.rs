//! A bound on the program's own lines, so that a flood of errors cannot fill a disk: each place in the code may write a
//! burst, and then so many lines a second. What is left out is counted in the next line of that place.
//!
//! Access logs are not bounded here: each line is a connection or a request, and filters choose among them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tracing::{Metadata, callsite::Identifier};

/// Lines that one place may write at once.
const BURST: u32 = 200;
/// Lines a second of one place after that.
const RATE: u32 = 20;

/// Counts the lines of every place; there are as many as the program has.
#[derive(Default)]
pub(super) struct Limit {
    places: Mutex<HashMap<Identifier, Bucket>>,
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// With the number of those before it that were not.
    Yes {
        suppressed: u64,
    },
    No,
}

struct Bucket {
    tokens: f64,
    updated: Instant,
    suppressed: u64,
}

impl Limit {
    pub(super) fn admit(&self, metadata: &Metadata<'_>, now: Instant) -> Admitted {
        if metadata.target().starts_with("access") {
            return Admitted::Yes { suppressed: 0 };
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = places.entry(metadata.callsite()).or_insert(Bucket {
            tokens: BURST.into(),
            updated: now,
            suppressed: 0,
        });
        bucket.admit(now)
    }
}

impl Bucket {
    fn admit(&mut self, now: Instant) -> Admitted {
        let passed: Duration = now.saturating_duration_since(self.updated);
        self.updated = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * f64::from(RATE)).min(f64::from(BURST));
        if self.tokens < 1.0 {
            self.suppressed += 1;
            return Admitted::No;
        }
        self.tokens -= 1.0;
        Admitted::Yes {
            suppressed: std::mem::take(&mut self.suppressed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Format, captured},
        *,
    };

    #[test]
    fn a_flood_of_one_place_is_bounded_and_told() {
        let lines = captured(Format::Text, "info", |_| {
            for _ in 0..10_000 {
                tracing::error!("the disk is full");
            }
            tracing::error!("something else");
        });
        let count = lines.lines().count();
        assert!(count < 500, "{count}");
        assert!(lines.contains("something else"));
    }

    #[test]
    fn the_next_line_says_what_is_missing() {
        let start = Instant::now();
        let mut bucket = Bucket {
            tokens: 1.0,
            updated: start,
            suppressed: 0,
        };
        assert_eq!(bucket.admit(start), Admitted::Yes { suppressed: 0 });
        for _ in 0..7 {
            assert_eq!(bucket.admit(start), Admitted::No);
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(bucket.admit(later), Admitted::Yes { suppressed: 7 });
    }

    #[test]
    fn access_logs_are_not_bounded_here() {
        let lines = captured(Format::Text, "info", |_| {
            for _ in 0..1000 {
                tracing::info!(target: "access", "request complete");
            }
        });
        assert_eq!(lines.lines().count(), 1000);
    }
}
