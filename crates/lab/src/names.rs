//! Every name that a lab leaves on the machine derives from the lab's own, so that removal needs no memory.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::LabError;

/// Where labs keep their state; one folder per lab.
const STATE_ROOT: &str = "/run/karst/lab";
/// Where named network namespaces live; `ip netns` uses the same folder.
const NETNS_ROOT: &str = "/run/netns";

/// Name of a lab: letters and digits only, so that no lab's names are a prefix of another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let fits = (1..=12).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(LabError::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// Names of all labs that have a state folder.
    pub fn all() -> Vec<Self> {
        let mut names: Vec<Self> = std::fs::read_dir(STATE_ROOT)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        names
    }

    /// What every namespace of the lab starts with.
    pub(crate) fn prefix(&self) -> String {
        format!("karst-{self}-")
    }

    /// The namespace that holds the link between nodes, and the controller.
    pub(crate) fn fabric(&self) -> String {
        format!("{}.fabric", self.prefix())
    }

    pub(crate) fn node(&self, node: &str) -> String {
        format!("{}{node}", self.prefix())
    }

    pub(crate) fn pod(&self, node: &str, namespace: &str, pod: &str) -> String {
        format!("{}{node}-{namespace}.{pod}", self.prefix())
    }

    /// Folder of the lab's state.
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.0)
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state_dir().join("lab.sock")
    }

    /// Folder of resolved objects: what the controller reads.
    pub fn objects_dir(&self) -> PathBuf {
        self.state_dir().join("objects")
    }

    /// Folder of log files.
    pub fn logs_dir(&self) -> PathBuf {
        self.state_dir().join("logs")
    }

    /// The agent's run folder (sockets, state) of one node.
    pub fn agent_dir(&self, node: &str) -> PathBuf {
        self.state_dir().join("agents").join(node)
    }

    /// Where one node's agent pins its maps and programs.
    pub fn pin_dir(&self, node: &str) -> PathBuf {
        Path::new(PIN_ROOT)
            .join("karst")
            .join(format!("{}-{node}", self.0))
    }

    /// Every node of this lab that has a pin folder.
    pub(crate) fn pinned_nodes(&self) -> Vec<String> {
        let start = format!("{}-", self.0);
        let folders = children(&Path::new(PIN_ROOT).join("karst"), &start);
        folders
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.strip_prefix(&start)?.to_owned()))
            .collect()
    }

    /// Every namespace of this lab that is there, by name.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let paths = children(Path::new(NETNS_ROOT), &self.prefix());
        paths
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect()
    }

    /// The lab's folder in the cgroup v2 hierarchy, relative to its root.
    pub(crate) fn cgroup(&self) -> String {
        format!("karst-{self}")
    }
}

/// The BPF file system.
pub(crate) const PIN_ROOT: &str = "/sys/fs/bpf";

/// Path of a named network namespace.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_ROOT).join(name)
}

fn children(dir: &Path, start: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_cannot_be_confused_are_taken() {
        for good in ["a", "demo", "t1"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "a-b", "A", "../x", "averyverylongname", "a.b"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }
}
