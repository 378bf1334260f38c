//! Random cases for the decisions about endpoints, against naive models that are written separately, under a clock that
//! only the test moves. `KARST_CASES` is the number of cases of each decision: 10^6 by hand, fewer in the rung.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

#[path = "resilience/breaker.rs"]
mod breaker;
#[path = "resilience/hash.rs"]
mod hash;
#[path = "resilience/levels.rs"]
mod levels;
#[path = "resilience/outlier.rs"]
mod outlier;
#[path = "resilience/pick.rs"]
mod pick;

/// Cases of each decision.
fn cases() -> u64 {
    let asked = std::env::var("KARST_CASES").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(20_000)
}
