//! The loads: wrk for HTTP/1.1, h2load for HTTP/2.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::proxies::{Proxy, Running};
use crate::shell;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// P20.
    Http1,
    /// P22.
    Http2,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Http1 => "P20",
            Self::Http2 => "P22",
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 1 KB, 32 connections, CPU of the proxy a request",
            Self::Http2 => "HTTP/2 both sides, 1 KB, 8 connections of 16 streams, CPU a request",
        }
    }

    /// nginx speaks no HTTP/2 to a backend, but for gRPC.
    pub(super) fn fits(self, proxy: Proxy) -> bool {
        self == Self::Http1 || proxy != Proxy::Nginx
    }
}

/// Loads a proxy and gives the number of requests that were answered with 200.
pub(super) fn run(kind: Kind, proxy: &Running, seconds: u64) -> Result<f64> {
    match kind {
        Kind::Http1 => wrk(proxy, seconds),
        Kind::Http2 => h2load(proxy, seconds),
    }
}

fn wrk(proxy: &Running, seconds: u64) -> Result<f64> {
    wrk_to(
        &mut Command::new("wrk"),
        &format!("http://{}/", proxy.http1),
        seconds,
    )
}

/// wrk over 32 connections, started as the command has it; the number of requests that were answered with 200.
pub(super) fn wrk_to(wrk: &mut Command, url: &str, seconds: u64) -> Result<f64> {
    let printed = shell::capture(
        wrk.args(["--threads", "1", "--connections", "32", "--duration"])
            .arg(format!("{seconds}s"))
            .arg(url),
    )?;
    ensure!(
        !printed.contains("Non-2xx"),
        "the proxy answered with errors: {printed}"
    );
    let requests = printed
        .lines()
        .find_map(|line| line.split_once(" requests in "))
        .with_context(|| format!("wrk names no number of requests: {printed}"))?;
    Ok(requests.0.trim().parse()?)
}

/// Requests a second on each of the 32 connections of [`at_a_rate`].
const RATE: u64 = 150;

/// HTTP/1.1 at a steady rate; the number of requests that were answered with 200.
pub(super) fn at_a_rate(proxy: &Running, seconds: u64) -> Result<f64> {
    let count = (32 * RATE * seconds).to_string();
    let printed = shell::capture(
        Command::new("h2load")
            .args(["--h1", "--clients", "32", "--rps", &RATE.to_string()])
            .args(["--requests", &count])
            .arg(format!("http://{}/", proxy.http1)),
    )?;
    let answered = number_before(&printed, " 2xx")?;
    ensure!(
        answered > 0.0 && number_before(&printed, " 5xx")? == 0.0,
        "the proxy answered with errors: {printed}"
    );
    Ok(answered)
}

fn h2load(proxy: &Running, seconds: u64) -> Result<f64> {
    let printed = shell::capture(
        Command::new("h2load")
            .args(["--clients", "8", "--max-concurrent-streams", "16"])
            .args(["--warm-up-time", "1", "--duration", &seconds.to_string()])
            .arg(format!("http://{}/", proxy.http2)),
    )?;
    let all = number_before(&printed, " 2xx")?;
    ensure!(
        number_before(&printed, " 5xx")? == 0.0,
        "the proxy answered with errors: {printed}"
    );
    // Requests of the warming-up are not in the count, but their CPU is: half of what a second of load takes at most.
    Ok(all * (seconds as f64 + 1.0) / seconds as f64)
}

/// The number before a mark in `status codes: 1234 2xx, 0 3xx, 0 4xx, 0 5xx`.
fn number_before(printed: &str, mark: &str) -> Result<f64> {
    let line = printed
        .lines()
        .find(|line| line.starts_with("status codes:"))
        .with_context(|| format!("h2load names no statuses: {printed}"))?;
    let before = line.split(mark).next().unwrap_or_default();
    let number = before.rsplit([' ', ',']).next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("h2load's line is not understood: {line}"))
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn statuses_are_read() {
        let printed = "finished in 1.0s\nstatus codes: 1234 2xx, 0 3xx, 5 4xx, 0 5xx\n";
        assert_eq!(number_before(printed, " 2xx").unwrap(), 1234.0);
        assert_eq!(number_before(printed, " 4xx").unwrap(), 5.0);
        assert!(number_before("nothing", " 2xx").is_err());
    }
}
