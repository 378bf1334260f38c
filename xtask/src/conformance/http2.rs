//! `conformance http2`: h2spec against the waypoint's HTTP/2, in front of karst-echo.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::proxy;
use crate::{cluster, release, shell};

/// h2spec waits for each case on its own; all of them take some seconds.
const LIMIT: Duration = Duration::from_secs(300);

pub(super) fn run() -> Result<()> {
    let suite = cluster::build::h2spec()?;
    release::tool("karst-echo")?;
    let echo = release::folder().join("karst-echo");
    let server = proxy::listening(&echo, |at| {
        vec!["server".to_owned(), format!("--port={}", at.port())]
    })?;
    let proxy = proxy::in_front_of(server.at)?;
    let mut counts = None;
    let mut command = Command::new(suite);
    command
        .args([
            "--strict",
            "--timeout",
            "3",
            "--host",
            "127.0.0.1",
            "--port",
        ])
        .arg(proxy.at.port().to_string());
    shell::watch(&mut command, LIMIT, |line| {
        counts = Counts::parse(line).or(counts);
    })?;
    let counts = counts.context("h2spec ended without its closing line")?;
    println!(
        "conformance: h2spec {}/{} passed, {} skipped, {} failed",
        counts.passed, counts.tests, counts.skipped, counts.failed
    );
    if counts.failed > 0 {
        bail!("{} cases of h2spec fail", counts.failed);
    }
    Ok(())
}

/// `146 tests, 145 passed, 1 skipped, 0 failed`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    tests: u32,
    passed: u32,
    skipped: u32,
    failed: u32,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line
            .split(", ")
            .zip(["tests", "passed", "skipped", "failed"]);
        let mut next = || {
            let (part, word) = numbers.next()?;
            part.strip_suffix(word)?.trim().parse().ok()
        };
        Some(Self {
            tests: next()?,
            passed: next()?,
            skipped: next()?,
            failed: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn the_closing_line_is_read() {
        let counts = Counts::parse("146 tests, 145 passed, 1 skipped, 0 failed").unwrap();
        assert_eq!((counts.tests, counts.passed), (146, 145));
        assert_eq!((counts.skipped, counts.failed), (1, 0));
        assert!(Counts::parse("Finished in 3.1 seconds").is_none());
    }
}
