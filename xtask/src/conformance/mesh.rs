//! `conformance mesh`: the Gateway API's own suite, unmodified, against Karst on a real cluster.
//!
//! ```text
//!   cluster up ─► karst install ─► a waypoint that stands beforehand ─► suite (Go) ─► report ─► closing lines
//! ```
//!
//! The suite knows nothing of waypoints: its namespaces come under the mesh and to the waypoint by labels alone. Its pods
//! run karst-echo under the image name that its manifests ask for. Two ways to run it: the suite's own settings, whose
//! report is the official one, and strict, with ten successes in a row, since by luck of the balancer several tests
//! pass with the usual three without any mesh.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use super::report::{self, Report};
use crate::{
    cluster::{self, Cluster, Up},
    image, release,
    setup::{self, Group},
    shell,
};

/// Version of suite and resource definitions, fixed by `xtask/cluster/conformance/go.mod`.
const SUITE_VERSION: &str = "v1.6.3";

/// The mesh tests of that version, by the suite's own list.
const MESH_TESTS: usize = 22;

/// Features that the profiles do not turn on by themselves; a test whose feature is not named is skipped in silence.
const FEATURES: [&str; 14] = [
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
];

/// Where the waypoint stands, made before the suite starts.
const NAMESPACE: &str = "karst-conformance";
const WAYPOINT: &str = "waypoint";

/// How long the waypoint may take until it is ready.
const WAYPOINT_READY: &str = "--timeout=90s";

/// The longest that the suite may take: every failing check costs it 30 s.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// What `conformance mesh` is asked for.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How sure a test must be to pass.
    #[arg(long, value_enum, default_value_t = Confidence::Strict)]
    confidence: Confidence,
    /// One test by its short name, for example MeshFrontend.
    #[arg(long)]
    test: Option<String>,
    /// The cluster to run on; it is made if it is not there.
    #[arg(long, default_value_t = 0, env = cluster::ID_VARIABLE)]
    id: u8,
    /// Take the binaries and the mesh that are there.
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Confidence {
    /// Ten successes in a row within fifteen seconds.
    Strict,
    /// The suite's defaults; writes the official report into docs/conformance.
    Official,
}

/// Runs the suite.
pub(super) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Group::Build, Group::Ebpf, Group::Cluster, Group::Demo])?;
    let suite = cluster::build::conformance()?;
    let cluster = prepare(args)?;
    let file = report_file(args);
    let options = options_file(args)?;
    let mut tests = Tests::default();
    let started = Instant::now();
    let mut command = command(&suite, args, &cluster, &options, &file);
    let watched = shell::watch(&mut command, LIMIT, |line| tests.see(line))?;
    ensure!(
        !watched.overdue,
        "the suite took more than {} minutes and was ended",
        LIMIT.as_secs() / 60
    );
    println!(
        "conformance: {SUITE_VERSION}, {} passed, {} failed, {} skipped in {} s",
        tests.passed.len(),
        tests.failed.len(),
        tests.skipped.len(),
        started.elapsed().as_secs()
    );
    if args.test.is_none() {
        let text = fs::read_to_string(&file)
            .with_context(|| format!("the suite wrote no report to {}", file.display()))?;
        report::read(&text).iter().for_each(Report::say);
        println!("conformance: report {}", file.display());
    }
    verdict(args, &tests, watched.success)
}

/// A run is good when every mesh test ran and passed: a skipped one counts as not passed.
fn verdict(args: &Args, tests: &Tests, suite_succeeded: bool) -> Result<()> {
    if !tests.failed.is_empty() {
        bail!("failed: {}", tests.failed.join(", "));
    }
    ensure!(
        suite_succeeded,
        "the suite failed outside its tests: its output above says why"
    );
    let expected = if args.test.is_some() { 1 } else { MESH_TESTS };
    ensure!(
        tests.passed.len() >= expected,
        "{} of {expected} mesh tests ran; skipped: {}",
        tests.passed.len(),
        tests.skipped.join(", ")
    );
    Ok(())
}

/// A cluster with the mesh, the suite's images and a waypoint.
fn prepare(args: &Args) -> Result<Cluster> {
    let cluster = match args.no_build {
        true => Cluster::find(args.id)?,
        false => {
            if !release::is_dev() {
                release::run()?;
            }
            Cluster::with_mesh(args.id, &Up::usual())?
        }
    };
    image::load_for_suite(&cluster, &images()?)?;
    waypoint(&cluster)?;
    Ok(cluster)
}

/// The names under which the suite's mesh manifests ask for its server and client.
fn images() -> Result<Vec<String>> {
    let manifests = cluster::build::conformance_sources()?.join("mesh/manifests.yaml");
    let text = fs::read_to_string(&manifests)
        .with_context(|| format!("reading {}", manifests.display()))?;
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"))
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "{} names no image", manifests.display());
    Ok(names)
}

