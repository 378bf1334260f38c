//! The cluster's programs, built with Go from their modules and cached in `target/cluster/bin`.
//!
//! Versions are fixed by the modules in `xtask/cluster/`: most of these programs cannot be installed from their own
//! modules, whose `replace` lines only hold for the main module. What is there already is not built again; to build one
//! anew, delete its file.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    setup::{self, Group},
    shell,
};

/// The oldest Go that the modules accept.
const GO: (u32, u32) = (1, 26);
/// From here on Go fetches a newer one of itself when a module asks for it.
const GO_FETCHES_ITSELF: (u32, u32) = (1, 21);

/// How often a build is tried: a download that broke off is continued by the next try.
const TRIES: u32 = 3;

/// How long another build on this machine is waited for.
const OTHER_BUILD_MAX: Duration = Duration::from_secs(3600);

/// Without a version the API server calls itself `v0.0.0-master+$Format`, which kubectl and Helm refuse to read.
const KUBERNETES_VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3";

/// Programs that are built by one command.
struct Tools {
    names: &'static [&'static str],
    source: Source,
    /// Programs for images made from nothing must not need a C library.
    is_static: bool,
}

enum Source {
    /// Packages, from this module of ours.
    Ours {
        module: &'static str,
        packages: &'static [&'static str],
        link: &'static str,
    },
    /// Packages of somebody else's module at a version.
    Theirs { packages: &'static [&'static str] },
}

const CLUSTER: &[Tools] = &[
    Tools {
        names: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        ],
        source: Source::Ours {
            module: "k8s",
            packages: &[
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-scheduler",
                "k8s.io/kubernetes/cmd/kube-proxy",
                "k8s.io/kubernetes/cmd/kubelet",
                "k8s.io/kubernetes/cmd/kubectl",
            ],
            link: KUBERNETES_VERSION,
        },
        is_static: false,
    },
    Tools {
        names: &["containerd", "containerd-shim-runc-v2", "ctr"],
        source: Source::Theirs {
            packages: &[
                "github.com/containerd/containerd/v2/cmd/containerd@v2.4.2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.4.2",
                "github.com/containerd/containerd/v2/cmd/ctr@v2.4.2",
            ],
        },
        is_static: false,
    },
    Tools {
        names: &["etcd"],
        source: Source::Ours {
            module: "etcd",
            packages: &["go.etcd.io/etcd/server/v3"],
            link: "",
        },
        is_static: false,
    },
    Tools {
        names: &["coredns"],
        source: Source::Ours {
            module: "coredns",
            packages: &["."],
            link: "",
        },
        is_static: true,
    },
];

/// What the tests of the cluster rung run beside the cluster itself.
const FOR_TESTS: [&Tools; 3] = [&OTELCOL, &PROMETHEUS, &HELM];

/// Process 1 of each node and each pod.
const PAUSE: &str = "pause";

/// Only for the tests of the chart.
const HELM: Tools = Tools {
    names: &["helm"],
    source: Source::Theirs {
        packages: &["helm.sh/helm/v4/cmd/helm@v4.3.1"],
    },
    is_static: true,
};

/// The Gateway API's conformance suite.
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";

/// RFC 9113 and RFC 7541, sentence by sentence.
const H2SPEC: Tools = Tools {
    names: &["h2spec"],
    source: Source::Theirs {
        packages: &["github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"],
    },
    is_static: true,
};

/// The OpenTelemetry collector, with the parts that tests use.
const OTELCOL: Tools = Tools {
    names: &["otelcol"],
    source: Source::Ours {
        module: "otelcol",
        packages: &["."],
        link: "",
    },
    is_static: true,
};

/// Prometheus and promtool, with Kubernetes' discovery alone and without the web page.
const PROMETHEUS: Tools = Tools {
    names: &["prometheus", "promtool"],
    source: Source::Ours {
        module: "prometheus",
        packages: &[
            "github.com/prometheus/prometheus/cmd/prometheus",
            "github.com/prometheus/prometheus/cmd/promtool",
        ],
        link: "",
    },
    is_static: true,
};

