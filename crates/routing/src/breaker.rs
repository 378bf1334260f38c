//! Limits of what is in flight: exact counters that threads share, and the retry budget.

use std::sync::atomic::{AtomicU32, Ordering};

use karst_model::traffic::RetryBudget;

/// Places that are taken. Never more than the limit of whoever takes them, however many do at once; and never refused
/// while one is free.
#[derive(Debug, Default)]
pub struct Slots(AtomicU32);

impl Slots {
    /// Takes a place if fewer than `max` are taken.
    pub fn take(&self, max: u32) -> bool {
        let next = |used: u32| (used < max).then(|| used + 1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok()
    }

    /// Gives back a place that was taken.
    pub fn give(&self) {
        let next = |used: u32| Some(used.saturating_sub(1));
        // It never refuses.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    pub fn used(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// Retries that may be in flight while `active` requests are, retries among them.
pub fn retries_allowed(budget: &RetryBudget, active: u32) -> u32 {
    let share = u64::from(active) * u64::from(budget.share_ppm.min(1_000_000)) / 1_000_000;
    u32::try_from(share)
        .unwrap_or(u32::MAX)
        .max(budget.min_concurrent)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_limit_holds_exactly_under_concurrent_use() {
        const LIMIT: u32 = 7;
        let (slots, over, most) = (Slots::default(), AtomicBool::new(false), AtomicU32::new(0));
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if slots.take(LIMIT) {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            over.fetch_or(now > LIMIT, Ordering::SeqCst);
                            most.fetch_max(now, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            slots.give();
                        }
                    }
                });
            }
        });
        assert!(!over.into_inner());
        assert_eq!(slots.used(), 0);
        assert_eq!(most.into_inner(), LIMIT, "the limit was reached");
    }

    #[test]
    fn a_budget_is_a_share_with_a_floor() {
        let budget = RetryBudget::default();
        let allowed = |active| retries_allowed(&budget, active);
        assert_eq!(
            [allowed(0), allowed(19), allowed(20), allowed(1000)],
            [3, 3, 4, 200]
        );
        let broken = RetryBudget {
            share_ppm: u32::MAX,
            min_concurrent: 0,
        };
        assert_eq!(
            retries_allowed(&broken, 10),
            10,
            "percentages over 100 are 100"
        );
    }
}
