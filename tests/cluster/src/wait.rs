//! Waiting on conditions: tests never sleep for a time that "should be enough".

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// How long anything in the cluster may take before a test calls it missing.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Looks again and again until `look` returns something; panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain: {what}"
        );
        // Each look is a call of a program that asks the API server.
        sleep(Duration::from_millis(50));
    }
}

/// [`until`] for a plain condition.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()));
}
