//! Who answers so badly that it gets nothing for a while.
//!
//! ```text
//!   outcome of a request ──Streak::observe──► a threshold is reached ──Ejector::eject──► ejected, or too many are
//!                                                           interval ──Ejector::tick───► who may come back
//! ```
//!
//! Source: Envoy, "Outlier detection" (consecutive 5xx, gateway failures, local origin failures; ejection times); which of
//! it there is to set is Istio's `OutlierDetection`. Beyond both, one endpoint always stays.

use std::{hash::Hash, time::Duration};

use hashbrown::HashMap;
use karst_model::traffic::Outlier;

/// The longest ejection, unless the base time is longer.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// How a request went, as far as its endpoint is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered this.
    Status(u16),
    /// It was not reached, it broke off, or it took too long.
    Unreached,
}

/// Failures in a row of one endpoint. It fits into 64 bits, so that threads can share it without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    errors: u16,
    gateway: u16,
    local: u16,
}

/// Which threshold was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Errors,
    GatewayErrors,
    LocalErrors,
}

impl Streak {
    /// Counts an outcome; a threshold that is reached starts again.
    pub fn observe(&mut self, policy: &Outlier, outcome: Outcome) -> Option<Cause> {
        let (error, gateway) = match outcome {
            Outcome::Status(status) => (
                status >= 500 || policy.statuses.contains(&status),
                matches!(status, 502..=504),
            ),
            Outcome::Unreached => (true, true),
        };
        if policy.split_local {
            let is_local = outcome == Outcome::Unreached;
            let reached = count(&mut self.local, is_local, policy.consecutive_local_errors);
            if is_local {
                // What the endpoint itself answers says nothing about this.
                return reached.then_some(Cause::LocalErrors);
            }
        }
        let errors = count(&mut self.errors, error, policy.consecutive_errors);
        let gateway = count(
            &mut self.gateway,
            gateway,
            policy.consecutive_gateway_errors,
        );
        match (errors, gateway) {
            (true, _) => Some(Cause::Errors),
            (false, true) => Some(Cause::GatewayErrors),
            (false, false) => None,
        }
    }

    pub fn to_bits(self) -> u64 {
        u64::from(self.errors) | u64::from(self.gateway) << 16 | u64::from(self.local) << 32
    }

    pub fn from_bits(bits: u64) -> Self {
        Self {
            errors: bits as u16,
            gateway: (bits >> 16) as u16,
            local: (bits >> 32) as u16,
        }
    }
}

/// Whether `streak` has reached its threshold.
fn count(streak: &mut u16, failed: bool, threshold: Option<u32>) -> bool {
    if !failed {
        *streak = 0;
        return false;
    }
    *streak = streak.saturating_add(1);
    let reached = threshold
        .is_some_and(|limit| limit > 0 && u32::from(*streak) >= limit.min(u16::MAX.into()));
    if reached {
        *streak = 0;
    }
    reached
}

/// The ejections of one set of endpoints. Times are measured from some fixed moment.
#[derive(Debug)]
pub struct Ejector<K> {
    ejections: HashMap<K, Ejection>,
    next_tick: Duration,
}

#[derive(Debug, Default)]
struct Ejection {
    /// Ejections so far; one is forgotten with every interval without.
    times: u32,
    until: Option<Duration>,
}

/// What becomes of an endpoint that reached a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ejected,
    Already,
    /// As many as may be are ejected.
    TooMany,
}

impl<K: Hash + Eq + Clone> Ejector<K> {
    pub fn new(now: Duration) -> Self {
        Self {
            ejections: HashMap::new(),
            next_tick: now,
        }
    }

    /// Ejects one of `total` endpoints if that leaves enough of them.
    pub fn eject(&mut self, now: Duration, key: &K, total: usize, policy: &Outlier) -> Verdict {
        let ejected = self.ejected();
        let ejection = self.ejections.entry_ref(key).or_default();
        if ejection.until.is_some() {
            return Verdict::Already;
        }
        if ejected >= most(total, policy.max_ejected_percent) {
            return Verdict::TooMany;
        }
        ejection.times = ejection.times.saturating_add(1);
        let time = policy
            .base_ejection
            .saturating_mul(ejection.times)
            .min(EJECTION_MAX.max(policy.base_ejection));
        ejection.until = Some(now.saturating_add(time));
        Verdict::Ejected
    }

    /// Once in each interval: who may come back now.
    pub fn tick(&mut self, now: Duration, policy: &Outlier) -> Vec<K> {
        if now < self.next_tick {
            return Vec::new();
        }
        self.next_tick = now.saturating_add(policy.interval);
        let mut back = Vec::new();
        for (key, ejection) in &mut self.ejections {
            match ejection.until {
                Some(until) if until <= now => {
                    ejection.until = None;
                    back.push(key.clone());
                }
                Some(_) => {}
                None => ejection.times = ejection.times.saturating_sub(1),
            }
        }
        self.ejections
            .retain(|_, ejection| ejection.until.is_some() || ejection.times > 0);
        back
    }

    /// Forgets endpoints that are gone.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.ejections.retain(|key, _| keep(key));
    }

    /// Everybody may come back: the policy is gone.
    pub fn clear(&mut self) {
        self.ejections.clear();
    }

    pub fn ejected(&self) -> usize {
        let all = self.ejections.values();
        all.filter(|ejection| ejection.until.is_some()).count()
    }

    pub fn is_ejected(&self, key: &K) -> bool {
        let ejection = self.ejections.get(key);
        ejection.is_some_and(|ejection| ejection.until.is_some())
    }
}

/// How many of `total` may be ejected at once: the share, at least one, never all.
fn most(total: usize, percent: u32) -> usize {
    if percent == 0 {
        return 0;
    }
    let share = total * percent.min(100) as usize / 100;
    share.max(1).min(total.saturating_sub(1))
}

/// Whether ejections count at all: below the least health everybody gets requests.
pub fn holds(policy: &Outlier, healthy: usize, total: usize) -> bool {
    healthy * 100 >= policy.min_health_percent.min(100) as usize * total
}
