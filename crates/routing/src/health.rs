//! Active health checks: what the answers of one endpoint make of it, and when it is asked again.
//!
//! ```text
//!   up ──unhealthy_threshold failures in a row──► down
//!    ▲                                             │
//!    └──────healthy_threshold successes in a row───┘
//! ```
//!
//! An endpoint that was never asked is up: a checker that has just started takes nothing away.

use std::time::Duration;

use karst_model::traffic::HealthCheck;

/// Share of the interval by which two pauses may differ, so that endpoints are not all asked at once: a tenth.
const JITTER: u64 = 10;

/// One endpoint, as its answers have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    up: bool,
    /// Answers in a row that speak against `up`.
    against: u32,
}

impl Default for Checked {
    fn default() -> Self {
        Self {
            up: true,
            against: 0,
        }
    }
}

impl Checked {
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes an answer; whether the endpoint has turned.
    pub fn observe(&mut self, check: &HealthCheck, passed: bool) -> bool {
        if passed == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let threshold = match self.up {
            true => check.unhealthy_threshold,
            false => check.healthy_threshold,
        };
        let turns = self.against >= threshold.max(1);
        if turns {
            *self = Self {
                up: passed,
                against: 0,
            };
        }
        turns
    }
}

/// Until the next question; `draw` is a random number.
pub fn pause(check: &HealthCheck, draw: u64) -> Duration {
    let whole = u64::try_from(check.interval.as_nanos()).unwrap_or(u64::MAX);
    let span = whole / JITTER;
    Duration::from_nanos((whole - span / 2).saturating_add(draw.checked_rem(span).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use karst_model::traffic::HealthProbe;
    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn check(unhealthy: u32, healthy: u32) -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: unhealthy,
            healthy_threshold: healthy,
            port: None,
        }
    }

    /// From the whole history: it turns when the last so many answers since it last turned all say so.
    fn naive(check: &HealthCheck, history: &[bool]) -> bool {
        let (mut up, mut since) = (true, 0);
        for end in 1..=history.len() {
            let wanted = match up {
                true => check.unhealthy_threshold,
                false => check.healthy_threshold,
            } as usize;
            let answers = &history[since..end];
            let last = answers.len().checked_sub(wanted).map(|at| &answers[at..]);
            if last.is_some_and(|last| last.iter().all(|passed| *passed != up)) {
                (up, since) = (!up, end);
            }
        }
        up
    }

    #[test]
    fn a_million_answers_make_what_their_history_makes() {
        let mut rng = SmallRng::seed_from_u64(9);
        let (mut answers, mut turns) = (0, 0);
        while answers < 1_000_000 {
            let check = check(rng.random_range(1..5), rng.random_range(1..5));
            let (mut checked, mut history) = (Checked::default(), Vec::new());
            for _ in 0..40 {
                let passed = rng.random_ratio(1, 2);
                history.push(passed);
                turns += u32::from(checked.observe(&check, passed));
                assert_eq!(checked.is_up(), naive(&check, &history), "{history:?}");
                answers += 1;
            }
        }
        assert!(turns > 10_000, "{turns}");
    }

    #[test]
    fn pauses_differ_by_a_tenth_and_are_right_on_average() {
        let check = check(1, 1);
        let mut rng = SmallRng::seed_from_u64(1);
        let pauses: Vec<f64> = (0..10_000)
            .map(|_| pause(&check, rng.random()).as_secs_f64())
            .collect();
        assert!(pauses.iter().all(|pause| (9.5..10.5).contains(pause)));
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        assert!((9.98..10.02).contains(&mean), "{mean}");
    }
}
