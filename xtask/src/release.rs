//! `ebpf` and `release`: the kernel programs, and every binary in `target/release` with them inside.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    setup::{self, Group},
    shell,
};

/// For work on the tools themselves: `KARST_PROFILE=dev` builds and uses `target/debug` instead.
pub(crate) const PROFILE_VARIABLE: &str = "KARST_PROFILE";

/// Whether what the tests have built is used.
pub(crate) fn is_dev() -> bool {
    profile() == "dev"
}

/// The cargo profile of the binaries that the other verbs run.
pub(crate) fn profile() -> String {
    std::env::var(PROFILE_VARIABLE).unwrap_or_else(|_| "release".to_owned())
}

/// A folder with all of our programs, built elsewhere or earlier: they are used as they are, and nothing is built.
pub(crate) const GIVEN_VARIABLE: &str = "KARST_BIN_DIR";

/// The folder of programs that was given.
pub(crate) fn given() -> Option<PathBuf> {
    std::env::var_os(GIVEN_VARIABLE).map(PathBuf::from)
}

/// Where those binaries are.
pub(crate) fn folder() -> PathBuf {
    if let Some(given) = given() {
        return given;
    }
    let profile = profile();
    let name = if profile == "dev" { "debug" } else { &profile };
    shell::root().join("target").join(name)
}

/// Builds the kernel programs.
pub(crate) fn ebpf() -> Result<()> {
    setup::ensure(&[Group::Build, Group::Ebpf])?;
    crate::ebpf::build()
}

/// Builds the kernel programs, then every binary, optimised, unless they are given.
pub(crate) fn run() -> Result<()> {
    if given().is_some() {
        return Ok(());
    }
    ebpf()?;
    let mut build = shell::cargo();
    build.args([
        "build",
        "--profile",
        &profile(),
        "--workspace",
        "--bins",
        "--exclude",
        "xtask",
        "--exclude",
        "karst-fuzz",
        "--exclude",
        "karst-benches",
    ]);
    stamp(&mut build);
    shell::run(&mut build)
}

/// Lets the binaries of a build know which commit they are.
pub(crate) fn stamp(build: &mut Command) {
    // Another value makes cargo compile anew: not while trying things out.
    if !is_dev()
        && let Some(revision) = revision()
    {
        build.env("KARST_REVISION", revision);
    }
}

/// Builds one program of our tools, optimised as the product is.
pub(crate) fn tool(package: &str) -> Result<()> {
    let mut build = shell::cargo();
    build.args([
        "build",
        "--profile",
        &profile(),
        "--package",
        package,
        "--bins",
    ]);
    shell::run(&mut build)
}

/// Builds an example of a package, optimised as the product is, and says where it is.
pub(crate) fn example(package: &str, name: &str) -> Result<PathBuf> {
    let mut build = shell::cargo();
    build.args(["build", "--profile", &profile()]);
    build.args(["--package", package, "--example", name]);
    shell::run(&mut build)?;
    Ok(example_path(name))
}

/// Where an example that was built is.
pub(crate) fn example_path(name: &str) -> PathBuf {
    folder().join("examples").join(name)
}

/// What no program is made of: a commit that changes nothing else needs no new build.
const OUTSIDE: [&str; 8] = [
    ":(exclude)docs",
    ":(exclude)*.md",
    ":(exclude)xtask",
    ":(exclude)tests",
    ":(exclude)benches",
    ":(exclude)fuzz",
    ":(exclude)examples",
    ":(exclude).ci",
];

/// The last commit that changed what the programs are made of, marked when the tree has such changes of its own.
fn revision() -> Option<String> {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(shell::root()).args(args);
        shell::capture(command.args(["--", "."]).args(OUTSIDE)).ok()
    };
    let commit = git(&["log", "-1", "--abbrev=12", "--format=%h"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "-changed" };
    Some(format!("{}{mark}", commit.trim()))
}
