//! `fuzz`: hostile input for every parser of peer bytes, out of the package `karst-fuzz`.
//!
//! With a nightly tool chain the targets run under libFuzzer, guided by coverage and with the address sanitizer;
//! without one, a mutation loop over the saved corpus runs on the pinned tool chain. The test rung always uses the
//! loop, as the other rungs have built it: it needs no second tool chain, and no second build of all dependencies. The loop
//! takes one processor: as many targets run at once as there are.

use std::{collections::VecDeque, fs, num::NonZero, process::Command, sync::mpsc, thread};

use anyhow::{Result, bail};

use crate::{check::Compiler, shell};

/// How long each target runs in the test rung, in seconds.
const RUNG_SECONDS: u32 = 30;

/// The rung repeats the same inputs, so that it fails for what changed and not by luck; `cargo xtask fuzz` looks for new
/// ones.
const RUNG_SEED: u64 = 20_261_121;

/// What the loop is built as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    /// With the other tests: a half to a sixth of the inputs, but arithmetic that overflows panics.
    Tests(Compiler),
    /// Optimised, for whoever looks for new inputs.
    Search,
}

impl Build {
    fn profile(self) -> &'static str {
        match self {
            Self::Tests(_) => "dev",
            Self::Search => "quick-release",
        }
    }

    /// Compiles the loop, so that its time is spent on inputs. The whole workspace is named: the package alone would get its
    /// dependencies compiled anew, with fewer features.
    fn compile(self) -> Result<()> {
        let mut cargo = match self {
            Self::Tests(compiler) => compiler.cargo(),
            Self::Search => shell::cargo(),
        };
        shell::run(cargo.args([
            "build",
            "--quiet",
            "--profile",
            self.profile(),
            "--workspace",
            "--bin",
            "karst-fuzz",
        ]))
    }

    /// The loop itself, as it was built.
    fn program(self) -> Command {
        let folder = match self {
            Self::Tests(_) => "debug",
            Self::Search => "quick-release",
        };
        Command::new(shell::root().join("target").join(folder).join("karst-fuzz"))
    }

    /// What there is to run, of the loop as it is now.
    fn targets(self) -> Result<Vec<String>> {
        self.compile()?;
        let listed = shell::capture(self.program().arg("list"))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }
}

/// Flags that make rustc instrument for libFuzzer.
const COVERAGE_FLAGS: &str = "-Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Sanitizers want the target named, so that build scripts are not instrumented.
const COVERAGE_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `fuzz` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target; without it, all.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = RUNG_SECONDS)]
    seconds: u32,
    /// Use the mutation loop even where a nightly tool chain could guide by coverage.
    #[arg(long)]
    stable: bool,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = Build::Search.targets()?;
    let chosen: Vec<&str> = targets
        .iter()
        .map(String::as_str)
        .filter(|target| args.target.as_ref().is_none_or(|wanted| wanted == target))
        .collect();
    if chosen.is_empty() {
        bail!(
            "there is no such target; the targets are {}",
            targets.join(", ")
        );
    }
    let guided = !args.stable && has_nightly();
    if !guided {
        println!("fuzz: mutation loop over the saved corpus, not guided by coverage");
        return mutation_loops(Build::Search, &chosen, args.seconds, None);
    }
    chosen
        .into_iter()
        .try_for_each(|target| coverage_guided(target, args.seconds))
}

/// The test rung: every target, half a minute each.
pub(crate) fn saved_corpus(compiler: Compiler) -> Result<()> {
    let build = Build::Tests(compiler);
    let targets = build.targets()?;
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    mutation_loops(build, &targets, RUNG_SECONDS, Some(RUNG_SEED))
}

/// Which targets wait, run, and have failed.
struct Round<'a> {
    at_once: usize,
    waiting: VecDeque<&'a str>,
    running: Vec<&'a str>,
    failed: Vec<&'a str>,
}

