//! Rate limits: one bucket of tokens per key, in exact arithmetic, for a bounded number of keys.
//!
//! ```text
//!   Rate (requests per period, burst) ─► Buckets ──take(now, key)──► Taken { passes, remaining, … }
//!                                        (one shard)  └─give_back── when another limit refuses the same request
//! ```
//!
//! A bucket is what its key has used of the burst; it drains at the rate. One that has drained is as if it had never been
//! there, so only such buckets make room for new keys: nobody gets a fresh start by making others be forgotten. While no
//! bucket has drained, new keys share one more bucket, so that whoever invents keys gains nothing and fills no memory.
//!
//! The caller numbers keys by a keyed hash of its own, locks a shard, and says what time it is.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use hashbrown::HashMap;

/// What a limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    requests: u32,
    period_ns: u64,
    burst: u32,
}

/// Longest period that is counted exactly; longer ones count as this.
const PERIOD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

impl Rate {
    /// `requests` per `period` on average, `burst` at once. A zero counts as the smallest amount above it.
    pub fn new(requests: u32, period: Duration, burst: u32) -> Self {
        Self {
            requests: requests.max(1),
            period_ns: nanos(period.min(PERIOD_MAX)).max(1),
            burst: burst.max(1),
        }
    }

    pub fn requests(&self) -> u32 {
        self.requests
    }

    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period_ns)
    }

    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// What one request costs. Levels are in requests × nanoseconds of the period: in this unit both a request and a
    /// nanosecond are whole numbers.
    fn cost(&self) -> u128 {
        self.period_ns.into()
    }

    fn capacity(&self) -> u128 {
        u128::from(self.burst) * self.cost()
    }

    /// How long it takes until so much has drained.
    fn time_of(&self, level: u128) -> Duration {
        let ns = level.div_ceil(u128::from(self.requests));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What one key has used, as of a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    used: u128,
    at_ns: u64,
}

impl Bucket {
    /// Drained up to now. Time that goes backwards drains nothing.
    fn drain(&mut self, rate: &Rate, now_ns: u64) {
        let elapsed = u128::from(now_ns.saturating_sub(self.at_ns));
        self.used = self
            .used
            .saturating_sub(elapsed * u128::from(rate.requests));
        self.at_ns = self.at_ns.max(now_ns);
    }

    /// When nothing will be left of it.
    fn drained_at_ns(&self, rate: &Rate) -> u64 {
        self.at_ns.saturating_add(nanos(rate.time_of(self.used)))
    }

    fn take(&mut self, rate: &Rate) -> bool {
        let passes = self.used + rate.cost() <= rate.capacity();
        if passes {
            self.used += rate.cost();
        }
        passes
    }
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub passes: bool,
    /// Requests that could still come at once.
    pub remaining: u32,
    /// Until one more passes; zero if it would now.
    pub retry_after: Duration,
    /// Until all of the burst is there again.
    pub reset: Duration,
    /// The key found no place and was counted with all others that found none.
    pub shared: bool,
}

/// The buckets of one limit, or a shard of them.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    max: usize,
    buckets: HashMap<u128, Bucket>,
    /// Each key once, by a time at which it had not drained before.
    drains: BinaryHeap<Reverse<(u64, u128)>>,
    /// Of the keys that find no place.
    shared: Bucket,
}

