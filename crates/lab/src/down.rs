//! Takes a lab away, whatever state it is in: everything it made is found by its name.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::{LabError, cgroup, mesh, names::LabName, network};

/// The daemon's process, told apart from a later one with the same number by its start time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DaemonRecord {
    pid: u32,
    /// In clock ticks since boot, from `/proc/<pid>/stat`.
    start: u64,
}

impl DaemonRecord {
    pub(crate) fn own() -> Option<Self> {
        let pid = std::process::id();
        Some(Self {
            pid,
            start: start_time(pid)?,
        })
    }

    /// Whether that very process still runs.
    pub(crate) fn runs(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    fn file(lab: &LabName) -> std::path::PathBuf {
        lab.state_dir().join("lab.json")
    }

    pub(crate) fn write(&self, lab: &LabName) -> Result<(), LabError> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        fs::write(Self::file(lab), text).map_err(LabError::io("writing lab.json"))
    }

    pub(crate) fn read(lab: &LabName) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(lab)).ok()?).ok()
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` for a process that is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Removes everything of the lab: processes, kernel programs, namespaces, cgroups, state. Nothing there is fine.
///
/// # Errors
/// What could not be removed; the rest is gone all the same.
pub fn down(lab: &LabName) -> Result<(), LabError> {
    stop_daemon(lab);
    let mut left = Vec::new();
    let mut note = |result: Result<(), LabError>| {
        if let Err(error) = result {
            left.push(error.chain());
        }
    };
    // Processes first: an agent that still ran would put its programs back.
    note(cgroup::path(lab, "").and_then(|path| cgroup::destroy(&path)));
    for node in lab.pinned_nodes() {
        note(mesh::remove_agent(lab, &node));
    }
    for namespace in lab.namespaces() {
        note(network::delete_namespace(&namespace));
    }
    note(remove_state(&lab.state_dir()));
    if left.is_empty() {
        Ok(())
    } else {
        Err(LabError::LeftBehind {
            what: "the lab could not be removed completely;",
            left,
        })
    }
}

/// Kills the daemon and waits for its end: it would start again what we stop.
fn stop_daemon(lab: &LabName) {
    let Some(record) = DaemonRecord::read(lab).filter(DaemonRecord::runs) else {
        return;
    };
    if let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) {
        let _already_gone = kill_process(pid, Signal::KILL);
    }
    for _ in 0..1_000 {
        if !record.runs() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn remove_state(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(LabError::Io {
            doing: format!("removing {}", dir.display()),
            source: error,
        }),
        _ => {
            // Only when this was the last lab; folders that still hold something stay.
            for above in dir.ancestors().skip(1).take(2) {
                let _not_empty = fs::remove_dir(above);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let own = DaemonRecord::own().unwrap();
        assert!(own.runs());
        assert!(
            !DaemonRecord {
                pid: own.pid,
                start: own.start + 1
            }
            .runs()
        );
        assert!(
            !DaemonRecord {
                pid: u32::MAX,
                start: 0
            }
            .runs()
        );
    }
}
