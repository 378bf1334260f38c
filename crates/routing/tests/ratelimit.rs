//! Rate limits against a naive reference: every key's admitted requests are kept as a list, and the level is computed
//! again from the start for each request. A million random requests over random rates, keys, pauses and table sizes.

use std::{collections::BTreeMap, time::Duration};

use karst_routing::ratelimit::{Buckets, Rate};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// Requests that are compared.
const CASES: u32 = 1_000_000;

/// One key: when it used how much.
#[derive(Default)]
struct Naive {
    /// Times of admitted requests that have not been undone, in nanoseconds.
    admitted: Vec<u64>,
}

impl Naive {
    /// What is used now, as a rational with the denominator `period`: each request adds one, each nanosecond takes
    /// `requests / period` away, and it never falls below zero.
    fn level(&self, now: u64, requests: u128, period: u128) -> u128 {
        let (mut level, mut at) = (0u128, 0u64);
        for time in self.admitted.iter().copied() {
            level = level.saturating_sub(u128::from(time - at) * requests) + period;
            at = time;
        }
        level.saturating_sub(u128::from(now - at) * requests)
    }

    /// Forgets what cannot matter any more, so that the list stays short.
    fn trim(&mut self, now: u64, requests: u128, period: u128) {
        if self.level(now, requests, period) == 0 {
            self.admitted.clear();
        }
    }
}

struct World {
    requests: u32,
    period: Duration,
    burst: u32,
    max: usize,
    real: Buckets,
    keys: BTreeMap<u128, Naive>,
    shared: Naive,
}

impl World {
    fn random(rng: &mut SmallRng) -> Self {
        let requests = match rng.random_range(0..3) {
            0 => rng.random_range(1..5),
            1 => rng.random_range(5..1_000),
            _ => rng.random_range(1_000..2_000_000),
        };
        let period = Duration::from_nanos(match rng.random_range(0..3) {
            0 => 1_000_000_000,
            1 => rng.random_range(1..1_000_000),
            _ => rng.random_range(1_000_000..100_000_000_000),
        });
        let burst = rng.random_range(1..20);
        let max = rng.random_range(1..12);
        Self {
            real: Buckets::new(Rate::new(requests, period, burst), max),
            requests,
            period,
            burst,
            max,
            keys: BTreeMap::new(),
            shared: Naive::default(),
        }
    }

    /// What the reference says of a request: whether it passes, how many more would, whether it shares a bucket.
    fn expect(&mut self, now: u64, key: u128) -> (bool, u32, bool) {
        let requests = u128::from(self.requests);
        let period = self.period.as_nanos();
        if !self.keys.contains_key(&key) && self.keys.len() >= self.max {
            // The one that drained first makes place; of several it does not matter which.
            let drained = |naive: &Naive| naive.level(now, requests, period) == 0;
            let gone = self.keys.iter().filter(|(_, naive)| drained(naive));
            let gone: Vec<u128> = gone.map(|(key, _)| *key).collect();
            for key in gone {
                self.keys.remove(&key);
            }
        }
        let shares = !self.keys.contains_key(&key) && self.keys.len() >= self.max;
        let naive = match shares {
            true => &mut self.shared,
            false => self.keys.entry(key).or_default(),
        };
        naive.trim(now, requests, period);
        let capacity = u128::from(self.burst) * period;
        let passes = naive.level(now, requests, period) + period <= capacity;
        if passes {
            naive.admitted.push(now);
        }
        let left = capacity - naive.level(now, requests, period);
        (
            passes,
            u32::try_from(left / period).unwrap_or(u32::MAX),
            shares,
        )
    }
}

#[test]
fn a_million_random_requests_are_decided_as_by_the_reference() {
    let mut rng = SmallRng::seed_from_u64(20_261_121);
    let (mut done, mut refused, mut shared) = (0u32, 0u32, 0u32);
    while done < CASES {
        let mut world = World::random(&mut rng);
        let keys = rng.random_range(1..world.max as u128 * 2 + 2);
        // Around the rate, so that both answers are frequent.
        let gap = (world.period.as_nanos() as u64 / u64::from(world.requests)).max(1);
        let mut now = 0u64;
        for _ in 0..250 {
            now += match rng.random_range(0..4) {
                0 => 0,
                1 => rng.random_range(0..gap.saturating_mul(2).max(1)),
                2 => rng.random_range(0..gap / 4 + 1),
                _ => {
                    gap.saturating_mul(rng.random_range(0..world.burst as u64 + 2))
                        * u64::from(rng.random_ratio(1, 8))
                }
            };
            let key = rng.random_range(0..keys);
            let taken = world.real.take(Duration::from_nanos(now), key);
            let expected = world.expect(now, key);
            assert_eq!(
                (taken.passes, taken.remaining, taken.shared),
                expected,
                "key {key} at {now} ns of {} per {:?}, burst {}, {} keys",
                world.requests,
                world.period,
                world.burst,
                world.max
            );
            let later = Duration::from_nanos(now) + taken.retry_after;
            assert!(taken.passes || later > Duration::from_nanos(now));
            done += 1;
            refused += u32::from(!taken.passes);
            shared += u32::from(taken.shared);
        }
    }
    assert!(
        refused > CASES / 20 && refused < CASES / 20 * 19,
        "{refused}"
    );
    assert!(shared > CASES / 50, "{shared}");
}

/// What is promised to a client is kept: one moment earlier it is refused, then it passes.
#[test]
fn the_time_to_retry_is_the_first_at_which_it_passes() {
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..2_000 {
        let requests = rng.random_range(1..50_000);
        let period = Duration::from_nanos(rng.random_range(1_000..10_000_000_000));
        let rate = Rate::new(requests, period, rng.random_range(1..5));
        let mut all = Buckets::new(rate, 1);
        let now = Duration::from_secs(1);
        let refused = loop {
            let taken = all.take(now, 1);
            if !taken.passes {
                break taken;
            }
        };
        let at = now + refused.retry_after;
        let early = at - Duration::from_nanos(1);
        if early > now {
            assert!(!all.take(early, 1).passes);
        }
        assert!(all.take(at, 1).passes);
    }
}
