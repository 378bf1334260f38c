//! Seeds of the whole: index, serving, discovery, policy and enrolment under faults.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use karst_test_simulation::run::run;

/// Runs only this seed.
const SEED_VARIABLE: &str = "KARST_SIM_SEED";
const SEEDS: u64 = 400;

#[test]
fn every_seed_keeps_the_rules_and_ends_in_the_same_mesh() {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        let seed = seed
            .parse()
            .unwrap_or_else(|_| panic!("{SEED_VARIABLE} must be a number, not {seed:?}"));
        return run(seed);
    }
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
                next.store(SEEDS, Ordering::Relaxed);
                panic!(
                    "seed {seed} failed, see above; run it alone: {SEED_VARIABLE}={seed} cargo xtask test simulation"
                );
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(work);
        }
    });
}
