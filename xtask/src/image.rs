//! `image`: small container images, without a container tool.
//!
//! ```text
//!   static binaries ─┐
//!   Debian packages ─┼─► layer ─► archive for the nodes of `cargo xtask cluster`, or an OCI layout to push
//!   cluster's tools ─┘
//! ```
//!
//! Binaries of a release are linked statically, so that an image holds nothing else. `KARST_PROFILE=dev` packs what
//! the tests have already built, with the libraries it needs: nothing is compiled twice in a loop of trying things out.
//! So does `KARST_BIN_DIR=DIR` with the programs of a folder, such as those of an older version.

mod debian;
mod oci;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    cluster::{self, Cluster},
    release,
    setup::{self, Group},
    shell,
};
use oci::{Image, Layer};

/// What an image of the product may weigh, unpacked.
const LIMIT_BYTES: usize = 25 * 1024 * 1024;

/// The host part of every image's name: nowhere to pull from, so that a node never tries elsewhere.
const HUB: &str = "karst.test";

/// What `image` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which images; without names, those of the product and karst-echo.
    names: Vec<Name>,
    /// Import them into the nodes of the cluster.
    #[arg(long)]
    load: bool,
    /// Write them as an OCI layout into this folder, for `skopeo copy` and the like.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The tag; the version without it.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// The cluster to load into.
    #[arg(long, default_value_t = 0, env = cluster::ID_VARIABLE)]
    id: u8,
    /// Pack the binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// The images there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The agent, with the CNI plugin that it installs.
    Agent,
    /// The controller.
    Controller,
    /// The waypoint.
    Waypoint,
    /// Server and client of the tests and examples.
    Echo,
    /// A shell with karst-echo, to try things from. For the cluster on this machine only, as are all that follow.
    Shell,
    /// Debian's nginx.
    Nginx,
    /// Debian's Redis.
    Redis,
    /// Debian's PostgreSQL.
    Postgres,
    /// OpenTelemetry's collector with a shell, built from its modules.
    Otelcol,
    /// Prometheus and promtool with a shell, built from their module.
    Prometheus,
}

/// What an image is made of.
struct Recipe {
    /// Binaries of ours, put at the root.
    binaries: &'static [&'static str],
    /// Debian packages, by the beginning of their names.
    packages: &'static [&'static str],
    /// Programs that the cluster's tools are built beside, put at the root.
    tools: &'static [&'static str],
    entrypoint: &'static [&'static str],
    purpose: Purpose,
}

#[derive(PartialEq, Eq)]
enum Purpose {
    /// Released: must be small.
    Product,
    /// Only for the cluster on this machine: has a shell, and is always called `:1`.
    Tests,
}

impl Name {
    const DEFAULT: [Self; 4] = [Self::Agent, Self::Controller, Self::Waypoint, Self::Echo];

    fn recipe(self) -> Recipe {
        let product = |binaries, entrypoint| Recipe {
            binaries,
            packages: &[],
            tools: &[],
            entrypoint,
            purpose: Purpose::Product,
        };
        let tests = |binaries, packages| Recipe {
            binaries,
            packages,
            tools: &[],
            entrypoint: &["/bin/sh"],
            purpose: Purpose::Tests,
        };
        let built = |tools| Recipe {
            tools,
            ..tests(&[], &[])
        };
        match self {
            Self::Agent => product(&["karst-agent", "karst-cni"], &["/karst-agent"]),
            Self::Controller => product(&["karst-controller"], &["/karst-controller"]),
            Self::Waypoint => product(&["karst-waypoint"], &["/karst-waypoint"]),
            Self::Echo => product(&["karst-echo"], &["/karst-echo"]),
            Self::Shell => tests(&["karst-echo"], &[]),
            Self::Nginx => tests(&[], &["nginx", "nginx-light", "nginx-common"]),
            Self::Redis => tests(&[], &["redis-server", "redis-tools"]),
            Self::Postgres => tests(&[], &["postgresql-[0-9]*", "postgresql-client-[0-9]*"]),
            Self::Otelcol => built(&["otelcol"]),
            Self::Prometheus => built(&["prometheus", "promtool"]),
        }
    }

    /// Whether its tools are built.
    fn is_at_hand(self) -> bool {
        let mut tools = self.recipe().tools.iter();
        tools.all(|tool| cluster::build::program(tool).is_file())
    }

