//! Load for "nobody fails while it happens" tests: new connections at a steady rate, long connections beside them,
//! each exchange checked byte by byte, failures counted by kind. The target is an `echo` port.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use karst_runtime::supervise::spawn_connection;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
    time::MissedTickBehavior,
};

use crate::{say, stop::Stop};

/// How much and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// HOST:PORT of a server port that echoes
    target: String,
    /// New connections per second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds
    #[arg(long, default_value_t = 10)]
    duration: u64,
    /// Ends before its time as soon as this file is there
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Connections that stay open for the whole time and exchange a message every 100 ms
    #[arg(long, default_value_t = 0)]
    long: u32,
    /// Milliseconds that one exchange may take
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    /// At most this many short connections at once; more count as failures of kind "backlog"
    #[arg(long, default_value_t = 4_096)]
    at_once: usize,
}

#[derive(Default)]
struct Tally {
    short: u64,
    long_exchanges: u64,
    failures: BTreeMap<String, u64>,
    latencies_us: Vec<u32>,
}

#[derive(Serialize)]
struct Report<'a> {
    target: &'a str,
    connections: u64,
    long_connections: u32,
    long_exchanges: u64,
    failures: u64,
    failures_by_kind: &'a BTreeMap<String, u64>,
    p50_us: u32,
    p99_us: u32,
    max_us: u32,
}

type Shared = Arc<Mutex<Tally>>;

/// Prints one JSON object at the end. Failures are in the report, not in the exit code.
pub(crate) async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let tally = Shared::default();
    let stop = Stop::new(args.duration, args.stop_file.clone());
    let long: Vec<_> = (0..args.long)
        .map(|_| spawn_long(&args, &tally, &stop))
        .collect();
    let slots = Arc::new(Semaphore::new(args.at_once));
    let mut tick = tokio::time::interval(Duration::from_secs(1) / args.rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    // By their number, not by the clock: what a busy machine began too late is made up for.
    for _ in 0..u64::from(args.rate) * args.duration {
        tick.tick().await;
        if stop.is_told() {
            break;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            failed(&tally, "backlog");
            continue;
        };
        let (args, tally) = (args.clone(), Arc::clone(&tally));
        spawn_connection("load-short", async move {
            short(&args, &tally).await;
            drop(slot);
        });
    }
    for task in long {
        task.await?;
    }
    let _all = slots
        .acquire_many(u32::try_from(args.at_once).unwrap_or(u32::MAX))
        .await?;
    print(&args, &tally)
}

fn print(args: &LoadArgs, tally: &Shared) -> anyhow::Result<()> {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.latencies_us.sort_unstable();
    let at = |share: f64| {
        let last = tally.latencies_us.len().saturating_sub(1);
        tally
            .latencies_us
            .get((last as f64 * share) as usize)
            .copied()
            .unwrap_or_default()
    };
    let report = Report {
        target: &args.target,
        connections: tally.short,
        long_connections: args.long,
        long_exchanges: tally.long_exchanges,
        failures: tally.failures.values().sum(),
        failures_by_kind: &tally.failures,
        p50_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
    };
    say(serde_json::to_string(&report)?);
    Ok(())
}

fn failed(tally: &Shared, kind: &str) {
    *tally
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .failures
        .entry(kind.to_owned())
        .or_default() += 1;
}

async fn short(args: &LoadArgs, tally: &Shared) {
    let started = Instant::now();
    let limit = Duration::from_millis(args.timeout_ms);
    let outcome = tokio::time::timeout(limit, async {
        let mut stream = TcpStream::connect(&args.target)
            .await
            .map_err(|error| kind("connect", &error))?;
        exchange(&mut stream, started.elapsed().subsec_nanos()).await
    });
    match outcome
        .await
        .unwrap_or_else(|_elapsed| Err("timeout".to_owned()))
    {
        Ok(()) => {
            let us = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.short += 1;
            tally.latencies_us.push(us);
        }
        Err(kind) => failed(tally, &kind),
    }
}

fn spawn_long(args: &LoadArgs, tally: &Shared, stop: &Stop) -> JoinHandle<()> {
    let (args, tally, stop) = (args.clone(), Arc::clone(tally), stop.clone());
    spawn_connection("load-long", async move {
        if let Err(kind) = long(&args, &tally, &stop).await {
            failed(&tally, &format!("long {kind}"));
        }
    })
}

async fn long(args: &LoadArgs, tally: &Shared, stop: &Stop) -> Result<(), String> {
    let limit = Duration::from_millis(args.timeout_ms);
    let connected = tokio::time::timeout(limit, TcpStream::connect(&args.target)).await;
    let mut stream = connected
        .map_err(|_elapsed| "timeout".to_owned())?
        .map_err(|error| kind("connect", &error))?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for n in 0.. {
        if stop.is_over() {
            break;
        }
        tick.tick().await;
        let exchanged = tokio::time::timeout(limit, exchange(&mut stream, n)).await;
        exchanged.map_err(|_elapsed| "timeout".to_owned())??;
        tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .long_exchanges += 1;
    }
    Ok(())
}

/// Sends 32 bytes that differ each time and expects the same back.
async fn exchange(stream: &mut TcpStream, salt: u32) -> Result<(), String> {
    let mut message = [0x6b; 32];
    message[..4].copy_from_slice(&salt.to_be_bytes());
    stream
        .write_all(&message)
        .await
        .map_err(|error| kind("write", &error))?;
    let mut answer = [0; 32];
    stream
        .read_exact(&mut answer)
        .await
        .map_err(|error| kind("read", &error))?;
    if answer == message {
        Ok(())
    } else {
        Err("wrong bytes".to_owned())
    }
}

fn kind(during: &str, error: &std::io::Error) -> String {
    format!("{during}: {:?}", error.kind())
}
