//! The cluster's programs, built ahead of their use while the test ladder climbs its other rungs.
//!
//! Compiling them takes minutes of every processor, and nothing before the cluster rung needs them. A process of its own
//! builds them with what the other rungs leave of the processors, and writes into a log. Its input is a pipe that we hold:
//! when the pipe ends, however we ended, it ends with everything that it started.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{build, daemon};
use crate::shell;

/// How long a wait is silent, and how often it is mentioned after that: it may take minutes.
const SILENT_WAIT: Duration = Duration::from_secs(2);
const MENTION: Duration = Duration::from_secs(10);

/// Ends a process group; what does not listen is killed.
const END_GROUP: &str = r#"kill -s INT -- "-$0"; sleep 2; kill -s KILL -- "-$0""#;

/// Runs a command with the lowest weight for its session. A process's priority holds only against those of its session, or
/// of its control group, where the kernel groups them (`sched(7)`, autogroup); a cluster's pods are in groups of their own.
const YIELD_AS_SESSION: &str = r#"(echo 19 > /proc/self/autogroup) 2> /dev/null; exec "$0" "$@""#;

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything is there.
    Built,
    /// What was waited for is there; it goes on with the rest.
    Enough,
    /// It gave up; its log says why.
    Failed(ExitStatus),
    /// It was ended since it took too long.
    Overdue,
}

/// A build in the background, ended when dropped.
pub(crate) struct BuildAhead {
    child: Child,
    log: PathBuf,
}

impl BuildAhead {
    /// Begins to build what is missing, if anything is. Go must be there: installing it beside other rungs, which install
    /// as well, would fail at apt's lock.
    pub(crate) fn start() -> Result<Option<Self>> {
        let missing = build::missing_for_tests();
        if missing.is_empty() {
            return Ok(None);
        }
        build::ensure_go()?;
        // Not through cargo, whose lock another rung may hold. Nothing has been built yet that would replace this file.
        let program = std::env::current_exe().context("finding the file of this program")?;
        let mut command = at_idle_priority();
        command
            .arg(program)
            .args(["cluster", "build", "--tests", "--while-input"]);
        let ahead = Self::spawn(command, shell::root().join("target/cluster/build.log"))?;
        println!(
            "cluster: building in the background, at idle priority, what is missing of its programs ({}): {}",
            missing.join(", "),
            ahead.log.display()
        );
        Ok(Some(ahead))
    }

    fn spawn(mut command: Command, log: PathBuf) -> Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let out = File::create(&log).with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", shell::line(&command)))?;
        Ok(Self { child, log })
    }

    /// Waits until the build has ended, saying where it is.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Outcome> {
        self.wait_for(|| false, limit)
    }

    /// Waits until a cluster can be made, and no longer: what only some tests run may come later.
    pub(crate) fn wait_for_cluster(&mut self, limit: Duration) -> Result<Outcome> {
        self.wait_for(|| build::missing_for_cluster().is_empty(), limit)
    }

    fn wait_for(&mut self, enough: impl Fn() -> bool, limit: Duration) -> Result<Outcome> {
        let started = Instant::now();
        let mut mention = SILENT_WAIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(match status.success() {
                    true => Outcome::Built,
                    false => Outcome::Failed(status),
                });
            }
            if enough() {
                return Ok(Outcome::Enough);
            }
            let waited = started.elapsed();
            if waited >= limit {
                self.end();
                return Ok(Outcome::Overdue);
            }
            if waited >= mention {
                let log = fs::read(&self.log).unwrap_or_default();
                println!(
                    "    ... waiting until the cluster's programs are built: {}",
                    stage(&String::from_utf8_lossy(&log))
                );
                mention = waited + MENTION;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of what it wrote.
    pub(crate) fn said(&self) -> String {
        daemon::last_lines(&self.log)
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for BuildAhead {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last line of a build's log that says what is being built.
fn stage(log: &str) -> &str {
    let said = log
        .lines()
        .rev()
        .filter_map(|line| line.strip_prefix("cluster: "));
    said.into_iter().next().unwrap_or("it begins")
}

/// A command that runs the rest of its words, as the leader of a session, when nothing else wants a processor.
fn at_idle_priority() -> Command {
    let idle = shell::succeeds(Command::new("chrt").args(["-i", "0", "true"]));
    let mut command = Command::new("setsid");
    command
        .args(["sh", "-c", YIELD_AS_SESSION])
        .args(priority(idle));
    command
}

/// The scheduler's class for idle time where it can be had; the lowest priority of the usual class elsewhere.
fn priority(idle: bool) -> &'static [&'static str] {
    match idle {
        true => &["nice", "-n", "19", "chrt", "-i", "0"],
        false => &["nice", "-n", "19"],
    }
}

/// Ends this process, which leads a session, with everything that it started, as soon as its input ends.
pub(super) fn end_with_input() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = end_group(std::process::id());
    });
}

