//! Limits and retry budgets, against a list of who is inside.

use karst_model::traffic::RetryBudget;
use karst_routing::breaker::{Slots, retries_allowed};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::cases;

#[test]
fn limits_hold_whatever_comes_and_goes() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (slots, mut inside) = (Slots::default(), Vec::new());
    for number in 0..cases() {
        if rng.random_bool(0.5) {
            // The limit may change under those who are inside.
            let max = rng.random_range(0..20);
            let fits = (inside.len() as u32) < max;
            assert_eq!(slots.take(max), fits, "case {number}");
            if fits {
                inside.push(number);
            }
        } else if !inside.is_empty() {
            inside.swap_remove(rng.random_range(0..inside.len()));
            slots.give();
        }
        assert_eq!(slots.used() as usize, inside.len(), "case {number}");
    }
}

#[test]
fn a_budget_never_allows_more_than_its_share_or_its_floor() {
    let mut rng = SmallRng::seed_from_u64(2);
    for number in 0..cases() {
        let budget = RetryBudget {
            share_ppm: rng.random_range(0..1_500_000),
            min_concurrent: rng.random_range(0..10),
        };
        let active: u32 = match number % 3 {
            0 => rng.random_range(0..50),
            1 => rng.random_range(0..100_000),
            _ => rng.random(),
        };
        let share = f64::from(budget.share_ppm).min(1e6) / 1e6;
        let exact = (f64::from(active) * share).floor() as u32;
        let expected = exact.max(budget.min_concurrent);
        let allowed = retries_allowed(&budget, active);
        assert!(
            allowed.abs_diff(expected) <= 1,
            "{active} {budget:?}: {allowed}, not {expected}"
        );
    }
}
