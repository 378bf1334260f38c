//! The cluster's long-lived processes on the host: started away from the terminal, remembered, and ended for sure.
//!
//! A process is remembered by its number *and* the moment of its start, so that a number that the system has given to
//! somebody else meanwhile is never killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::shell;

/// How long a killed process may take to go.
const END: Duration = Duration::from_secs(20);

/// A process that lives: its number and its start in clock ticks since the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// As the host sees it.
    pub(super) pid: u32,
    started: u64,
}

impl Process {
    /// The process of this number now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = start_of(&stat)?;
        Some(Self { pid, started })
    }

    /// Whether it is still this one.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills it and waits until it is gone.
    pub(super) fn kill(self) -> Result<()> {
        if !self.lives() {
            return Ok(());
        }
        shell::succeeds(Command::new("kill").args(["-KILL", &self.pid.to_string()]));
        shell::wait_for(&format!("process {} is gone", self.pid), END, || {
            (!self.lives()).then_some(())
        })
    }

    /// Resident memory in MiB, of the process and what it has started.
    pub(super) fn memory_mib(self) -> u64 {
        memory_kib(self.pid) / 1024
    }
}

fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let own = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let theirs = children
        .split_whitespace()
        .flat_map(str::parse)
        .map(memory_kib);
    own.unwrap_or(0) + theirs.sum::<u64>()
}

/// The start time in a line of `/proc/PID/stat`: the 22nd field, unless the process is a zombie. The second field, the
/// program's name, may hold anything.
fn start_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The folders where processes are remembered and where they write.
pub(super) struct Daemons {
    state: PathBuf,
}

impl Daemons {
    /// Those of the cluster with this state folder.
    pub(super) fn new(state: &Path) -> Result<Self> {
        for folder in ["pid", "log"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(Self {
            state: state.to_owned(),
        })
    }

    fn record(&self, name: &str) -> PathBuf {
        self.state.join("pid").join(name)
    }

    /// What the process writes.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.state.join("log").join(format!("{name}.log"))
    }

    /// The process of this name, if it lives.
    pub(super) fn find(&self, name: &str) -> Option<Process> {
        let record = fs::read(self.record(name)).ok()?;
        let process: Process = serde_json::from_slice(&record).ok()?;
        process.lives().then_some(process)
    }

    /// Everything that is remembered and lives, by name.
    pub(super) fn all(&self) -> Vec<(String, Process)> {
        let Ok(records) = fs::read_dir(self.state.join("pid")) else {
            return Vec::new();
        };
        let names = records
            .flatten()
            .map(|record| record.file_name().to_string_lossy().into_owned());
        let mut all: Vec<_> = names
            .filter_map(|name| self.find(&name).map(|process| (name, process)))
            .collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    /// Starts a command in a session of its own unless its process lives.
    pub(super) fn start(&self, name: &str, command: &Command) -> Result<()> {
        if self.find(name).is_some() {
            return Ok(());
        }
        let log = self.log(name);
        let out = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut session = Command::new("setsid");
        session.arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        let child = session
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", shell::line(command)))?;
        let process = Process::of(child.id())
            .with_context(|| format!("{name} ended at once: see {}", log.display()))?;
        self.remember(name, process)
    }

    /// Remembers a process that something else has started.
    pub(super) fn remember(&self, name: &str, process: Process) -> Result<()> {
        let record = self.record(name);
        fs::write(&record, serde_json::to_vec(&process)?)
            .with_context(|| format!("writing {}", record.display()))
    }

    /// Kills the process of this name.
    pub(super) fn kill(&self, name: &str) -> Result<()> {
        if let Some(process) = self.find(name) {
            process.kill()?;
        }
        let _ = fs::remove_file(self.record(name));
        Ok(())
    }

    /// The last lines that a process wrote, for an error message.
    pub(super) fn said(&self, name: &str) -> String {
        last_lines(&self.log(name))
    }
}

/// The end of a log file.
pub(super) fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(8);
    format!(
        "the end of {}:\n{}",
        log.display(),
        lines[from..].join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9";
        assert_eq!(start_of(stat), Some(4242));
        assert_eq!(start_of(&stat.replace(" S ", " Z ")), None);
    }

    #[test]
    fn a_number_that_was_given_again_is_somebody_else() {
        let own = Process::of(std::process::id()).unwrap();
        let earlier = Process {
            started: own.started - 1,
            ..own
        };
        assert!(own.lives());
        assert!(!earlier.lives());
    }
}
