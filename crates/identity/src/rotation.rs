//! When certificates are asked for: a pure state machine over all identities of this process.
//!
//! ```text
//!             handle_require                 poll_requests                handle_issued
//!   unknown ─────────────────► due (wanted) ───────────────► in flight ─────────────────► held ─┐
//!      ▲                         ▲                              │                           │   │ half-life
//!      │ handle_release          │ backoff over                 │ handle_failed             │   │ less jitter
//!      └──────────────           └────────── waiting ◄──────────┘ (a held one is kept)      ▼   ▼
//!                                                                                         due (renewal)
//! ```
//!
//! Rules: at most [`RotationConfig::concurrent_max`] requests are in flight, at most one per identity; connections that
//! wait go before prefetches, prefetches before renewals; a certificate that is still valid is never given up.
//! An identity released while its request is in flight stays until the answer, so that a quick return finds it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use karst_model::identity::SpiffeId;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// How urgent a certificate is; greater goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Renewal of a certificate that still serves.
    Background,
    /// A local workload will need it.
    Warmup,
    /// A connection waits for it.
    RealTime,
}

/// Bounds and times of rotation.
#[derive(Clone, Debug)]
pub struct RotationConfig {
    /// Requests in flight at once.
    pub concurrent_max: usize,
    /// Identities held at once; more are refused.
    pub identities_max: usize,
    /// Pause after the first failure; doubles with each further one.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// Share of a pause, and of the half-life, by which it is shortened or lengthened at random: 0.2 is ±20 %.
    pub backoff_jitter: f64,
    /// Share of the half-life by which a renewal may come earlier.
    pub renew_jitter: f64,
    /// Time over which renewals of certificates are spread that are to be replaced although they hold.
    pub replace_spread: Duration,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            concurrent_max: 8,
            identities_max: 4096,
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(150),
            backoff_jitter: 0.2,
            renew_jitter: 0.1,
            replace_spread: Duration::from_secs(30),
        }
    }
}

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What became of an identity on release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Others still need it.
    Kept,
    /// Nobody needs it: drop its certificate and key.
    Dropped,
    /// It was not there.
    Unknown,
}

/// More identities than the bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{identities_max} identities are in use already: raise the bound, or run fewer service accounts on this node"
)]
pub struct TooMany {
    pub identities_max: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Rotation {
    cfg: RotationConfig,
    entries: BTreeMap<SpiffeId, Entry>,
    in_flight: usize,
    rng: SmallRng,
}

#[derive(Debug)]
struct Entry {
    references: usize,
    validity: Option<Validity>,
    /// A connection waits; reset when an answer comes.
    awaited: bool,
    in_flight: bool,
    /// When to ask next.
    due: SystemTime,
    failures: u32,
}

impl Entry {
    fn hold(&mut self, validity: Validity, due: SystemTime) {
        self.validity = Some(validity);
        self.awaited = false;
        self.failures = 0;
        self.due = due;
    }

    fn priority(&self, now: SystemTime) -> Priority {
        let serves = self
            .validity
            .is_some_and(|validity| now <= validity.not_after);
        match (serves, self.awaited) {
            (true, _) => Priority::Background,
            (false, false) => Priority::Warmup,
            (false, true) => Priority::RealTime,
        }
    }
}

impl Rotation {
    /// `seed` makes the jitter repeatable.
    pub fn new(cfg: RotationConfig, seed: u64) -> Self {
        Self {
            cfg,
            entries: BTreeMap::new(),
            in_flight: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// One more user of `id`; the first makes it due at once.
    pub fn handle_require(&mut self, now: SystemTime, id: &SpiffeId) -> Result<(), TooMany> {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.references += 1;
            return Ok(());
        }
        if self.entries.len() >= self.cfg.identities_max {
            return Err(TooMany {
                identities_max: self.cfg.identities_max,
            });
        }
        let entry = Entry {
            references: 1,
            validity: None,
            awaited: false,
            in_flight: false,
            due: now,
            failures: 0,
        };
        self.entries.insert(id.clone(), entry);
        Ok(())
    }

    /// A connection waits for `id`. Goes first, but does not shorten a pause after failure: a CA in trouble is not
    /// helped by being asked once per connection.
    pub fn handle_awaited(&mut self, id: &SpiffeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.awaited = true;
        }
    }

    /// One user less.
    pub fn handle_release(&mut self, id: &SpiffeId) -> Released {
        let Some(entry) = self.entries.get_mut(id) else {
            return Released::Unknown;
        };
        entry.references = entry.references.saturating_sub(1);
        match (entry.references, entry.in_flight) {
            (0, true) => {
                entry.validity = None;
                Released::Dropped
            }
            (0, false) => {
                self.entries.remove(id);
                Released::Dropped
            }
            _ => Released::Kept,
        }
    }

