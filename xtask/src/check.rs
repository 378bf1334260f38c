//! `check`: format, lints, licences and sources, the project's own rules. Everything that needs no test run.

use anyhow::Result;

use crate::{
    setup::{self, Group},
    shell, tidy,
};

/// Runs all four; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Group::Build, Group::Check])?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
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