/// Its build tags; other modules know none of them.
const PROMETHEUS_TAGS: &str = "-tags=remove_all_sd,enable_kubernetes_sd";

/// gRPC's interoperability client and server, under names of ours.
const GRPC_INTEROP: [Tools; 2] = [
    Tools {
        names: &["grpc-interop-client"],
        source: Source::Theirs {
            packages: &["google.golang.org/grpc/interop/client@v1.81.1"],
        },
        is_static: true,
    },
    Tools {
        names: &["grpc-interop-server"],
        source: Source::Theirs {
            packages: &["google.golang.org/grpc/interop/server@v1.81.1"],
        },
        is_static: true,
    },
];

/// Where the programs are.
pub(crate) fn folder() -> PathBuf {
    shell::root().join("target/cluster/bin")
}

/// One of them.
pub(crate) fn program(name: &str) -> PathBuf {
    folder().join(name)
}

/// Our Go modules and other sources of the cluster.
pub(super) fn sources() -> PathBuf {
    shell::root().join("xtask/cluster")
}

/// Builds what is missing of the cluster's programs.
pub(super) fn cluster() -> Result<()> {
    CLUSTER.iter().try_for_each(build)?;
    pause()
}

/// Builds what is missing of all that the cluster rung runs.
pub(crate) fn for_tests() -> Result<()> {
    cluster()?;
    FOR_TESTS.into_iter().try_for_each(build)
}

/// What [`for_tests`] would build.
pub(super) fn missing_for_tests() -> Vec<&'static str> {
    let more = FOR_TESTS.into_iter().flat_map(|tools| tools.names).copied();
    let more = more.filter(|name| !program(name).is_file());
    missing_for_cluster().into_iter().chain(more).collect()
}

/// What a cluster cannot be made without, of the programs that are built.
pub(super) fn missing_for_cluster() -> Vec<&'static str> {
    let all = CLUSTER.iter().flat_map(|tools| tools.names);
    let names = all.copied().chain([PAUSE]);
    names.filter(|name| !program(name).is_file()).collect()
}

/// Builds Helm unless it is there.
pub(crate) fn helm() -> Result<PathBuf> {
    build(&HELM)?;
    Ok(program("helm"))
}

/// Builds the OpenTelemetry collector unless it is there.
pub(crate) fn otelcol() -> Result<PathBuf> {
    build(&OTELCOL)?;
    Ok(program("otelcol"))
}

/// Builds Prometheus and promtool unless they are there.
pub(crate) fn prometheus() -> Result<(PathBuf, PathBuf)> {
    build(&PROMETHEUS)?;
    Ok((program("prometheus"), program("promtool")))
}

/// The folder of the Gateway API's resource definitions in Go's module cache.
pub(super) fn gateway_api() -> Result<PathBuf> {
    let folder = downloaded("crds", "sigs.k8s.io/gateway-api")?;
    Ok(folder.join("config/crd/experimental"))
}

/// Builds h2spec unless it is there.
pub(crate) fn h2spec() -> Result<PathBuf> {
    build(&H2SPEC)?;
    Ok(program("h2spec"))
}

/// Builds gRPC's interoperability client and server unless they are there.
pub(crate) fn grpc_interop() -> Result<(PathBuf, PathBuf)> {
    GRPC_INTEROP.iter().try_for_each(build)?;
    Ok((
        program("grpc-interop-client"),
        program("grpc-interop-server"),
    ))
}

