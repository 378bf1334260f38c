//! How proofs look on a terminal: the promise first, so that one sees what is being tried, then evidence and verdict.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::Result;

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";

/// Before a proof runs.
pub(super) fn promise(number: usize, promise: &str) {
    println!("\n{number}. {}", painted(BOLD, promise));
}

/// After it ran.
pub(super) fn outcome(taken: Duration, shown: &Result<String>) {
    let taken = taken.as_secs_f64();
    match shown {
        Ok(evidence) => {
            evidence.lines().for_each(|line| println!("    {line}"));
            println!("   {} ({taken:.1} s)", painted(GREEN, "holds"));
        }
        Err(error) => {
            format!("{error:#}")
                .lines()
                .for_each(|line| println!("    {line}"));
            println!("   {} ({taken:.1} s)", painted(RED, "DOES NOT HOLD"));
        }
    }
}

/// Coloured on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
fn painted(code: &str, text: &str) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if refused || !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    format!("\x1b[{code}m{text}\x1b[0m")
}
