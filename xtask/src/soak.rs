//! `soak`: what takes longer than two minutes. Its last result is committed as `docs/dev/soak.md`.
//!
//! A soak test is an ignored test whose name begins with `soak_`, beside the code that it strains. This verb runs
//! them against the optimised programs, those of `tests/cluster` on a cluster that it brings up and takes down, and writes
//! down when, at which commit and how each ended.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{
    cluster, release,
    setup::{self, Group, SKIP_CLUSTER_VARIABLE, skips_cluster},
    shell,
    test::{self, StandingCluster},
    tidy::{Package, Workspace},
};

/// Where the last result is kept.
const RESULT: &str = "docs/dev/soak.md";
/// The longest that all soak tests together may take.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// What `soak` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    #[arg(default_value = "soak_")]
    filter: String,
}

/// Runs the soak tests and writes their results.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[
        Group::Build,
        Group::Ebpf,
        Group::Lab,
        Group::Demo,
        Group::Load,
    ])?;
    release::run()?;
    let mut results = BTreeMap::new();
    let (on_a_cluster, alone) = packages(&args.filter)?;
    let mut success = alone.is_empty() || run_tests(&alone, args, &mut results)?;
    if !on_a_cluster.is_empty() {
        if skips_cluster() {
            println!("soak: without a cluster, since {SKIP_CLUSTER_VARIABLE}=1");
        } else {
            test::ready_for_cluster()?;
            let standing = StandingCluster::up("release", LIMIT)?;
            let tested = run_tests(&on_a_cluster, args, &mut results);
            standing.down()?;
            success &= tested?;
        }
    }
    if results.is_empty() {
        bail!("no soak test has {:?} in its name", args.filter);
    }
    write(&results)?;
    if !success {
        bail!("soak tests failed; {RESULT} names them");
    }
    Ok(())
}

/// Whether all of them held.
fn run_tests(
    packages: &[String],
    args: &Args,
    results: &mut BTreeMap<String, String>,
) -> Result<bool> {
    let mut test = shell::cargo();
    test.args(["test", "--no-fail-fast"]);
    for package in packages {
        test.args(["--package", package]);
    }
    test.args(["--", "--ignored", "--test-threads=1", &args.filter]);
    test.env("KARST_BIN_DIR", release::folder());
    test.env(cluster::ID_VARIABLE, test::CLUSTER_ID);
    let watched = shell::watch(&mut test, LIMIT, |line| {
        let result = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "));
        if let Some((name, outcome)) = result {
            results.insert(name.to_owned(), outcome.to_owned());
        }
    })?;
    Ok(watched.success)
}

/// The packages that have a soak test of this name, those on a cluster first: nothing else needs to be compiled for it.
fn packages(filter: &str) -> Result<(Vec<String>, Vec<String>)> {
    let workspace = Workspace::load()?;
    let soaks = |package: &Package| {
        let mut lines = package.sources.values().flat_map(|text| text.lines());
        lines.any(|line| line.contains("fn soak_") && line.contains(filter))
    };
    // This file names them too.
    let others = workspace
        .packages
        .into_iter()
        .filter(|one| one.name != "xtask");
    let names = others.filter(soaks).map(|one| one.name);
    Ok(names.partition(|name| name == test::CLUSTER))
}

fn write(results: &BTreeMap<String, String>) -> Result<()> {
    let said = |program: &str, args: &[&str]| {
        let said = shell::capture(Command::new(program).args(args)).unwrap_or_default();
        said.trim().to_owned()
    };
    let mut page = format!(
        "# Last soak\n\nWritten by `cargo xtask soak` on {} at commit {}, kernel {}.\n\n| test | result |\n|---|---|\n",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        said("git", &["rev-parse", "--short=12", "HEAD"]),
        said("uname", &["-rm"]),
    );
    for (name, outcome) in results {
        page.push_str(&format!("| `{name}` | {outcome} |\n"));
    }
    fs::write(RESULT, page)?;
    println!("soak: {} results written to {RESULT}", results.len());
    Ok(())
}