impl Buckets {
    /// At most `max` keys at a time.
    pub fn new(rate: Rate, max: usize) -> Self {
        Self {
            rate,
            max,
            buckets: HashMap::new(),
            drains: BinaryHeap::new(),
            shared: Bucket::default(),
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Keys that have a bucket.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Takes one token of `key`, if there is one. `now` counts from any moment that stays the same.
    pub fn take(&mut self, now: Duration, key: u128) -> Taken {
        let (rate, now_ns) = (self.rate, nanos(now));
        let has_place = self.buckets.contains_key(&key) || self.make_place(now_ns, key);
        let bucket = match has_place {
            true => self.buckets.entry(key).or_default(),
            false => &mut self.shared,
        };
        bucket.drain(&rate, now_ns);
        let passes = bucket.take(&rate);
        let left = rate.capacity().saturating_sub(bucket.used);
        Taken {
            passes,
            remaining: u32::try_from(left / rate.cost()).unwrap_or(u32::MAX),
            retry_after: rate.time_of(rate.cost().saturating_sub(left)),
            reset: rate.time_of(bucket.used),
            shared: !has_place,
        }
    }

    /// Takes back what [`Self::take`] took: the request was not let through after all.
    pub fn give_back(&mut self, key: u128, taken: &Taken) {
        if !taken.passes {
            return;
        }
        let bucket = match taken.shared {
            true => Some(&mut self.shared),
            false => self.buckets.get_mut(&key),
        };
        if let Some(bucket) = bucket {
            bucket.used = bucket.used.saturating_sub(self.rate.cost());
        }
    }

    /// A place for a key that has none, if there is one or a bucket has drained.
    fn make_place(&mut self, now_ns: u64, key: u128) -> bool {
        if self.buckets.len() >= self.max && !self.forget_one(now_ns) {
            return false;
        }
        self.drains.push(Reverse((now_ns, key)));
        true
    }

    /// Forgets the bucket that drained first. What the heap says may be too early, never too late.
    fn forget_one(&mut self, now_ns: u64) -> bool {
        while let Some(Reverse((known_ns, key))) = self.drains.peek().copied() {
            if known_ns > now_ns {
                return false;
            }
            self.drains.pop();
            let drained_ns = match self.buckets.get(&key) {
                Some(bucket) => bucket.drained_at_ns(&self.rate),
                None => continue,
            };
            if drained_ns <= now_ns {
                self.buckets.remove(&key);
                return true;
            }
            self.drains.push(Reverse((drained_ns, key)));
        }
        false
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn buckets(requests: u32, burst: u32, max: usize) -> Buckets {
        Buckets::new(Rate::new(requests, Duration::from_secs(1), burst), max)
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rate_comes_back() {
        let mut all = buckets(10, 3, 10);
        let remaining: Vec<u32> = (0..3).map(|_| all.take(MS, 1).remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = all.take(MS, 1);
        assert!(!refused.passes);
        assert_eq!(refused.retry_after, 100 * MS);
        assert_eq!(refused.reset, 300 * MS);
        assert!(!all.take(100 * MS, 1).passes, "99 ms are not 100");
        assert!(all.take(101 * MS, 1).passes);
        assert!(all.take(MS, 2).passes, "another key has its own");
    }

    #[test]
    fn over_a_long_time_exactly_the_rate_passes() {
        for (requests, period, burst) in [
            (7, Duration::from_secs(3), 1),
            (1_000_000, Duration::from_secs(1), 100),
            (3, Duration::from_secs(86_400), 5),
            (1_000_000_000, Duration::from_millis(1), 1_000_000_000),
        ] {
            let rate = Rate::new(requests, period, burst);
            let mut all = Buckets::new(rate, 1);
            let (steps, periods) = (100_000u32, 10u32);
            let step = period * periods / steps;
            let asked_per_step =
                u64::from(requests) * u64::from(periods) / u64::from(steps) * 2 + 2;
            if asked_per_step > 1_000 {
                continue; // The arithmetic is the same; the loop would be long.
            }
            let mut passed = 0u64;
            for n in 0..=steps {
                let now = step * n;
                passed += (0..asked_per_step)
                    .filter(|_| all.take(now, 1).passes)
                    .count() as u64;
            }
            let exact = u64::from(requests) * u64::from(periods) + u64::from(burst);
            assert!(passed.abs_diff(exact) <= 1, "{passed} of {exact}");
        }
    }

    #[test]
    fn who_invents_keys_resets_nobody_and_gains_nothing() {
        let mut all = buckets(1, 2, 100);
        assert!(all.take(MS, 0).passes && all.take(MS, 0).passes);
        let invented = (1..10_000u128).filter(|key| all.take(MS, *key).passes);
        // 99 keys with a bucket, and one bucket for all the others.
        assert_eq!(invented.count(), 99 + 2);
        assert!(!all.take(2 * MS, 0).passes, "the victim is still counted");
        assert_eq!(all.len(), 100);
        assert!(all.take(3 * MS, 77_777).shared);
        // Those of one request have drained after a second, the victim after two.
        let fresh = all.take(Duration::from_millis(1_500), 88_888);
        assert!(fresh.passes && !fresh.shared);
        let victim = all.take(Duration::from_millis(1_500), 0);
        assert_eq!((victim.passes, victim.remaining), (true, 0));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut all = buckets(1, 1, 1);
        let taken = all.take(MS, 1);
        all.give_back(1, &taken);
        let again = all.take(MS, 1);
        assert!(again.passes);
        let refused = all.take(MS, 1);
        all.give_back(1, &refused);
        assert!(!all.take(MS, 1).passes, "nothing was taken");
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing_away() {
        let mut all = buckets(1, 1, 1);
        assert!(all.take(Duration::from_secs(10), 1).passes);
        assert!(!all.take(Duration::from_secs(1), 1).passes);
        assert!(!all.take(Duration::from_millis(10_999), 1).passes);
        assert!(all.take(Duration::from_secs(11), 1).passes);
    }
}