    fn word(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The image's names. The examples ask for `:1`, whatever version is being tried.
    fn references(self, tag: &str) -> Vec<String> {
        let name = self.word();
        let examples = format!("{HUB}/{name}:1");
        match self.recipe().purpose {
            Purpose::Product if self == Self::Echo => vec![format!("{HUB}/{name}:{tag}"), examples],
            Purpose::Product => vec![format!("{HUB}/{name}:{tag}")],
            Purpose::Tests => vec![examples],
        }
    }
}

/// Makes every image and loads it into a cluster; those of tools that are built when they are asked for, if they are there.
pub(crate) fn load_all(cluster: &Cluster, no_build: bool) -> Result<()> {
    let names: Vec<Name> = Name::value_variants()
        .iter()
        .copied()
        .filter(|name| name.is_at_hand())
        .collect();
    setup::ensure(&[Group::Cluster, Group::Demo])?;
    if !no_build {
        build(&names)?;
    }
    cluster.load(&archives(&names, env!("CARGO_PKG_VERSION"))?)
}

/// Builds the tools that images of tests hold.
fn build_tools(names: &[&str]) -> Result<()> {
    for name in names {
        match *name {
            "otelcol" => drop(cluster::build::otelcol()?),
            "prometheus" => drop(cluster::build::prometheus()?),
            _ => {}
        }
    }
    Ok(())
}

/// Loads karst-echo into a cluster under names of other images, called as `/bin/server` and `/bin/client`, as the
/// Gateway API's conformance suite calls them.
pub(crate) fn load_for_suite(cluster: &Cluster, names: &[String]) -> Result<()> {
    let mut layer = Layer::new()?;
    add_binary(&mut layer, "karst-echo")?;
    add_busybox(&mut layer)?;
    for name in ["server", "client"] {
        layer.link(&format!("/usr/bin/{name}"), "/karst-echo")?;
    }
    let archive = archive_of("conformance-echo");
    let image = Image {
        names: names.to_vec(),
        layer,
        entrypoint: vec!["/bin/server".to_owned()],
    };
    oci::write_archive(image, &archive)?;
    cluster.load(&[archive])
}

/// Makes images, and loads or writes them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let names = match args.names.as_slice() {
        [] => &Name::DEFAULT,
        names => names,
    };
    setup::ensure(&[Group::Cluster])?;
    if names.iter().any(|name| !name.recipe().packages.is_empty()) {
        setup::ensure(&[Group::Demo])?;
    }
    names
        .iter()
        .try_for_each(|name| build_tools(name.recipe().tools))?;
    if !args.no_build {
        build(names)?;
    }
    let archives = archives(names, &args.tag)?;
    if let Some(folder) = &args.output {
        let images = names.iter().map(|name| make(*name, &args.tag));
        oci::write_layout(images.collect::<Result<_>>()?, folder)?;
        println!("image: an OCI layout in {}", folder.display());
    }
    if args.load {
        Cluster::find(args.id)?.load(&archives)?;
        println!("image: loaded into every node of cluster {}", args.id);
    }
    Ok(())
}

/// Makes an archive of each, side by side.
fn archives(names: &[Name], tag: &str) -> Result<Vec<PathBuf>> {
    thread::scope(|scope| {
        let making: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || archive(*name, tag)))
            .collect();
        let made = making.into_iter().map(|one| {
            one.join()
                .unwrap_or_else(|_| anyhow::bail!("making an image panicked"))
        });
        made.collect()
    })
}

fn archive(name: Name, tag: &str) -> Result<PathBuf> {
    let image = make(name, tag).with_context(|| format!("the image {}", name.word()))?;
    let (references, file) = (image.names.join(", "), archive_of(&name.word()));
    let size = oci::write_archive(image, &file)?;
    println!("image: {references}: {:.1} MB", size as f64 / 1e6);
    let small = name.recipe().purpose == Purpose::Tests || !are_static() || size <= LIMIT_BYTES;
    ensure!(
        small,
        "{references} has {size} bytes, more than the {LIMIT_BYTES} that an image of the product may have"
    );
    Ok(file)
}

fn archive_of(name: &str) -> PathBuf {
    shell::root()
        .join("target/cluster/images")
        .join(format!("{name}.tar"))
}

/// The binaries' target, which keeps the static ones apart from all others.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Whether binaries of a release are packed, linked for it.
fn are_static() -> bool {
    !release::is_dev() && release::given().is_none()
}

/// Where the binaries for images are.
fn binaries() -> PathBuf {
    if !are_static() {
        return release::folder();
    }
    shell::root()
        .join("target")
        .join(target())
        .join(release::profile())
}

/// Compiles what the images hold.
fn build(names: &[Name]) -> Result<()> {
    let mut binaries: Vec<&str> = names
        .iter()
        .flat_map(|name| name.recipe().binaries)
        .copied()
        .collect();
    binaries.sort_unstable();
    binaries.dedup();
    if binaries.is_empty() || release::given().is_some() {
        return Ok(());
    }
    release::ebpf()?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--profile", &release::profile()]);
    for binary in binaries {
        // Every program's package has its name.
        cargo.args(["-p", binary, "--bin", binary]);
    }
    if are_static() {
        let flags = format!(
            "CARGO_TARGET_{}_RUSTFLAGS",
            target().to_uppercase().replace('-', "_")
        );
        cargo
            .args(["--target", &target()])
            .env_remove("RUSTFLAGS")
            .env(flags, static_flags());
    }
    release::stamp(&mut cargo);
    shell::run(&mut cargo)
}