    /// The CA answered with a certificate. False when nobody needs it any more.
    pub fn handle_issued(&mut self, now: SystemTime, id: &SpiffeId, validity: Validity) -> bool {
        let due = self.renew_at(now, validity);
        let Some(entry) = self.answered(id) else {
            return false;
        };
        entry.hold(validity, due);
        true
    }

    /// A certificate of an earlier run was found. Past its half-life it serves, and is renewed at once.
    pub fn handle_restored(&mut self, now: SystemTime, id: &SpiffeId, validity: Validity) {
        let due = self.half_life(validity).max(now);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.hold(validity, due);
        }
    }

    /// The certificate holds and is to be replaced all the same. A pause after failure is not shortened.
    pub fn handle_replace(&mut self, now: SystemTime, id: &SpiffeId) {
        let soon = now
            + self
                .cfg
                .replace_spread
                .mul_f64(self.rng.random_range(0.0..=1.0));
        if let Some(entry) = self.entries.get_mut(id)
            && entry.failures == 0
        {
            entry.due = entry.due.min(soon);
        }
    }

    /// No certificate came. A held one is kept; the next request waits, longer each time.
    pub fn handle_failed(&mut self, now: SystemTime, id: &SpiffeId) {
        let jitter = self
            .rng
            .random_range(-self.cfg.backoff_jitter..=self.cfg.backoff_jitter);
        let (first, max) = (self.cfg.backoff_first, self.cfg.backoff_max);
        let Some(entry) = self.answered(id) else {
            return;
        };
        let doubled = first
            .saturating_mul(1_u32.checked_shl(entry.failures).unwrap_or(u32::MAX))
            .min(max);
        entry.failures = entry.failures.saturating_add(1);
        entry.due = now + doubled.mul_f64(1.0 + jitter).min(max);
    }

    /// Ends the request in flight; an identity that nobody needs any more is forgotten.
    fn answered(&mut self, id: &SpiffeId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(id)?;
        if std::mem::take(&mut entry.in_flight) {
            self.in_flight -= 1;
        }
        if entry.references == 0 {
            self.entries.remove(id);
            return None;
        }
        self.entries.get_mut(id)
    }

    /// Half of the whole life, less a random share so that nodes that started together do not renew together. Where
    /// that is over on arrival (a short life that began in the past), a third of what is left.
    fn renew_at(&mut self, now: SystemTime, validity: Validity) -> SystemTime {
        let left = validity.not_after.duration_since(now).unwrap_or_default();
        // A CA that answers with nothing left is not asked in a tight loop.
        let soonest = now + (left / 3).max(self.cfg.backoff_first.min(left / 2));
        self.half_life(validity).max(soonest)
    }

    fn half_life(&mut self, validity: Validity) -> SystemTime {
        let life = validity
            .not_after
            .duration_since(validity.not_before)
            .unwrap_or_default();
        let early = self.rng.random_range(0.0..=self.cfg.renew_jitter);
        validity.not_before + (life / 2).mul_f64(1.0 - early)
    }

    /// What to ask for now, most urgent first. Each must be answered by `handle_issued` or `handle_failed`.
    pub fn poll_requests(&mut self, now: SystemTime) -> Vec<SpiffeId> {
        let free = self.cfg.concurrent_max.saturating_sub(self.in_flight);
        if free == 0 {
            return Vec::new();
        }
        self.forgive_clock_jumps(now);
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.in_flight && entry.due <= now)
            .map(|(id, entry)| {
                (
                    std::cmp::Reverse(entry.priority(now)),
                    entry.due,
                    id.clone(),
                )
            })
            .collect();
        due.sort();
        due.truncate(free);
        due.into_iter().map(|(_, _, id)| self.start(id)).collect()
    }

    fn start(&mut self, id: SpiffeId) -> SpiffeId {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.in_flight = true;
            self.in_flight += 1;
        }
        id
    }

    /// A clock set back would make pauses last for hours: none is longer than the greatest one.
    fn forgive_clock_jumps(&mut self, now: SystemTime) {
        let latest = now + self.cfg.backoff_max;
        for entry in self.entries.values_mut() {
            if entry.failures > 0 && entry.due > latest {
                entry.due = now;
            }
        }
    }

    /// When `poll_requests` will next have something to say, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<SystemTime> {
        if self.in_flight >= self.cfg.concurrent_max {
            return None;
        }
        self.entries
            .values()
            .filter(|entry| !entry.in_flight)
            .map(|entry| entry.due)
            .min()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Users of `id`, and when it is asked for next.
    pub fn plan(&self, id: &SpiffeId) -> Option<Plan> {
        let entry = self.entries.get(id)?;
        Some(Plan {
            references: entry.references,
            in_flight: entry.in_flight,
            due: entry.due,
            failures: entry.failures,
        })
    }
}

/// What is planned for one identity, for status pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub references: usize,
    pub in_flight: bool,
    /// When it is asked for next (not meaningful while in flight).
    pub due: SystemTime,
    /// Failures in a row.
    pub failures: u32,
}

#[cfg(test)]
mod tests;