/// One waypoint that every namespace may use.
fn waypoint(cluster: &Cluster) -> Result<()> {
    let yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {WAYPOINT}, namespace: {NAMESPACE}, labels: {{istio.io/waypoint-for: all}}}}\n\
         spec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    \
         protocol: HBONE\n    allowedRoutes: {{namespaces: {{from: All}}}}\n"
    );
    let kubectl = cluster.kubectl();
    shell::input(kubectl().args(["apply", "-f", "-"]), &yaml)?;
    let gateway = format!("gateway/{WAYPOINT}");
    let wait = [
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Programmed",
        &gateway,
        WAYPOINT_READY,
    ];
    shell::capture(kubectl().args(wait))
        .map(drop)
        .with_context(|| {
            format!("the waypoint does not become ready: `cargo xtask cluster kubectl -- -n {NAMESPACE} describe {gateway}`")
        })
}

fn report_file(args: &Args) -> PathBuf {
    match args.confidence {
        Confidence::Official if args.test.is_none() => shell::root().join(format!(
            "docs/conformance/mesh-gateway-api-{SUITE_VERSION}.yaml"
        )),
        _ => shell::root().join("target/cluster/conformance-mesh.yaml"),
    }
}

/// The suite's options. Some of them can be set in a file only.
fn options_file(args: &Args) -> Result<PathBuf> {
    let file = shell::root().join("target/cluster/conformance-options.yaml");
    let features: String = FEATURES
        .iter()
        .map(|feature| format!("- {feature}\n"))
        .collect();
    let timeouts = match args.confidence {
        Confidence::Strict => {
            "timeoutConfig: {maxTimeToConsistency: 15s, requiredConsecutiveSuccesses: 10}\n"
        }
        Confidence::Official => "",
    };
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "gatewayClassName: \"\"\nconformanceProfiles: [MESH-HTTP, MESH-GRPC]\nsupportedFeatures:\n{features}{timeouts}\
         implementation: {{organization: karst, project: karst, url: https://karst.test, version: \"{version}\", \
         contact: [https://karst.test]}}\n"
    );
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn command(
    suite: &std::path::Path,
    args: &Args,
    cluster: &Cluster,
    options: &std::path::Path,
    report: &std::path::Path,
) -> Command {
    let labels = format!(
        "istio.io/dataplane-mode=ambient,istio.io/use-waypoint={WAYPOINT},istio.io/use-waypoint-namespace={NAMESPACE}"
    );
    let mut command = Command::new(suite);
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["-test.run", "^TestConformance$", "-test.v", "-test.timeout"])
        .arg(format!("{}s", LIMIT.as_secs()))
        .arg("--conformance-options-file")
        .arg(options)
        .arg("--namespace-labels")
        .arg(labels);
    match &args.test {
        Some(test) => command.args(["--run-test", test]),
        None => command.arg("--report-output").arg(report),
    };
    command
}

/// What the suite's output says of each test.
#[derive(Default)]
struct Tests {
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Tests {
    /// Reads `--- PASS: TestConformance/MeshFrontend (2.1s)`; parts of a test have one slash more.
    fn see(&mut self, line: &str) {
        let Some((outcome, rest)) = line
            .trim_start()
            .strip_prefix("--- ")
            .and_then(|rest| rest.split_once(": TestConformance/"))
        else {
            return;
        };
        let name = rest.split(' ').next().unwrap_or(rest);
        if name.contains('/') {
            return;
        }
        match outcome {
            "PASS" => self.passed.push(name.to_owned()),
            "FAIL" => self.failed.push(name.to_owned()),
            // Tests of other profiles are skipped as well; only those of the mesh are ours.
            "SKIP" if name.contains("Mesh") => self.skipped.push(name.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tests;

    #[test]
    fn whole_tests_are_counted_and_their_parts_are_not() {
        let mut tests = Tests::default();
        for line in [
            "=== RUN   TestConformance/MeshBasic",
            "    --- PASS: TestConformance/MeshBasic (1.02s)",
            "        --- PASS: TestConformance/MeshBasic/one (1.00s)",
            "    --- FAIL: TestConformance/MeshPorts (30.00s)",
            "    --- SKIP: TestConformance/MeshFrontend (0.00s)",
            "    --- SKIP: TestConformance/GatewayModifyListeners (0.00s)",
            "--- FAIL: TestConformance (93.11s)",
        ] {
            tests.see(line);
        }
        assert_eq!(tests.passed, ["MeshBasic"]);
        assert_eq!(tests.failed, ["MeshPorts"]);
        assert_eq!(tests.skipped, ["MeshFrontend"]);
    }
}
