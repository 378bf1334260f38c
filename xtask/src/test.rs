//! `test`: the rungs, each with a time budget, and a closing line that counts the tests.
//!
//! Compiling is a step of its own, so that the budgets of the rungs measure the tests. A rung past its budget is ended
//! and fails: what takes longer belongs into `soak`. The cluster's programs, which only the last rung needs, are compiled
//! in the background from the beginning of the ladder on.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    check::{self, Compiler},
    cluster::{
        self,
        ahead::{BuildAhead, Outcome},
    },
    fuzz, release,
    setup::{self, Group, SKIP_CLUSTER_VARIABLE, skips_cluster},
    shell,
    tidy::{Package, Workspace},
};

/// Multiplies every budget: for machines slower than the project's own.
const SCALE_VARIABLE: &str = "KARST_TEST_BUDGET_SCALE";

/// Set to 1 where Envoy cannot be had: its tests then say that they are skipped.
const SKIP_ENVOY_VARIABLE: &str = "KARST_SKIP_ENVOY";

/// The rung's cluster: not the one that a developer has running.
pub(crate) const CLUSTER_ID: &str = "9";

/// How long the ladder waits before the cluster rung for programs that are built in the background: twice what building
/// them takes with nothing beside it.
const PROGRAMS_BUDGET: Duration = Duration::from_secs(1500);

/// Tests of the cluster rung that need programs which no cluster does, and the images of these programs.
const WITH_MORE_PROGRAMS: [&str; 3] = ["install_helm", "install_renders", "telemetry_live"];
const IMAGES_OF_THESE: [&str; 2] = ["otelcol", "prometheus"];

/// Integration tests with these names make namespaces or load kernel programs, in whichever package they are.
const NEEDS_ROOT: &[&str] = &["node", "namespace"];
/// The packages whose tests are rungs of their own.
const NODE: &str = "karst-test-node";
const SIMULATION: &str = "karst-test-simulation";
pub(crate) const CLUSTER: &str = "karst-test-cluster";

/// Where an integration test belongs.
fn rung_of(package: &Package, test: &str) -> Rung {
    match package.name.as_str() {
        SIMULATION => Rung::Simulation,
        NODE => Rung::Node,
        CLUSTER => Rung::Cluster,
        _ if NEEDS_ROOT.contains(&test) => Rung::Node,
        _ => Rung::Peer,
    }
}

/// Names of integration tests that stand on two rungs: asked for by its name, a test would bring its namesake along.
pub(crate) fn names_on_two_rungs(workspace: &Workspace) -> Vec<String> {
    let mut rungs: BTreeMap<&str, Rung> = BTreeMap::new();
    let mut found = Vec::new();
    for rung in Rung::ALL {
        let tests = workspace.integration_tests(|package, test| rung_of(package, test) == rung);
        for (package, test) in tests {
            let other = *rungs.entry(test).or_insert(rung);
            if other != rung {
                found.push(format!(
                    "{package}: test {test} of the {} rung has a namesake on the {} rung: rename one",
                    rung.name(),
                    other.name()
                ));
            }
        }
    }
    found
}

/// The integration tests of a rung.
fn names_of(rung: Rung) -> Result<BTreeSet<String>> {
    let workspace = Workspace::load()?;
    let tests = workspace.integration_tests(|package, test| rung_of(package, test) == rung);
    if tests.is_empty() {
        bail!("there is no test on this rung");
    }
    Ok(tests.iter().map(|(_, name)| (*name).to_owned()).collect())
}

/// What `test` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this rung; without it, all of them in order.
    rung: Option<Rung>,
}

/// The rungs of the ladder, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rung {
    /// Format, licences, the project's own rules; asked for alone, lints too.
    Check,
    /// Compiles everything that the other rungs run, linting it on the way.
    Build,
    /// The tests beside the code.
    Unit,
    /// A seeded clock and seeded faults.
    Simulation,
    /// Scripted peers over sockets, one part at a time.
    Peer,
    /// Network namespaces and the kernel programs; needs root.
    Node,
    /// Hostile input for every parser of peer bytes.
    Fuzz,
    /// Karst on a real Kubernetes; needs root and Go.
    Cluster,
}

impl Rung {
    /// What runs without a name.
    const ALL: [Self; 8] = [
        Self::Check,
        Self::Build,
        Self::Unit,
        Self::Simulation,
        Self::Peer,
        Self::Node,
        Self::Fuzz,
        Self::Cluster,
    ];