/// From a group of its own, since nothing of the ended one is left to do it.
fn end_group(leader: u32) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", END_GROUP])
        .arg(leader.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, name: &str) -> BuildAhead {
        let log = std::env::temp_dir().join(format!("karst-ahead-{}-{name}", std::process::id()));
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]);
        BuildAhead::spawn(command, log).unwrap()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_last_stage_is_said() {
        let log = "$ go build\ncluster: built etcd in 3 s\ncluster: building coredns\n$ go build\ngo: downloading\n";
        assert_eq!(stage(log), "building coredns");
        assert_eq!(stage(""), "it begins");
    }

    #[test]
    fn without_the_idle_class_it_is_only_nice() {
        assert!(priority(true).contains(&"chrt"));
        assert_eq!(priority(false), ["nice", "-n", "19"]);
    }

    #[test]
    fn everything_else_of_the_machine_comes_first() {
        let mut command = at_idle_priority();
        command.args(["sh", "-c", "cat /proc/self/autogroup; nice"]);
        let said = shell::capture(&mut command).unwrap();
        assert_eq!(said.lines().last(), Some("19"));
        let group = said.lines().find(|line| line.starts_with("/autogroup-"));
        assert!(group.is_none_or(|line| line.ends_with("nice 19")), "{said}");
    }

    #[test]
    fn how_it_ended_is_told_and_what_it_said() {
        let mut built = sh("echo done", "built");
        assert_eq!(built.wait(LONG).unwrap(), Outcome::Built);
        let mut goes_on = sh("cat", "enough");
        assert_eq!(goes_on.wait_for(|| true, LONG).unwrap(), Outcome::Enough);
        fs::remove_file(&goes_on.log).unwrap();
        let mut failed = sh("echo no network; echo at all >&2; exit 3", "failed");
        assert!(matches!(failed.wait(LONG).unwrap(), Outcome::Failed(_)));
        assert!(failed.said().ends_with("no network\nat all"));
        for ahead in [&built, &failed] {
            fs::remove_file(&ahead.log).unwrap();
        }
    }

    #[test]
    fn a_build_ends_with_its_input() {
        let started = Instant::now();
        let mut overdue = sh("cat; exit 1", "overdue");
        assert_eq!(overdue.wait(Duration::ZERO).unwrap(), Outcome::Overdue);
        let log = overdue.log.clone();
        drop(overdue);
        drop(sh("cat", "overdue"));
        assert!(started.elapsed() < LONG);
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn a_group_is_ended_whole() {
        // The grandchild holds the pipe: its end is seen when both are gone. The first one does not listen.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' INT; sleep 60 & sleep 60"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let started = Instant::now();
        let mut ending = end_group(child.id()).unwrap();
        let mut out = child.stdout.take().unwrap();
        io::copy(&mut out, &mut io::sink()).unwrap();
        assert!(!child.wait().unwrap().success());
        ending.wait().unwrap();
        assert!(started.elapsed() < LONG);
    }
}
