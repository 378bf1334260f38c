//! `fuzz`: hostile input for every parser of peer bytes, out of the package `karst-fuzz`.
//!
//! With a nightly tool chain the targets run under libFuzzer, guided by coverage and with the address sanitizer;
//! without one, a mutation loop over the saved corpus runs on the pinned tool chain. The test rung always uses the
//! loop: it needs no second tool chain and compiles in seconds.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::shell;

/// How long each target runs in the test rung, in seconds.
const RUNG_SECONDS: u32 = 30;

/// The rung repeats the same inputs, so that it fails for what changed and not by luck; `cargo xtask fuzz` looks for new
/// ones.
const RUNG_SEED: u64 = 20_261_121;

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
    let targets = targets()?;
    let chosen: Vec<&String> = targets
        .iter()
        .filter(|target| args.target.as_ref().is_none_or(|wanted| wanted == *target))
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
    }
    for target in chosen {
        match guided {
            true => coverage_guided(target, args.seconds)?,
            false => mutation_loop(target, args.seconds, None)?,
        }
    }
    Ok(())
}

/// The test rung: every target, half a minute each.
pub(crate) fn saved_corpus() -> Result<()> {
    for target in targets()? {
        mutation_loop(&target, RUNG_SECONDS, Some(RUNG_SEED))?;
    }
    Ok(())
}

/// Compiles the loop, so that the rung's time is spent on inputs.
pub(crate) fn build() -> Result<()> {
    shell::run(&mut package("build"))
}

fn package(verb: &str) -> Command {
    let mut command = shell::cargo();
    command.args([
        verb,
        "--quiet",
        "--profile",
        "quick-release",
        "--package",
        "karst-fuzz",
        "--bin",
        "karst-fuzz",
    ]);
    command
}

fn targets() -> Result<Vec<String>> {
    let listed = shell::capture(package("run").args(["--", "list"]))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn mutation_loop(target: &str, seconds: u32, seed: Option<u64>) -> Result<()> {
    let mut run = package("run");
    run.args(["--", "run", target, "--seconds", &seconds.to_string()]);
    if let Some(seed) = seed {
        run.args(["--seed", &seed.to_string()]);
    }
    shell::run(&mut run)
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