    /// How long the rung may take, from a cold start on two cores.
    fn budget(self, programs: Programs) -> Duration {
        let seconds = match self {
            Self::Check => 600,
            Self::Build if programs == Programs::OnItsRung => 2400,
            Self::Build => 1500,
            // Cargo compiles some dependencies anew for a single package's features.
            Self::Unit | Self::Simulation | Self::Peer => 300,
            Self::Node => 900,
            Self::Cluster => 2400,
            Self::Fuzz => 600,
        };
        Duration::from_secs(seconds).mul_f64(scale())
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// When the programs of the cluster, Kubernetes first of all, are built: once, and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Programs {
    /// There is no cluster.
    Never,
    /// By the rung that was asked for alone.
    OnItsRung,
    /// In the background while the other rungs run.
    Ahead,
}

impl Programs {
    fn of(asked: Option<Rung>, skips_cluster: bool) -> Self {
        match asked {
            _ if skips_cluster => Self::Never,
            Some(_) => Self::OnItsRung,
            None => Self::Ahead,
        }
    }
}

fn scale() -> f64 {
    let given = std::env::var(SCALE_VARIABLE)
        .ok()
        .and_then(|scale| scale.parse().ok());
    given
        .filter(|scale: &f64| scale.is_finite() && *scale > 0.0)
        .unwrap_or(1.0)
}

/// Tests counted from the closing lines of the runners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that held.
    pub(crate) passed: u64,
    /// Tests that did not.
    pub(crate) failed: u64,
    /// Tests that were not run.
    pub(crate) skipped: u64,
}

impl Count {
    /// Adds the demo's last line, `demo: 9 of 9 proofs hold`; other lines count nothing.
    fn add_demo(&mut self, line: &str) {
        let numbers = line
            .strip_prefix("demo: ")
            .and_then(|rest| rest.strip_suffix(" proofs hold"))
            .and_then(|rest| rest.split_once(" of "));
        let Some((Ok(held), Ok(all))) =
            numbers.map(|(held, all)| (held.parse::<u64>(), all.parse::<u64>()))
        else {
            return;
        };
        self.passed += held;
        self.failed += all.saturating_sub(held);
    }

    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; other lines count nothing.
    fn add_line(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, word)) = part.split_once(' ') else {
                continue;
            };
            let number: u64 = number.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Runs one rung or all; every rung is run even when an earlier one failed, except that nothing runs unbuilt.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rungs = match args.rung {
        Some(rung) => vec![rung],
        None => Rung::ALL.to_vec(),
    };
    let started = Instant::now();
    let mut ladder = Ladder::new(args.rung);
    ladder.begin_programs();
    for rung in rungs {
        if rung == Rung::Cluster {
            ladder.await_programs();
        }
        let built = ladder.climb(rung);
        if rung == Rung::Build && !built {
            break;
        }
    }
    ladder.close(started.elapsed())
}

struct Ladder {
    programs: Programs,
    compiler: Compiler,
    /// What builds them in the background, while it does.
    ahead: Option<BuildAhead>,
    count: Count,
    lines: Vec<String>,
    failures: Vec<String>,
}

