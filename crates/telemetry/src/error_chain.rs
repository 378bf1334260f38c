//! Prints an error with everything that caused it, once, at the boundary where it is logged.
//!
//! Karst's errors describe their own layer only; the cause is their `source`. Whoever logs one writes
//! `Chain(&error)` and gets `outer: middle: inner`.

use std::{error::Error, fmt};

/// How many causes are printed: an error that names itself as its cause must not print for ever.
const CAUSES_MAX: usize = 16;

/// Displays an error and its causes, outermost first, separated by `: `.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let causes = std::iter::successors(self.0.source(), |&cause| cause.source());
        for cause in causes.take(CAUSES_MAX) {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("opening the tunnel to {peer}")]
    struct Outer {
        peer: &'static str,
        #[source]
        cause: std::io::Error,
    }

    #[test]
    fn every_cause_is_printed_once() {
        let cause = std::io::Error::other("connection refused");
        let error = Outer {
            peer: "10.0.0.1:15008",
            cause,
        };
        assert_eq!(
            Chain(&error).to_string(),
            "opening the tunnel to 10.0.0.1:15008: connection refused"
        );
    }
}