impl<'a> Round<'a> {
    fn new(targets: &[&'a str], at_once: usize) -> Self {
        Self {
            at_once,
            waiting: targets.iter().copied().collect(),
            running: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// The next target, if there is room for it.
    fn start(&mut self) -> Option<&'a str> {
        if self.running.len() >= self.at_once {
            return None;
        }
        let target = self.waiting.pop_front()?;
        self.running.push(target);
        Some(target)
    }

    fn end(&mut self, target: &'a str, held: bool) {
        self.running.retain(|running| *running != target);
        if !held {
            self.failed.push(target);
        }
    }

    fn verdict(&self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!(
            "{} failed: mend the parser, and commit the input that was kept with it",
            self.failed.join(", ")
        )
    }
}

/// Runs targets, as many at once as there are processors; what one prints is shown whole when it ends. All are run, even
/// when an earlier one failed.
fn mutation_loops(build: Build, targets: &[&str], seconds: u32, seed: Option<u64>) -> Result<()> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    let mut round = Round::new(targets, at_once);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        loop {
            while let Some(target) = round.start() {
                let sender = sender.clone();
                scope.spawn(move || {
                    sender.send((target, mutation_loop(build, target, seconds, seed)))
                });
            }
            if round.running.is_empty() {
                return;
            }
            let (running, waiting) = (round.running.join(", "), round.waiting.len());
            println!("fuzz: for {seconds} s each: {running}; {waiting} wait");
            let Ok((target, outcome)) = ended.recv() else {
                return;
            };
            match &outcome {
                Ok(said) => print!("{said}"),
                Err(error) => println!("fuzz: {target}: {error:#}"),
            }
            round.end(target, outcome.is_ok());
        }
    });
    round.verdict()
}

/// What one target said.
fn mutation_loop(build: Build, target: &str, seconds: u32, seed: Option<u64>) -> Result<String> {
    let mut run = build.program();
    run.args(["run", target, "--seconds", &seconds.to_string()]);
    if let Some(seed) = seed {
        run.args(["--seed", &seed.to_string()]);
    }
    shell::capture(&mut run)
}

fn has_nightly() -> bool {
    shell::succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"]))
}

fn coverage_guided(target: &str, seconds: u32) -> Result<()> {
    let mut build = Command::new("rustup");
    build.args([
        "run",
        "nightly",
        "cargo",
        "build",
        "--quiet",
        "--release",
        "--package",
        "karst-fuzz",
        "--bin",
        "libfuzzer",
    ]);
    build.args(["--target", COVERAGE_TARGET, "--target-dir", "target/fuzz"]);
    build
        .env("RUSTFLAGS", COVERAGE_FLAGS)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    shell::run(&mut build)?;
    let found = shell::root().join("target/fuzz/found");
    fs::create_dir_all(&found)?;
    let mut run = Command::new(format!("target/fuzz/{COVERAGE_TARGET}/release/libfuzzer"));
    run.arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", found.display()));
    run.arg(format!("fuzz/corpus/{target}"))
        .env("KARST_FUZZ_TARGET", target);
    shell::run(&mut run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_run_at_once_as_there_is_room() {
        let mut round = Round::new(&["a", "b", "c"], 2);
        assert_eq!((round.start(), round.start()), (Some("a"), Some("b")));
        assert_eq!(round.start(), None);
        round.end("a", true);
        assert_eq!((round.start(), round.start()), (Some("c"), None));
        assert_eq!(round.running, ["b", "c"]);
    }

    #[test]
    fn one_that_fails_fails_the_round_after_all_have_run() {
        let mut round = Round::new(&["a", "b"], 1);
        for held in [false, true] {
            let target = round.start().unwrap();
            round.end(target, held);
        }
        assert!(round.running.is_empty() && round.start().is_none());
        assert!(
            round
                .verdict()
                .unwrap_err()
                .to_string()
                .starts_with("a failed")
        );
        assert!(Round::new(&[], 1).verdict().is_ok());
    }
}