/// The Gateway API's conformance suite, one program, built unless it is there.
pub(crate) fn conformance() -> Result<PathBuf> {
    let built = program("conformance.test");
    if built.is_file() {
        return Ok(built);
    }
    let _alone = alone()?;
    if built.is_file() {
        return Ok(built);
    }
    println!("cluster: building the conformance suite (once; minutes on a cold machine)");
    let fresh = folder().join("fresh-conformance.test");
    fs::create_dir_all(folder())?;
    let mut build = go()?;
    build
        .env("CGO_ENABLED", "0")
        .current_dir(sources().join("conformance"))
        .args(["test", "-c", "-vet=off", "-o"])
        .arg(&fresh)
        .arg(SUITE);
    retried("building the conformance suite", || shell::run(&mut build))?;
    fs::rename(&fresh, &built).with_context(|| format!("moving {} into place", fresh.display()))?;
    Ok(built)
}

/// The folder of the suite's sources, with the manifests that it applies.
pub(crate) fn conformance_sources() -> Result<PathBuf> {
    downloaded("conformance", SUITE)
}

/// The folder of a module that one of ours requires, in Go's module cache.
fn downloaded(ours: &str, module: &str) -> Result<PathBuf> {
    let mut download = go()?;
    download
        .current_dir(sources().join(ours))
        .args(["mod", "download", "-json", module]);
    let said = retried(&format!("downloading {module}"), || {
        shell::capture(&mut download)
    })?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let folder = said["Dir"]
        .as_str()
        .with_context(|| format!("go mod download names no folder for {module}"))?;
    Ok(PathBuf::from(folder))
}

fn are_there(tools: &Tools) -> bool {
    tools.names.iter().all(|name| program(name).is_file())
}

/// Held while something is built: two builds would write into the same folder. Ended with the process that holds it.
fn alone() -> Result<File> {
    let path = shell::root().join("target/cluster/build.lock");
    fs::create_dir_all(shell::root().join("target/cluster"))?;
    let lock = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let what = "another build of the cluster's programs on this machine has ended";
    let locked = shell::wait_for(what, OTHER_BUILD_MAX, || match lock.try_lock() {
        Ok(()) => Some(Ok(())),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => Some(Err(error)),
    })?;
    locked.with_context(|| format!("locking {}", path.display()))?;
    Ok(lock)
}

fn build(tools: &Tools) -> Result<()> {
    if are_there(tools) {
        return Ok(());
    }
    let _alone = alone()?;
    // Perhaps by the one that was waited for.
    if are_there(tools) {
        return Ok(());
    }
    let names = tools.names.join(", ");
    println!("cluster: building {names} (once; minutes on a cold machine)");
    let started = Instant::now();
    // A build that is interrupted must not leave half a program under the name that says "built", nor anything for the next
    // build to find.
    let fresh = emptied(folder().join("fresh"))?;
    let scratch = emptied(shell::root().join("target/cluster/scratch"))?;
    let mut command = command(tools, &fresh)?;
    command.env("GOTMPDIR", scratch);
    retried(&format!("building {names}"), || shell::run(&mut command))?;
    for name in tools.names {
        let built = find_built(&fresh, name, tools)?;
        fs::rename(&built, program(name))
            .with_context(|| format!("moving {} into place", built.display()))?;
    }
    println!(
        "cluster: built {names} in {} s",
        started.elapsed().as_secs()
    );
    Ok(())
}

