//! Ejections, against a model that keeps the whole history of every endpoint and looks through it each time.

use std::time::Duration;

use karst_model::traffic::Outlier;
use karst_routing::outlier::{Cause, Ejector, Outcome, Streak, Verdict};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::cases;

/// What the model remembers of one endpoint.
#[derive(Clone, Default)]
struct Naive {
    /// All outcomes since its last ejection for each cause, newest last.
    external: Vec<Outcome>,
    gateway: Vec<Outcome>,
    local: Vec<Outcome>,
    times: u32,
    until: Option<Duration>,
}

fn is_error(policy: &Outlier, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Status(status) => status >= 500 || policy.statuses.contains(&status),
        Outcome::Unreached => true,
    }
}

fn is_gateway(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Unreached | Outcome::Status(502..=504))
}

/// Whether the last `threshold` of the history are all bad.
fn full(history: &[Outcome], threshold: Option<u32>, bad: impl Fn(Outcome) -> bool) -> bool {
    let Some(threshold) = threshold.filter(|n| *n > 0) else {
        return false;
    };
    let streak = history.iter().rev().take_while(|o| bad(**o)).count();
    streak >= threshold as usize
}

impl Naive {
    fn observe(&mut self, policy: &Outlier, outcome: Outcome) -> Option<Cause> {
        self.local.push(outcome);
        let is_local = outcome == Outcome::Unreached;
        if policy.split_local && is_local {
            let unreached = |o| o == Outcome::Unreached;
            if full(&self.local, policy.consecutive_local_errors, unreached) {
                self.local.clear();
                return Some(Cause::LocalErrors);
            }
            return None;
        }
        self.external.push(outcome);
        self.gateway.push(outcome);
        let errors = full(&self.external, policy.consecutive_errors, |o| {
            is_error(policy, o)
        });
        let gateway = full(&self.gateway, policy.consecutive_gateway_errors, is_gateway);
        if errors {
            self.external.clear();
        }
        if gateway {
            self.gateway.clear();
        }
        match (errors, gateway) {
            (true, _) => Some(Cause::Errors),
            (_, true) => Some(Cause::GatewayErrors),
            _ => None,
        }
    }
}

fn policy(rng: &mut SmallRng) -> Outlier {
    let mut threshold = || rng.random_bool(0.8).then(|| rng.random_range(0..5));
    Outlier {
        consecutive_errors: threshold(),
        consecutive_gateway_errors: threshold(),
        consecutive_local_errors: threshold(),
        statuses: if rng.random_bool(0.3) {
            vec![429]
        } else {
            Vec::new()
        },
        split_local: rng.random_bool(0.5),
        interval: Duration::from_millis(rng.random_range(1..2_000)),
        base_ejection: Duration::from_millis(rng.random_range(0..200_000)),
        max_ejected_percent: rng.random_range(0..130),
        min_health_percent: 0,
    }
}

fn outcome(rng: &mut SmallRng) -> Outcome {
    match rng.random_range(0..7) {
        0..=1 => Outcome::Unreached,
        2 => Outcome::Status(500),
        3 => Outcome::Status(503),
        4 => Outcome::Status(429),
        _ => Outcome::Status(200),
    }
}

/// One run of one policy: events at a few endpoints, compared after each.
fn run(seed: u64, events: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let policy = policy(&mut rng);
    let total = rng.random_range(1..8_usize);
    let mut streaks = vec![Streak::default(); total];
    let mut naive = vec![Naive::default(); total];
    let (mut now, mut next_tick) = (Duration::ZERO, Duration::ZERO);
    let mut ejector = Ejector::new(now);
    for _ in 0..events {
        now += Duration::from_millis(rng.random_range(0..500));
        let at = rng.random_range(0..total);
        if rng.random_bool(0.3) {
            let mut back = ejector.tick(now, &policy);
            let mut expected = Vec::new();
            if now >= next_tick {
                next_tick = now + policy.interval;
                for (index, one) in naive.iter_mut().enumerate() {
                    if one.until.is_some_and(|until| until <= now) {
                        one.until = None;
                        expected.push(index);
                    } else if one.until.is_none() {
                        one.times = one.times.saturating_sub(1);
                    }
                }
            }
            back.sort_unstable();
            assert_eq!(back, expected, "seed {seed}");
            continue;
        }
        let what = outcome(&mut rng);
        let mut streak = Streak::from_bits(streaks[at].to_bits());
        let cause = streak.observe(&policy, what);
        streaks[at] = streak;
        assert_eq!(cause, naive[at].observe(&policy, what), "seed {seed}");
        if cause.is_some() {
            let ejected = naive.iter().filter(|one| one.until.is_some()).count();
            let percent = policy.max_ejected_percent.min(100) as usize;
            let allowed = match percent {
                0 => 0,
                _ => (total * percent / 100).max(1),
            };
            let expected = if naive[at].until.is_some() {
                Verdict::Already
            } else if ejected + 1 > allowed || ejected + 1 >= total {
                Verdict::TooMany
            } else {
                naive[at].times += 1;
                let longest = policy.base_ejection.max(Duration::from_secs(300));
                let time = (policy.base_ejection * naive[at].times).min(longest);
                naive[at].until = Some(now + time);
                Verdict::Ejected
            };
            assert_eq!(
                ejector.eject(now, &at, total, &policy),
                expected,
                "seed {seed}"
            );
        }
        for (index, one) in naive.iter().enumerate() {
            assert_eq!(
                ejector.is_ejected(&index),
                one.until.is_some(),
                "seed {seed}"
            );
        }
        assert!(ejector.ejected() < total, "seed {seed}: somebody is left");
    }
}

#[test]
fn ejections_are_as_the_model_says() {
    const EVENTS: u64 = 200;
    for seed in 0..cases().div_ceil(EVENTS) {
        run(seed, EVENTS);
    }
}
