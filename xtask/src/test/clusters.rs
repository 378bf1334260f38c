//! The cluster rung: some clusters, each of which takes the next test that waits.
//!
//! A test on a cluster mostly waits: for pods that start, rollouts that go on, leases that end. With two clusters the
//! processors have something to do meanwhile, and each test still has a cluster to itself. Tests that strain the processors
//! come last, when the first cluster is the only one.

use std::{
    collections::VecDeque,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use super::{Count, test_command};
use crate::{
    cluster::{
        self,
        ahead::{BuildAhead, Outcome},
    },
    release, shell,
};

/// The rung's clusters: not the one that a developer has running.
pub(crate) const IDS: [&str; 2] = ["9", "8"];

/// Tests of many connections at once, of which none may fail: beside another cluster, two processors are too few for them.
const ALONE: [&str; 8] = [
    "control_plane_faults",
    "enroll_under_load",
    "install_helm",
    "install_leaves_nothing",
    "rollout_agents",
    "rollout_deployment",
    "waypoint_replicas",
    "waypoint_streams",
];

/// Tests that need programs which no cluster does, and the images of these programs.
const WITH_MORE_PROGRAMS: [&str; 3] = ["install_helm", "install_renders", "telemetry_live"];
const IMAGES_OF_THESE: [&str; 2] = ["otelcol", "prometheus"];

/// Memory that must be there for each: twice what one was seen to take with the largest test on it.
const MEMORY_BYTES: u64 = 6 << 30;

/// What a cluster's tests are run with. What they have measured is shown also where it holds.
const OPTIONS: [&str; 2] = ["--test-threads=1", "--nocapture"];

/// Runs the tests on as many clusters as there is memory for; every test is run even when an earlier one failed. `ahead`
/// builds what some of them need.
pub(super) fn run(
    names: Vec<String>,
    ahead: Option<BuildAhead>,
    deadline: Instant,
) -> (Count, Result<()>) {
    let [first, others @ ..] = IDS;
    let others = &others[..clusters_in(cluster::available_memory()) - 1];
    let round = Round::new(names, ahead.is_some(), deadline);
    thread::scope(|scope| {
        let round = &round;
        let beside = others
            .iter()
            .map(|id| scope.spawn(|| round.cluster(id, || {})));
        let beside: Vec<_> = beside.collect();
        round.cluster(first, || {
            beside.into_iter().for_each(|other| drop(other.join()));
            round.take(&round.alone, first);
            round.complete(ahead, first);
            round.take(&round.late, first);
        });
    });
    round.verdict()
}

type Waiting = Mutex<VecDeque<String>>;

/// What the clusters share.
struct Round {
    /// Tests that any cluster may take.
    anywhere: Waiting,
    alone: Waiting,
    /// Tests whose programs were not built yet when the rung began.
    late: Waiting,
    ended: Mutex<Ended>,
    /// One comes up at a time: each makes the images anew.
    coming_up: Mutex<()>,
    deadline: Instant,
}

#[derive(Default)]
struct Ended {
    count: Count,
    failed: Vec<String>,
}

impl Round {
    fn new(names: Vec<String>, programs_are_to_come: bool, deadline: Instant) -> Self {
        let is_late =
            |name: &String| programs_are_to_come && WITH_MORE_PROGRAMS.contains(&name.as_str());
        let is_alone = |name: &String| ALONE.contains(&name.as_str());
        let (late, others): (VecDeque<_>, VecDeque<_>) = names.into_iter().partition(is_late);
        let (alone, anywhere): (VecDeque<_>, VecDeque<_>) = others.into_iter().partition(is_alone);
        Self {
            anywhere: Mutex::new(anywhere),
            alone: Mutex::new(alone),
            late: Mutex::new(late),
            ended: Mutex::default(),
            coming_up: Mutex::new(()),
            deadline,
        }
    }

    /// One cluster from its beginning to its end: it takes tests while any wait, then does the rest.
    fn cluster(&self, id: &'static str, rest: impl FnOnce()) {
        let work = || {
            let standing = {
                let _one = locked(&self.coming_up);
                StandingCluster::up(id, "dev", self.left())?
            };
            self.take(&self.anywhere, id);
            rest();
            standing.down()
        };
        if let Err(error) = work() {
            println!("{}{error:#}", mark(id));
            locked(&self.ended).failed.push(format!("cluster {id}"));
        }
    }

    /// Waits until everything is built, and gives the cluster the images of it that it came up without.
    fn complete(&self, ahead: Option<BuildAhead>, id: &'static str) {
        let Some(mut ahead) = ahead else { return };
        let mut complete = || {
            if ahead.wait(self.left())? != Outcome::Built {
                println!("{}", ahead.said());
            }
            // Where the background failed, this tries again and judges.
            cluster::build::for_tests()?;
            let mut load = shell::cargo();
            load.args(["xtask", "image", "--no-build", "--load", "--id", id]);
            shell::run(load.args(IMAGES_OF_THESE))
        };
        if let Err(error) = complete() {
            println!("{}{error:#}", mark(id));
            let failed = &mut locked(&self.ended).failed;
            failed.push("programs of some tests".to_owned());
        }
    }

    /// Runs what waits, one after the other, until nothing does.
    fn take(&self, waiting: &Waiting, id: &str) {
        while let Some(name) = self.next(waiting, id) {
            let why = match self.test(id, &name) {
                Ok(true) => continue,
                Ok(false) => String::new(),
                Err(error) => format!(" ({error:#})"),
            };
            locked(&self.ended).failed.push(format!("{name}{why}"));
        }
    }

    fn next(&self, waiting: &Waiting, id: &str) -> Option<String> {
        let mut waiting = locked(waiting);
        if self.left().is_zero() {
            return None;
        }
        let name = waiting.pop_front()?;
        println!("{}== {name}; {} wait", mark(id), waiting.len());
        Some(name)
    }

    /// Whether the test held.
    fn test(&self, id: &str, name: &str) -> Result<bool> {
        let mut command = test_command(&[name.to_owned()]);
        command.arg("--").args(OPTIONS);
        command.env(cluster::ID_VARIABLE, id);
        let mut count = Count::default();
        let watched = shell::watch_marked(&mark(id), &mut command, self.left(), |line| {
            count.add_line(line);
        });
        locked(&self.ended).count.add(count);
        let watched = watched?;
        if watched.overdue {
            bail!("ended at the rung's time budget");
        }
        Ok(watched.success)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn verdict(self) -> (Count, Result<()>) {
        let Ended { count, mut failed } = owned(self.ended);
        let waiting = [self.anywhere, self.alone, self.late].map(owned);
        let waiting = waiting.into_iter().flatten();
        failed.extend(waiting.map(|name| format!("{name} (never begun)")));
        let verdict = match failed.is_empty() {
            true => Ok(()),
            false => Err(anyhow!("tests failed: {}", failed.join(", "))),
        };
        (count, verdict)
    }
}

/// What stands before each line of a cluster.
fn mark(id: &str) -> String {
    format!("{id}| ")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owned<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// How many clusters have room; one must do where nothing is known.
fn clusters_in(memory: Option<u64>) -> usize {
    let room = memory.unwrap_or(0) / MEMORY_BYTES;
    usize::try_from(room).unwrap_or(1).clamp(1, IDS.len())
}

/// A cluster of the rung, ended when dropped.
pub(crate) struct StandingCluster {
    id: &'static str,
    /// Which binaries of ours it runs.
    profile: String,
    ended: bool,
}

impl StandingCluster {
    /// Brings it up with Karst, from the binaries of a cargo profile. What an earlier run left goes first.
    pub(crate) fn up(id: &'static str, profile: &str, limit: Duration) -> Result<Self> {
        let standing = Self {
            id,
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
        let watched = shell::watch_marked(&mark(id), &mut up, limit, |_| {})?;
        if !watched.success {
            bail!("cluster {id} did not come up with Karst: its last lines say why");
        }
        Ok(standing)
    }

    /// Through cargo, as the demo is.
    fn verb(&self, words: &[&str]) -> Command {
        let mut command = shell::cargo();
        command
            .args(["xtask", "cluster"])
            .args(words)
            .args(["--id", self.id])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        test::{Rung, names_of},
        tidy::Workspace,
    };

    #[test]
    fn there_are_as_many_clusters_as_there_is_memory_for() {
        let gib = |number: u64| Some(number << 30);
        assert_eq!(clusters_in(None), 1);
        assert_eq!(clusters_in(gib(4)), 1);
        assert_eq!(clusters_in(gib(12)), 2);
        assert_eq!(clusters_in(gib(900)), IDS.len());
    }

    #[test]
    fn a_test_that_was_never_begun_fails_the_rung() {
        let round = Round::new(vec!["late".to_owned()], false, Instant::now());
        assert_eq!(
            round.next(&round.anywhere, "9"),
            None,
            "there is no time left"
        );
        let (_, verdict) = round.verdict();
        assert_eq!(
            verdict.unwrap_err().to_string(),
            "tests failed: late (never begun)"
        );
    }

    #[test]
    fn tests_that_come_last_are_tests_of_the_rung() {
        let workspace = Workspace::load().unwrap();
        let names = names_of(&workspace, Rung::Cluster).unwrap();
        let mut named = ALONE.iter().chain(&WITH_MORE_PROGRAMS);
        assert!(named.all(|one| names.contains(&(*one).to_owned())));
        let round = Round::new(names, true, Instant::now());
        // Of those that run alone, one needs Helm.
        assert_eq!(owned(round.alone).len(), ALONE.len() - 1);
        assert_eq!(owned(round.late).len(), WITH_MORE_PROGRAMS.len());
    }
}
