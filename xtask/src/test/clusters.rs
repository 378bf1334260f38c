//! The cluster rung: some clusters, each of which takes the next test that waits.
//!
//! A test on a cluster mostly waits: for pods that start, rollouts that go on, leases that end. With two clusters the
//! processors have something to do meanwhile, and each test still has a cluster to itself.

use std::{
    collections::VecDeque,
    fs,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use super::{Count, test_command};
use crate::{cluster, release, shell};

/// The rung's clusters: not the one that a developer has running.
pub(crate) const IDS: [&str; 2] = ["9", "8"];

/// Memory that must be there for each: twice what one was seen to take with the largest test on it.
const MEMORY_BYTES: u64 = 6 << 30;

/// What a cluster's tests are run with. What they have measured is shown also where it holds.
const OPTIONS: [&str; 2] = ["--test-threads=1", "--nocapture"];

/// Runs the tests on as many clusters as there is memory for; every test is run even when an earlier one failed.
pub(super) fn run(names: Vec<String>, deadline: Instant) -> (Count, Result<()>) {
    let round = Round {
        waiting: Mutex::new(names.into()),
        ended: Mutex::default(),
        coming_up: Mutex::new(()),
        deadline,
    };
    let memory = available_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let ids = &IDS[..clusters_in(memory)];
    thread::scope(|scope| {
        for id in ids {
            let round = &round;
            scope.spawn(move || {
                if let Err(error) = round.climb(id) {
                    println!("{}{error:#}", mark(id));
                    locked(&round.ended).failed.push(format!("cluster {id}"));
                }
            });
        }
    });
    round.verdict()
}

/// What the clusters share.
struct Round {
    waiting: Mutex<VecDeque<String>>,
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
    /// One cluster, from its beginning to its end.
    fn climb(&self, id: &'static str) -> Result<()> {
        let standing = {
            let _alone = locked(&self.coming_up);
            StandingCluster::up(id, "dev", self.left())?
        };
        while let Some(name) = self.next(id) {
            let held = self.test(id, &name);
            if !matches!(held, Ok(true)) {
                let why = held.err().map(|error| format!(" ({error:#})"));
                let failed = format!("{name}{}", why.unwrap_or_default());
                locked(&self.ended).failed.push(failed);
            }
        }
        standing.down()
    }

    fn next(&self, id: &str) -> Option<String> {
        let mut waiting = locked(&self.waiting);
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
        let ended = self.ended.into_inner();
        let Ended { count, mut failed } = ended.unwrap_or_else(PoisonError::into_inner);
        let waiting = self.waiting.into_inner();
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        failed.extend(waiting.iter().map(|name| format!("{name} (never begun)")));
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

/// Bytes that programs may still take, from `/proc/meminfo`.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
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

    #[test]
    fn there_are_as_many_clusters_as_there_is_memory_for() {
        let gib = |number: u64| Some(number << 30);
        assert_eq!(clusters_in(None), 1);
        assert_eq!(clusters_in(gib(4)), 1);
        assert_eq!(clusters_in(gib(12)), 2);
        assert_eq!(clusters_in(gib(900)), IDS.len());
        let meminfo = "MemTotal:       24684536 kB\nMemAvailable:   12582912 kB\n";
        assert_eq!(available_memory(meminfo), gib(12));
        assert_eq!(available_memory("nothing"), None);
    }

    #[test]
    fn a_test_that_was_never_begun_fails_the_rung() {
        let round = Round {
            waiting: Mutex::new(VecDeque::from(["late".to_owned()])),
            ended: Mutex::default(),
            coming_up: Mutex::new(()),
            deadline: Instant::now(),
        };
        assert_eq!(round.next("9"), None, "there is no time left");
        let (_, verdict) = round.verdict();
        assert_eq!(
            verdict.unwrap_err().to_string(),
            "tests failed: late (never begun)"
        );
    }
}
