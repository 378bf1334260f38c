//! `ebpf` and `release`: the kernel programs, and every binary in `target/release` with them inside.

use std::process::Command;

use anyhow::Result;

use crate::{
    setup::{self, Group},
    shell,
};

/// Builds the kernel programs.
pub(crate) fn ebpf() -> Result<()> {
    setup::ensure(&[Group::Build, Group::Ebpf])?;
    crate::ebpf::build()
}

/// Builds the kernel programs, then every binary, optimised.
pub(crate) fn run() -> Result<()> {
    ebpf()?;
    let mut build = shell::cargo();
    build.args([
        "build",
        "--release",
        "--workspace",
        "--bins",
        "--exclude",
        "xtask",
        "--exclude",
        "karst-fuzz",
    ]);
    if let Some(revision) = revision() {
        build.env("KARST_REVISION", revision);
    }
    shell::run(&mut build)
}

/// The commit that is built, marked when the tree has changes of its own.
fn revision() -> Option<String> {
    let git = |args: &[&str]| shell::capture(Command::new("git").args(args)).ok();
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "-changed" };
    Some(format!("{}{mark}", commit.trim()))
}
