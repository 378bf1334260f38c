//! `karst-fuzz`: runs the targets over the saved corpus and small changes of it, for a given time.

#![expect(
    clippy::print_stdout,
    reason = "a command-line tool reports on standard output"
)]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use karst_fuzz::{
    TARGETS, Target,
    mutate::{Random, mutated},
    target,
};

/// An input that takes longer is a finding: peers must not buy our time so cheaply.
const INPUT_TIME_MAX: Duration = Duration::from_secs(2);

/// How often an input that took too long is tried again.
const SLOW_TRIES: usize = 4;

/// Runs the targets without coverage guidance.
#[derive(Parser)]
enum Args {
    /// Names of the targets.
    List,
    /// Writes each target's seeds into its folder of the corpus.
    Seed,
    /// Runs one target.
    Run {
        /// Its name.
        target: String,
        /// For how long.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// The generator's seed; without it, the time.
        #[arg(long)]
        seed: Option<u64>,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    match args {
        Args::List => TARGETS
            .iter()
            .for_each(|target| println!("{}", target.name)),
        Args::Seed => TARGETS.iter().try_for_each(write_seeds)?,
        Args::Run {
            target: name,
            seconds,
            seed,
        } => {
            let target = target(name).with_context(|| format!("there is no target {name}"))?;
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let seed = seed.unwrap_or(now.as_secs() ^ u64::from(now.subsec_nanos()));
            fuzz(target, Duration::from_secs(*seconds), seed)?;
        }
    }
    Ok(())
}

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).join(target.name)
}

fn write_seeds(target: &Target) -> Result<()> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{index}")), seed)?;
    }
    Ok(())
}

fn corpus(target: &Target) -> Result<Vec<Vec<u8>>> {
    let mut corpus = (target.seeds)();
    let folder = folder(target);
    if folder.is_dir() {
        for entry in fs::read_dir(&folder)? {
            corpus.push(fs::read(entry?.path())?);
        }
    }
    Ok(corpus)
}

fn fuzz(target: &Target, time: Duration, seed: u64) -> Result<()> {
    let corpus = corpus(target)?;
    for input in &corpus {
        try_one(target, input)?;
    }
    let (started, mut random, mut tried) = (Instant::now(), Random::new(seed), 0_u64);
    while started.elapsed() < time {
        try_one(target, &mutated(&corpus, &mut random))?;
        tried += 1;
    }
    println!(
        "{}: {} saved and {tried} changed inputs in {:.0?}, seed {seed}: nothing found",
        target.name,
        corpus.len(),
        started.elapsed()
    );
    Ok(())
}

fn try_one(target: &Target, input: &[u8]) -> Result<()> {
    let (mut ended, mut taken) = timed(target, input);
    // A busy machine can stop us for seconds: only an input that is slow every time is slow.
    for _ in 0..SLOW_TRIES {
        if ended.is_err() || taken <= INPUT_TIME_MAX {
            break;
        }
        let again = timed(target, input);
        (ended, taken) = (again.0, taken.min(again.1));
    }
    if ended.is_ok() && taken <= INPUT_TIME_MAX {
        return Ok(());
    }
    let kept = folder(target).join(format!("found-{:016x}", fingerprint(input)));
    fs::create_dir_all(folder(target))?;
    fs::write(&kept, input)?;
    match ended {
        Err(_panic) => bail!("{} panics on {}", target.name, kept.display()),
        Ok(()) => bail!("{} takes {taken:.1?} for {}", target.name, kept.display()),
    }
}

fn timed(target: &Target, input: &[u8]) -> (std::thread::Result<()>, Duration) {
    let started = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    (ended, started.elapsed())
}

/// FNV-1a: only a file name.
fn fingerprint(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