impl Ladder {
    fn new(asked: Option<Rung>) -> Self {
        Self {
            programs: Programs::of(asked, skips_cluster()),
            compiler: match asked {
                // What somebody works on has been compiled by theirs.
                Some(_) => Compiler::Plain,
                None => Compiler::Linting,
            },
            ahead: None,
            count: Count::default(),
            lines: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Begins to build what the cluster rung runs. Installs first, in the foreground: no two rungs may install at once.
    fn begin_programs(&mut self) {
        if self.programs != Programs::Ahead {
            return;
        }
        let begun = installed_for_cluster().and_then(|()| BuildAhead::start());
        // A machine that cannot have a cluster fails on that rung, after all the others.
        self.ahead = begun.unwrap_or_else(|error| {
            println!("the cluster rung will fail: {error:#}");
            None
        });
    }

    /// Waits before the cluster rung until the background has built what a cluster is made of. Where it failed, that rung
    /// tries again and judges; being late is a failure of its own, as on a rung.
    fn await_programs(&mut self) {
        let Some(mut ahead) = self.ahead.take() else {
            return;
        };
        let budget = PROGRAMS_BUDGET.mul_f64(scale());
        println!("\n== the cluster's programs: budget {} s", budget.as_secs());
        let started = Instant::now();
        let verdict = match ahead.wait_for_cluster(budget) {
            Ok(Outcome::Built) => "ok".to_owned(),
            Ok(Outcome::Enough) => {
                self.ahead = Some(ahead);
                "ok, those of some tests are still to come".to_owned()
            }
            Ok(Outcome::Failed(status)) => {
                println!("{}", ahead.said());
                format!("the background failed ({status}), the cluster rung builds them")
            }
            Ok(Outcome::Overdue) => {
                println!("{}", ahead.said());
                self.failures.push("the cluster's programs".to_owned());
                "failed: over their budget".to_owned()
            }
            Err(error) => {
                format!("the background is lost ({error:#}), the cluster rung builds them")
            }
        };
        let line = format!(
            "the cluster's programs: {verdict}; waited {:.0} of {} s",
            started.elapsed().as_secs_f64(),
            budget.as_secs()
        );
        println!("== {line}");
        self.lines.push(line);
    }

    fn climb(&mut self, rung: Rung) -> bool {
        let (name, budget) = (rung.name(), rung.budget(self.programs));
        println!("\n== {name}: budget {} s", budget.as_secs());
        let (before, started) = (self.count, Instant::now());
        let result = self.attempt(rung, started + budget);
        let taken = started.elapsed();
        let late = taken > budget;
        let verdict = match &result {
            Ok(()) if late => "failed: over its budget".to_owned(),
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("failed: {error:#}"),
        };
        let passed = self.count.passed - before.passed;
        let line = format!(
            "{name}: {verdict}; {passed} tests passed; {:.0} of {} s",
            taken.as_secs_f64(),
            budget.as_secs()
        );
        println!("== {line}");
        self.lines.push(line);
        let ok = result.is_ok() && !late;
        if !ok {
            self.failures.push(name);
        }
        ok
    }

    fn attempt(&mut self, rung: Rung, deadline: Instant) -> Result<()> {
        match rung {
            Rung::Check if self.compiler == Compiler::Linting => check::all_but_lints(),
            Rung::Check => check::run(),
            Rung::Build => build(self.programs, self.compiler),
            Rung::Unit => self.cargo_test(
                deadline,
                &[
                    "--workspace",
                    "--lib",
                    "--bins",
                    "--exclude",
                    NODE,
                    "--exclude",
                    SIMULATION,
                    "--exclude",
                    CLUSTER,
                ],
            ),
            Rung::Simulation => self.simulation(deadline),
            Rung::Peer => self.peer(deadline),
            Rung::Node => self.node(deadline),
            Rung::Cluster => self.cluster(deadline),
            Rung::Fuzz => fuzz::saved_corpus(self.compiler),
        }
    }

    fn simulation(&mut self, deadline: Instant) -> Result<()> {
        self.integration_tests(Rung::Simulation, deadline, &[])
    }

    /// The `tests/` folders of the product's packages, but for what needs root.
    fn peer(&mut self, deadline: Instant) -> Result<()> {
        setup::ensure(&[Group::Demo, Group::Readers])?;
        self.integration_tests(Rung::Peer, deadline, &[])
    }

    fn node(&mut self, deadline: Instant) -> Result<()> {
        if shell::capture(Command::new("id").arg("-u"))?.trim() != "0" {
            bail!(
                "the node tests make network namespaces and load kernel programs: run them as root"
            );
        }
        setup::ensure(&[Group::Lab, Group::Demo, Group::Load])?;
        if std::env::var_os(SKIP_ENVOY_VARIABLE).is_none_or(|skip| skip != "1") {
            setup::ensure(&[Group::Interop])?;
        }
        let tested = self.integration_tests(Rung::Node, deadline, &["--test-threads=1"]);
        self.demo(deadline).and(tested)
    }

    /// Brings a cluster up with Karst on it, tests, and ends it whatever happened.
    fn cluster(&mut self, deadline: Instant) -> Result<()> {
        if skips_cluster() {
            println!("skipped, since {SKIP_CLUSTER_VARIABLE}=1");
            self.count.skipped += 1;
            return Ok(());
        }
        // What only some tests run may be still to come, and is waited for before these.
        let ready = match self.ahead {
            Some(_) => installed_for_cluster(),
            None => ready_for_cluster(),
        };
        ready.with_context(|| {
            format!("no cluster can be made here; where that must be so, {SKIP_CLUSTER_VARIABLE}=1 leaves this rung out")
        })?;
        if release::given().is_none() {
            // What the images hold, and `karst`; asked for alone, no other rung has built them.
            release::ebpf()?;
            shell::run(
                self.compiler
                    .cargo()
                    .args(["build", "--workspace", "--bins"]),
            )?;
        }
        let limit = deadline.saturating_duration_since(Instant::now());
        let standing = StandingCluster::up("dev", limit)?;
        let (late, at_once) = names_of(Rung::Cluster)?
            .into_iter()
            .partition(|name| self.ahead.is_some() && WITH_MORE_PROGRAMS.contains(&name.as_str()));
        let tested = self.on_cluster(at_once, deadline);
        let tested_late = self.late_on_cluster(late, deadline);
        standing.down().and(tested).and(tested_late)
    }

    fn on_cluster(&mut self, names: BTreeSet<String>, deadline: Instant) -> Result<()> {
        // What they have measured is shown also where it holds.
        self.tests_by_name(names, deadline, &["--test-threads=1", "--nocapture"])
    }

    /// Runs the tests whose programs were still to come, when these are there, with the images that the cluster came up
    /// without.
    fn late_on_cluster(&mut self, names: BTreeSet<String>, deadline: Instant) -> Result<()> {
        let Some(mut ahead) = self.ahead.take() else {
            return Ok(());
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        if ahead.wait(limit)? != Outcome::Built {
            println!("{}", ahead.said());
        }
        // Where the background failed, this tries again and judges.
        cluster::build::for_tests()?;
        let mut load = shell::cargo();
        load.args(["xtask", "image", "--no-build", "--load", "--id", CLUSTER_ID])
            .args(IMAGES_OF_THESE);
        shell::run(&mut load)?;
        self.on_cluster(names, deadline)
    }

    /// The demo with the binaries that the tests use: each of its proofs counts as a test.
    fn demo(&mut self, deadline: Instant) -> Result<()> {
        // Through cargo: this program's own file may have been built anew by now, with the features of the tests.
        let mut demo = shell::cargo();
        demo.args(["xtask", "demo", "--no-build"])
            .env(release::PROFILE_VARIABLE, "dev");
        let count = &mut self.count;
        let limit = deadline.saturating_duration_since(Instant::now());
        let watched = shell::watch(&mut demo, limit, |line| count.add_demo(line))?;
        if !watched.success {
            bail!("the demo failed");
        }
        Ok(())
    }

    /// Runs the integration tests of a rung by their names, which no other rung has (tidy). The whole workspace is named:
    /// named alone, packages would get their dependencies compiled anew, with fewer features than the build gave them.
    fn integration_tests(&mut self, rung: Rung, deadline: Instant, options: &[&str]) -> Result<()> {
        self.tests_by_name(names_of(rung)?, deadline, options)
    }

    fn tests_by_name(
        &mut self,
        names: BTreeSet<String>,
        deadline: Instant,
        options: &[&str],
    ) -> Result<()> {
        let mut args = vec!["--workspace"];
        args.extend(names.iter().flat_map(|name| ["--test", name]));
        args.push("--");
        args.extend(options);
        self.cargo_test(deadline, &args)
    }

    fn cargo_test(&mut self, deadline: Instant, args: &[&str]) -> Result<()> {
        let mut command = self.compiler.cargo();
        let (cargo_args, test_args) = match args.iter().position(|arg| *arg == "--") {
            Some(at) => args.split_at(at),
            None => (args, [].as_slice()),
        };
        let built = || shell::root().join("target/debug");
        let given = release::given();
        command
            .args(["test", "--no-fail-fast"])
            .args(cargo_args)
            .args(test_args);
        command
            .env(release::GIVEN_VARIABLE, given.unwrap_or_else(built))
            .env(cluster::ID_VARIABLE, CLUSTER_ID);
        let count = &mut self.count;
        let limit = deadline.saturating_duration_since(Instant::now());
        let watched = shell::watch(&mut command, limit, |line| count.add_line(line))?;
        if watched.overdue {
            bail!("ended at its time budget: find the slow test, or move it to `soak`");
        }
        if !watched.success {
            bail!("tests failed");
        }
        Ok(())
    }

    /// Prints what each rung said, then the one line that names the tests run.
    fn close(self, taken: Duration) -> Result<()> {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        println!("total: {:.0} s", taken.as_secs_f64());
        let Count {
            passed,
            failed,
            skipped,
        } = self.count;
        // A rung that fails without a failing test must show in the count as well.
        let failed = failed.max(self.failures.len() as u64);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if self.failures.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", self.failures.join(", "))
    }
}

/// What the machine must have and be allowed to do, then Kubernetes itself and what its tests run, built once.
pub(crate) fn ready_for_cluster() -> Result<()> {
    installed_for_cluster()?;
    cluster::build::for_tests()
}

fn installed_for_cluster() -> Result<()> {
    cluster::preflight()?;
    setup::ensure(&[Group::Demo])
}

/// The rung's cluster, ended when dropped.
pub(crate) struct StandingCluster {
    /// Which binaries of ours it runs.
    profile: String,
    ended: bool,
}

impl StandingCluster {
    /// Brings it up with Karst, from the binaries of a cargo profile. What an earlier run left goes first.
    pub(crate) fn up(profile: &str, limit: Duration) -> Result<Self> {
        let standing = Self {
            profile: profile.to_owned(),
            ended: false,
        };
        shell::run(&mut standing.verb(&["down"]))?;
        // The rung has built what it tests; images of a release take a build of their own, linked statically.
        let words = match profile {
            "dev" => &["up", "--karst", "--no-build"][..],
            _ => &["up", "--karst"],
        };
        let mut up = standing.verb(words);
        let watched = shell::watch(&mut up, limit, |_| {})?;
        if !watched.success {
            bail!("the cluster did not come up with Karst: its last lines say why");
        }
        Ok(standing)
    }

    /// Through cargo, as the demo is.
    fn verb(&self, words: &[&str]) -> Command {
        let mut command = shell::cargo();
        command
            .args(["xtask", "cluster"])
            .args(words)
            .args(["--id", CLUSTER_ID])
            .env(release::PROFILE_VARIABLE, &self.profile);
        command
    }

    pub(crate) fn down(mut self) -> Result<()> {
        self.ended = true;
        shell::run(&mut self.verb(&["down"]))
    }
}

impl Drop for StandingCluster {
    fn drop(&mut self) {
        if !self.ended {
            shell::succeeds(&mut self.verb(&["down"]));
        }
    }
}

fn build(programs: Programs, compiler: Compiler) -> Result<()> {
    release::ebpf()?;
    let mut build = compiler.cargo();
    shell::run(build.args(["build", "--workspace", "--bins"]))?;
    // Benchmarks are compiled as well, so that all targets have been linted.
    let mut build = compiler.cargo();
    shell::run(build.args([
        "test",
        "--workspace",
        "--all-targets",
        "--no-run",
        "--quiet",
    ]))?;
    if programs != Programs::OnItsRung {
        return Ok(());
    }
    // Asked for alone, this rung has built all that it can.
    if let Err(error) = ready_for_cluster() {
        println!("the cluster rung will fail: {error:#}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_come_last_are_tests_of_the_cluster_rung() {
        let names = names_of(Rung::Cluster).unwrap();
        let mut late = WITH_MORE_PROGRAMS.iter();
        assert!(late.all(|name| names.contains(*name)));
    }

    #[test]
    fn proofs_of_the_demo_are_counted() {
        let mut count = Count::default();
        count.add_demo("demo: took 3.4 s");
        count.add_demo("demo: 8 of 9 proofs hold");
        assert_eq!((count.passed, count.failed), (8, 1));
    }

    #[test]
    fn programs_are_built_ahead_when_there_are_other_rungs() {
        assert_eq!(Programs::of(None, false), Programs::Ahead);
        assert_eq!(Programs::of(Some(Rung::Build), false), Programs::OnItsRung);
        assert_eq!(Programs::of(None, true), Programs::Never);
        assert_eq!(Programs::of(Some(Rung::Build), true), Programs::Never);
    }

    #[test]
    fn closing_lines_are_counted_and_others_are_not() {
        let mut count = Count::default();
        count.add_line("test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.1s");
        count.add_line("test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        count.add_line("test a::b ... ok");
        assert_eq!(
            count,
            Count {
                passed: 13,
                failed: 4,
                skipped: 2
            }
        );
    }
}