/// How static binaries are linked: what their images may weigh asks for it.
fn static_flags() -> String {
    let mut flags = "-C target-feature=+crt-static".to_owned();
    // A twentieth of the controller is addresses to be moved at start; packed they are next to nothing. The C library
    // that is linked in must know how to unpack them.
    let version = shell::capture(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    if version.is_ok_and(|version| unpacks_addresses(&version)) {
        flags += " -C link-arg=-Wl,-z,pack-relative-relocs";
    }
    // Functions of the same code become one. Rust's tool chain brings the linker that can on this architecture only.
    if cfg!(target_arch = "x86_64") {
        flags += " -C link-arg=-Wl,--icf=all";
    }
    flags
}

/// Whether a C library, as `getconf GNU_LIBC_VERSION` names it, unpacks addresses in static programs: glibc 2.36 and later.
fn unpacks_addresses(version: &str) -> bool {
    let numbers = version.trim().strip_prefix("glibc ");
    let Some((major, minor)) = numbers.and_then(|numbers| numbers.split_once('.')) else {
        return false;
    };
    let number = |text: &str| text.parse::<u32>().ok();
    number(major).zip(number(minor)) >= Some((2, 36))
}

fn make(name: Name, tag: &str) -> Result<Image> {
    let recipe = name.recipe();
    let mut layer = Layer::new()?;
    for binary in recipe.binaries {
        add_binary(&mut layer, binary)?;
    }
    if recipe.purpose == Purpose::Tests {
        debian::add_users(&mut layer)?;
        add_busybox(&mut layer)?;
    }
    debian::add_packages(&mut layer, recipe.packages)?;
    for tool in recipe.tools {
        let program = cluster::build::program(tool);
        let bytes = fs::read(&program).with_context(|| program.display().to_string())?;
        layer.file(tool, &bytes, 0o755)?;
    }
    Ok(Image {
        names: name.references(tag),
        layer,
        entrypoint: recipe.entrypoint.iter().map(ToString::to_string).collect(),
    })
}

/// A program of ours without its debug information, and with the libraries that it asks for, if any.
fn add_binary(layer: &mut Layer, name: &str) -> Result<()> {
    let built = binaries().join(name);
    ensure!(
        built.is_file(),
        "{} is missing: run without --no-build once",
        built.display()
    );
    let stripped = shell::root().join("target/cluster/stripped");
    fs::create_dir_all(&stripped)?;
    // Two images may hold the same program and be made at once.
    let stripped = stripped.join(format!("{name}-{:?}", thread::current().id()));
    shell::capture(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    let bytes = fs::read(&stripped)?;
    fs::remove_file(&stripped)?;
    layer.file(name, &bytes, 0o755)?;
    debian::add_libraries(layer, &[built])
}

fn add_busybox(layer: &mut Layer) -> Result<()> {
    let busybox = shell::find("busybox").context("busybox is missing")?;
    layer.file("/usr/bin/busybox", &fs::read(&busybox)?, 0o755)?;
    layer.link("/bin", "usr/bin")?;
    let tools = shell::capture(Command::new(busybox).arg("--list"))?;
    for tool in tools.lines().filter(|tool| *tool != "busybox") {
        layer.link(&format!("/usr/bin/{tool}"), "busybox")?;
    }
    Ok(())
}

/// Archives of the images that a cluster cannot start without: they are made from programs that are there.
pub(crate) fn of_the_cluster() -> Result<Vec<PathBuf>> {
    let single = |name: &'static str| -> Result<PathBuf> {
        let program = cluster::build::program(name);
        if is_newer(&archive_of(name), &program) {
            return Ok(archive_of(name));
        }
        let mut layer = Layer::new()?;
        layer.file(name, &fs::read(program)?, 0o755)?;
        write(name, layer, &format!("/{name}"))
    };
    Ok(vec![single("pause")?, single("coredns")?, busybox()?])
}

fn busybox() -> Result<PathBuf> {
    let archive = archive_of("busybox");
    if archive.is_file() {
        return Ok(archive);
    }
    let mut layer = Layer::new()?;
    add_busybox(&mut layer)?;
    write("busybox", layer, "/bin/sh")
}

fn write(name: &str, layer: Layer, entrypoint: &str) -> Result<PathBuf> {
    let archive = archive_of(name);
    let image = Image {
        names: vec![format!("{HUB}/{name}:1")],
        layer,
        entrypoint: vec![entrypoint.to_owned()],
    };
    oci::write_archive(image, &archive)?;
    Ok(archive)
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let modified = |file: &Path| fs::metadata(file).and_then(|meta| meta.modified()).ok();
    modified(file) > modified(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_packed_only_where_they_are_unpacked() {
        for (version, unpacks) in [
            ("glibc 2.36\n", true),
            ("glibc 2.41", true),
            ("glibc 2.35", false),
            ("glibc 2.9", false),
            ("musl 1.2.5", false),
            ("", false),
        ] {
            assert_eq!(unpacks_addresses(version), unpacks, "{version}");
        }
    }

    #[test]
    fn only_what_the_examples_name_has_a_fixed_tag() {
        assert_eq!(Name::Agent.references("0.2.0"), ["karst.test/agent:0.2.0"]);
        assert_eq!(
            Name::Echo.references("0.2.0"),
            ["karst.test/echo:0.2.0", "karst.test/echo:1"]
        );
        assert_eq!(Name::Nginx.references("0.2.0"), ["karst.test/nginx:1"]);
    }
}
