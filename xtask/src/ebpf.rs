//! Builds the kernel programs to `target/bpf/karst.o`, which `ebpf/loader` embeds.
//!
//! The BPF target needs the sources of Rust's core library: from Debian's rustc (package
//! `rust-web-src` or `rust-src`), or from a rustup nightly with the component rust-src.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

use crate::shell;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const TARGET: &str = "bpfel-unknown-none";

/// Which compiler has the sources of the core library.
enum Toolchain {
    Debian,
    Nightly,
}

/// Builds `ebpf/programs`; does nothing when no source is newer than the object.
pub(crate) fn build() -> Result<()> {
    let root = shell::root();
    let object = root.join("target/bpf/karst.o");
    if modified(&object) > newest_source(root)? {
        return Ok(());
    }
    let built = root.join("target/bpf-build");
    let mut cargo = command(&toolchain()?);
    cargo
        .current_dir(root.join("ebpf/programs"))
        .env("CARGO_TARGET_DIR", &built)
        .env("CARGO_ENCODED_RUSTFLAGS", flags())
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(["-Z", "build-std=core"]);
    shell::run(&mut cargo)?;
    install(&built.join(TARGET).join("release/karst"), &object)
}

fn command(toolchain: &Toolchain) -> Command {
    match toolchain {
        Toolchain::Debian => {
            let mut cargo = shell::cargo();
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
            rustup
        }
    }
}

/// BTF comes from debug information; the kernel wants it for socket storage.
fn flags() -> String {
    let arch = format!("bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let flags = [
        "-Clinker=bpf-linker",
        "--cfg",
        &arch,
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    flags.join("\u{1f}")
}

/// The tool chain to use, or what is missing and how to get it.
fn toolchain() -> Result<Toolchain> {
    if !shell::succeeds(Command::new("bpf-linker").arg("--version")) {
        bail!("bpf-linker is missing: `cargo xtask setup` installs it");
    }
    if has_core_sources(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])) {
        return Ok(Toolchain::Debian);
    }
    let mut nightly = Command::new("rustup");
    if has_core_sources(nightly.args(["run", "nightly", "rustc", "--print", "sysroot"])) {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "no compiler with the sources of Rust's core library: install Debian's rustc and rust-src \
         (`cargo xtask setup`), or `rustup toolchain install nightly --component rust-src`"
    )
}

fn has_core_sources(sysroot: &mut Command) -> bool {
    shell::capture(sysroot).is_ok_and(|path| {
        let library = Path::new(path.trim()).join("lib/rustlib/src/rust/library/core");
        library.is_dir()
    })
}

/// Puts the object in place unless it is the same, so that nothing is rebuilt for nothing.
fn install(built: &Path, object: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        // Only the time changes: the next call finds it fresh.
        return Ok(fs::File::options()
            .write(true)
            .open(object)?
            .set_modified(SystemTime::now())?);
    }
    fs::create_dir_all(object.parent().context("the object has a folder")?)?;
    fs::write(object, bytes).with_context(|| format!("writing {}", object.display()))
}

fn newest_source(root: &Path) -> Result<Option<SystemTime>> {
    let mut newest = modified(&root.join("xtask/src/ebpf.rs"));
    for folder in ["ebpf/programs", "ebpf/abi"] {
        let folder = root.join(folder);
        let files = sources(&folder).with_context(|| format!("listing {}", folder.display()))?;
        newest = files
            .iter()
            .map(|file| modified(file))
            .fold(newest, Option::max);
    }
    Ok(newest)
}

fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(sources(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// When a file was last written; `None`, older than any time, when it is absent.
fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}
