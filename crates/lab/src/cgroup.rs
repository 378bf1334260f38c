//! The lab's cgroups: one folder for the lab, below it kubelet (the daemon), controller, and per node its agent and
//! pods. They tell callers apart for the kernel programs, and killing a folder kills whoever hides in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{LabError, names::LabName};

/// How long the kernel may take to empty a killed cgroup.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Folder of a lab's part of the hierarchy: `karst-<lab>/<path>`.
pub(crate) fn path(lab: &LabName, below: &str) -> Result<PathBuf, LabError> {
    let root =
        karst_netns::cgroup2_root().map_err(LabError::io("finding the cgroup v2 hierarchy"))?;
    Ok(root.join(lab.cgroup()).join(below))
}

/// Makes the folder and those above it.
pub(crate) fn create(lab: &LabName, below: &str) -> Result<PathBuf, LabError> {
    let path = path(lab, below)?;
    fs::create_dir_all(&path).map_err(LabError::io(format!("making cgroup {}", path.display())))?;
    Ok(path)
}

/// Moves the calling process, with all its threads, into `cgroup`.
pub(crate) fn enter(cgroup: &Path) -> Result<(), LabError> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").map_err(LabError::io(format!(
        "entering cgroup {}",
        cgroup.display()
    )))
}

/// Kills every process at and below `cgroup`, waits until none is left and removes the folders. Nothing there is fine.
pub(crate) fn destroy(cgroup: &Path) -> Result<(), LabError> {
    if !cgroup.exists() {
        return Ok(());
    }
    let doing = || format!("killing cgroup {}", cgroup.display());
    fs::write(cgroup.join("cgroup.kill"), "1").map_err(LabError::io(doing()))?;
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        match remove(cgroup) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LabError::Io {
                    doing: doing(),
                    source: error,
                });
            }
            _ => return Ok(()),
        }
    }
}

fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}
