//! A closed-loop load generator for the benchmarks: `cargo xtask load`, started by `bench` inside a pod's namespace.
//!
//! Blocking sockets and nothing else, so that its own cost is small, and the same for the mesh and for plain TCP.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Size of a request and of its answer, in bytes.
const MESSAGE_BYTES: usize = 64;
/// How long one answer may take before the run fails.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What one operation is.
    kind: Kind,
    /// A port that echoes.
    target: SocketAddr,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Milliseconds from one attempt of `watch` to the next.
    #[arg(long, default_value_t = 5)]
    pace_ms: u64,
}

/// What one operation is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// One request and its answer on a connection that stays open.
    RequestResponse,
    /// Connect, one request and its answer, close.
    Connect,
    /// The same at a pace, failures included: one line for each, as it ends.
    Watch,
}

/// How one connection of `watch` went.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// Microseconds since the epoch at which it began.
    begun_us: u64,
    /// Microseconds it took.
    pub(crate) took_us: u64,
    /// Whether the answer came.
    pub(crate) answered: bool,
}

impl Attempt {
    pub(crate) fn begun(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.begun_us)
    }
}

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Operations done.
    pub(crate) operations: u64,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Median time of one operation, microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile, microseconds.
    pub(crate) p99_us: f64,
}

/// Runs and prints the outcome as one JSON object, or one for each attempt.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.kind {
        Kind::Watch => watch(args),
        Kind::RequestResponse | Kind::Connect => closed_loop(args),
    }
}

/// A failed attempt is a line like any other: the run goes on.
#[expect(clippy::print_stdout, reason = "its output is read by `bench`")]
fn watch(args: &Args) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let pace = Duration::from_millis(args.pace_ms);
    while Instant::now() < until {
        let (clock, begun) = (SystemTime::now(), Instant::now());
        let answered = connect(args.target)
            .and_then(|mut stream| exchange(&mut stream))
            .is_ok();
        let attempt = Attempt {
            begun_us: clock.duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as u64,
            took_us: begun.elapsed().as_micros() as u64,
            answered,
        };
        println!("{}", serde_json::to_string(&attempt)?);
        std::thread::sleep(pace.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its output is read by `bench`")]
fn closed_loop(args: &Args) -> Result<()> {
    let mut times = Vec::new();
    let started = Instant::now();
    let until = started + Duration::from_secs(args.seconds);
    let mut open = connect(args.target)?;
    while Instant::now() < until {
        let begun = Instant::now();
        if let Kind::Connect = args.kind {
            open = connect(args.target)?;
        }
        exchange(&mut open)?;
        if let Kind::Connect = args.kind {
            close(&mut open)?;
        }
        times.push(begun.elapsed());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&outcome(times, seconds))?);
    Ok(())
}

fn outcome(mut times: Vec<Duration>, seconds: f64) -> Outcome {
    times.sort_unstable();
    let at = |percent: usize| {
        let time = times
            .get(times.len() * percent / 100)
            .copied()
            .unwrap_or_default();
        time.as_secs_f64() * 1e6
    };
    Outcome {
        operations: times.len() as u64,
        seconds,
        p50_us: at(50),
        p99_us: at(99),
    }
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; MESSAGE_BYTES];
    stream
        .write_all(&[b'k'; MESSAGE_BYTES])
        .context("sending a request")?;
    stream.read_exact(&mut answer).context("reading an answer")
}

/// Half-closes and waits for the server's end, so that a connection counts only when it is gone.
fn close(stream: &mut TcpStream) -> Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read(&mut [0; 1]) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("waiting for the end of a connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_sorted_times() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let outcome = outcome(times, 1.0);
        assert_eq!(
            (outcome.operations, outcome.p50_us, outcome.p99_us),
            (100, 51.0, 100.0)
        );
    }
}
