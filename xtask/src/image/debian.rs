//! Installed Debian packages and shared libraries, as files of an image. For the cluster on this machine only: what is
//! packed is what the machine has.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::oci::Layer;
use crate::shell;

/// What no program reads while it runs.
const LEFT_OUT: [&str; 9] = [
    "/usr/share/doc/",
    "/usr/share/man/",
    "/usr/share/locale/",
    "/usr/share/lintian/",
    "/usr/share/info/",
    "/etc/init.d/",
    "/etc/logrotate.d/",
    "/lib/systemd/",
    "/usr/share/bash-completion/",
];

/// PostgreSQL's compiler of expressions, which brings all of LLVM; the server does without.
const COMPILER: [&str; 2] = ["/llvmjit.so", "/lib/bitcode/"];

/// Where Debian keeps programs that it does not put into PATH.
const POSTGRESQL: &str = "/usr/lib/postgresql/";

/// The users that the examples' pods run as; PostgreSQL does not start as one without a name.
const USERS: std::ops::RangeInclusive<u32> = 10_001..=10_009;

/// Adds accounts for those users.
pub(super) fn add_users(layer: &mut Layer) -> Result<()> {
    let mut lines = String::from("root:x:0:0:root:/:/bin/sh\n");
    for user in USERS {
        lines += &format!("user{user}:x:{user}:{user}::/tmp:/bin/sh\n");
    }
    layer.file("/etc/passwd", lines.as_bytes(), 0o644)
}

/// Adds the files of the installed packages that fit these patterns, and the libraries that they need.
pub(super) fn add_packages(layer: &mut Layer, patterns: &[&str]) -> Result<()> {
    if patterns.is_empty() {
        return Ok(());
    }
    add_links(layer)?;
    let files = files_of(&installed(patterns)?)?;
    for file in &files {
        add(layer, file)?;
        if let Some(name) = program_out_of_path(file) {
            layer.link(&format!("/usr/bin/{name}"), &file.display().to_string())?;
        }
    }
    let programs: Vec<PathBuf> = files.into_iter().filter(|file| is_elf(file)).collect();
    add_libraries(layer, &programs)
}

/// The name of a program that lies beside PostgreSQL's server.
fn program_out_of_path(file: &Path) -> Option<&str> {
    let in_folder = file.parent()?.ends_with("bin") && file.starts_with(POSTGRESQL);
    in_folder.then(|| file.file_name()?.to_str()).flatten()
}

/// The names of installed packages that fit the patterns.
fn installed(patterns: &[&str]) -> Result<Vec<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status} ${Package}\n"]);
    let said = shell::capture(query.args(patterns))?;
    let names: Vec<String> = said
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        bail!(
            "no package {} is installed: `cargo xtask setup` installs it",
            patterns.join(", ")
        );
    }
    Ok(names)
}

fn files_of(packages: &[String]) -> Result<Vec<PathBuf>> {
    let listed = shell::capture(Command::new("dpkg").arg("-L").args(packages))?;
    let wanted = |file: &&str| {
        !LEFT_OUT.iter().any(|folder| file.starts_with(folder))
            && !COMPILER.iter().any(|part| file.contains(part))
    };
    let files: BTreeSet<PathBuf> = listed
        .lines()
        .filter(wanted)
        .map(PathBuf::from)
        .filter(|file| file.symlink_metadata().is_ok_and(|meta| !meta.is_dir()))
        .collect();
    Ok(files.into_iter().collect())
}

/// Adds a file or link under the name that it has on the machine, seen through links of folders.
fn add(layer: &mut Layer, file: &Path) -> Result<()> {
    let place = place_of(file)?;
    let meta = file.symlink_metadata()?;
    if meta.is_symlink() {
        let target = fs::read_link(file)?;
        return layer.link(&place, &target.display().to_string());
    }
    // What only root may read is a secret of the machine, not a part of the program.
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o004 == 0 {
        return Ok(());
    }
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    layer.file(&place, &bytes, mode)
}

fn place_of(file: &Path) -> Result<String> {
    let folder = file.parent().context("a file has a folder")?;
    let folder = folder.canonicalize()?;
    let name = file.file_name().context("a file has a name")?;
    Ok(folder.join(name).display().to_string())
}

fn is_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    file.metadata().is_ok_and(|meta| meta.is_file())
        && fs::File::open(file).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"\x7fELF"
}

/// Adds the libraries that programs ask for, and the loader; a static program asks for none.
pub(super) fn add_libraries(layer: &mut Layer, programs: &[PathBuf]) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let Ok(listed) = shell::capture(Command::new("ldd").arg(program)) else {
            // ldd fails for what is not linked dynamically.
            continue;
        };
        libraries.extend(listed.lines().filter_map(library));
    }
    for library in libraries {
        let bytes = fs::read(&library).with_context(|| format!("reading {library}"))?;
        add_links(layer)?;
        layer.file(&place_of(Path::new(&library))?, &bytes, 0o755)?;
    }
    Ok(())
}

/// Folders that are links on the machine are the same links in the image.
fn add_links(layer: &mut Layer) -> Result<()> {
    for folder in ["lib", "lib64", "sbin"] {
        let target = fs::read_link(Path::new("/").join(folder));
        if let Ok(target) = target {
            layer.link(folder, &target.display().to_string())?;
        }
    }
    Ok(())
}

/// The path in a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x7f..)` or `/lib64/ld-linux-x86-64.so.2 (0x7f..)`.
fn library(line: &str) -> Option<String> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let (path, _) = path.split_once(" (0x")?;
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_each_kind_of_line() {
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0000000000)";
        assert_eq!(
            library(libc).as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        let loader = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f0000000000)";
        assert_eq!(
            library(loader).as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007fff00000000)"), None);
        assert_eq!(library("\tstatically linked"), None);
    }

    #[test]
    fn programs_beside_the_server_are_found() {
        let file = Path::new("/usr/lib/postgresql/15/bin/pg_isready");
        assert_eq!(program_out_of_path(file), Some("pg_isready"));
        assert_eq!(program_out_of_path(Path::new("/usr/bin/psql")), None);
    }
}
