//! `check`: format, lints, licences and sources, the project's own rules. Everything that needs no test run.

use std::process::Command;

use anyhow::Result;

use crate::{
    setup::{self, Group},
    shell, tidy,
};

/// Runs all four; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    all_but_lints()?;
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// What compiles nothing.
pub(crate) fn all_but_lints() -> Result<()> {
    setup::ensure(&[Group::Build, Group::Check])?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    shell::run(shell::cargo().args([
        "deny",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// How the workspace's own packages are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// By the tool chain's.
    Plain,
    /// By the one that lints as well, as [`run`] does. `cargo clippy` compiles nothing that could be run, so that all
    /// dependencies would be compiled twice. Nobody goes on from what it has built, or looks at it in a debugger: without
    /// what that needs, the workspace takes two thirds of the time.
    Linting,
}

impl Compiler {
    /// A cargo that compiles so.
    pub(crate) fn cargo(self) -> Command {
        let mut cargo = shell::cargo();
        if self == Self::Linting {
            cargo
                .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
                .env("CLIPPY_ARGS", "-Dwarnings")
                .env("CARGO_INCREMENTAL", "0")
                .env("CARGO_PROFILE_DEV_DEBUG", "0");
        }
        cargo
    }
}