/// A folder with nothing in it.
fn emptied(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Go names a program after the last part of its package's path that is no major version.
fn find_built(fresh: &Path, name: &str, tools: &Tools) -> Result<PathBuf> {
    let wanted = fresh.join(name);
    if wanted.is_file() {
        return Ok(wanted);
    }
    let only = match tools.names {
        [_] => fs::read_dir(fresh)?.flatten().next(),
        _ => None,
    };
    only.map(|file| file.path())
        .with_context(|| format!("go built no {name} in {}", fresh.display()))
}

fn command(tools: &Tools, fresh: &Path) -> Result<Command> {
    let mut command = go()?;
    if tools.is_static {
        command.env("CGO_ENABLED", "0");
    }
    match &tools.source {
        Source::Ours {
            module,
            packages,
            link,
        } => {
            command
                .current_dir(sources().join(module))
                .arg("build")
                .arg(PROMETHEUS_TAGS)
                .arg(format!("-ldflags=-s -w {link}"))
                .arg("-o")
                .arg(fresh.join(""))
                .args(*packages);
        }
        Source::Theirs { packages } => {
            command
                .env("GOBIN", fresh)
                .args(["install", "-ldflags=-s -w"])
                .args(*packages);
        }
    }
    Ok(command)
}

/// Installs Go unless it is there.
pub(super) fn ensure_go() -> Result<()> {
    setup::ensure(&[Group::Go]).with_context(|| {
        format!(
            "Go {}.{} or newer, which the cluster's programs are built with, is not on this machine and could not be \
             installed: install it from go.dev/dl so that `go version` works",
            GO.0, GO.1
        )
    })
}

/// Go, politely: other work on the machine comes first.
fn go() -> Result<Command> {
    ensure_go()?;
    let program = find_go().context("Go is gone")?;
    let mut command = Command::new("nice");
    command
        .arg(program)
        .env("GOFLAGS", "-buildvcs=false")
        // The compiler collects its own garbage: done less often, etcd takes 79 instead of 97 s of processor time.
        .env("GOGC", "400")
        .stdin(Stdio::null());
    Ok(command)
}

/// Whether a Go that is new enough is on this machine.
pub(crate) fn has_go() -> bool {
    find_go().is_some()
}

/// The first Go that is new enough: on the path, where its own archive goes, where `setup` puts it.
fn find_go() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let places = shell::find("go").into_iter();
    let mut places = places.chain([usual, setup::installed_go()]);
    places.find(|program| is_new(program).unwrap_or(false))
}

fn is_new(program: &Path) -> Result<bool> {
    let mut ask = Command::new(program);
    ask.args(["env", "GOVERSION", "GOTOOLCHAIN"])
        .current_dir("/");
    let said = shell::capture(&mut ask)?;
    let mut lines = said.lines();
    let version = lines.next().unwrap_or_default();
    let may_fetch = lines.next().is_none_or(|setting| setting != "local");
    Ok(is_enough(version, may_fetch))
}

/// Whether a Go of this version can build everything, perhaps by fetching a newer one of itself.
fn is_enough(version: &str, may_fetch: bool) -> bool {
    let mut numbers = version
        .trim_start_matches("go")
        .split(['.', 'r', 'b', '-', ' ']);
    let mut next = || numbers.next()?.parse::<u32>().ok();
    let Some(version) = next().zip(next()) else {
        return false;
    };
    version >= GO || may_fetch && version >= GO_FETCHES_ITSELF
}

fn retried<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut tried = 1;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if tried < TRIES => {
                println!("cluster: {what}: try {tried} of {TRIES} failed: {error:#}");
                tried += 1;
            }
            Err(error) => {
                return Err(error.context(format!(
                    "{what} failed {TRIES} times: without a network, copy {} from a machine that has built it",
                    folder().display()
                )));
            }
        }
    }
}

fn pause() -> Result<()> {
    let built = program(PAUSE);
    if built.is_file() {
        return Ok(());
    }
    shell::run(
        Command::new("gcc")
            .args(["-O2", "-static", "-o"])
            .arg(&built)
            .arg(sources().join("pause.c")),
    )
}

#[cfg(test)]
mod tests {
    use super::is_enough;

    #[test]
    fn a_go_that_is_too_old_is_recognised() {
        assert!(is_enough("go1.26.8", false));
        assert!(is_enough("go1.27rc1", false));
        assert!(is_enough("go2.0", false));
        assert!(!is_enough("go1.19.8", true));
        assert!(!is_enough("go1.25.0", false));
        assert!(!is_enough("devel", true));
    }

    #[test]
    fn a_go_that_may_fetch_a_newer_one_is_new_enough() {
        assert!(is_enough("go1.21.0", true));
        assert!(!is_enough("go1.20.14", true));
    }
}
