//! Finds the network namespaces of pods that already run, by the cgroups of their processes.
//!
//! ```text
//!   pod UID ─► …/pod<UID>/… in the cgroup tree ─► cgroup.procs ─► /proc/PID/ns/net ─► cookie
//! ```
//!
//! A process id alone proves nothing, as it can be reused at any moment. So the process must be in the pod's cgroup both
//! before and after its namespace was opened, and the namespace must have the pod's address and not be the node's: a
//! process of the pod may be in a namespace that it made itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use karst_model::{enrollment::NodeWorkload, name::PodUid};
use karst_netns::{Netns, NetnsCookie, cgroup2_path};

use crate::capture::pods::KnownNamespace;

/// Most cgroups that one search looks at, and how deep below the root: a node has some thousand.
const MAX_CGROUPS: usize = 65_536;
const MAX_DEPTH: usize = 16;
/// Most processes of one pod that are tried; the first nearly always does.
const MAX_PROCESSES: usize = 1024;

/// Looks for pods in one cgroup tree.
pub(crate) struct Finder {
    /// Where the whole cgroup v2 hierarchy is mounted.
    pub(crate) cgroup_root: PathBuf,
    /// The node's own namespace: never a pod's.
    pub(crate) host: NetnsCookie,
    /// Where the container runtime keeps names for namespaces, which last longer than a process.
    pub(crate) netns_dir: PathBuf,
}

/// What was not found (yet) of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("the pod has no address yet")]
    Address,
    #[error("no cgroup on this node is named for the pod: it has not started yet, or it has ended")]
    Cgroup,
    #[error(
        "no process of the pod is in a network namespace of its own that has the pod's address"
    )]
    Namespace,
}

impl Finder {
    /// Searches for all of `wanted` in one walk over the cgroups.
    pub(crate) fn find(
        &self,
        wanted: &[&NodeWorkload],
    ) -> Vec<(PodUid, Result<KnownNamespace, FindError>)> {
        let uids = wanted.iter().map(|pod| &*pod.pod_uid.0).collect();
        let cgroups = pod_cgroups(&self.cgroup_root, &uids);
        let one = |pod: &&NodeWorkload| (pod.pod_uid.clone(), self.namespace_of(pod, &cgroups));
        wanted.iter().map(one).collect()
    }

    fn namespace_of(
        &self,
        pod: &NodeWorkload,
        cgroups: &BTreeMap<String, Vec<PathBuf>>,
    ) -> Result<KnownNamespace, FindError> {
        if pod.addresses.is_empty() {
            return Err(FindError::Address);
        }
        let dirs = cgroups.get(&*pod.pod_uid.0).ok_or(FindError::Cgroup)?;
        let mut processes = dirs.iter().flat_map(|dir| processes(dir));
        processes
            .find_map(|pid| self.try_process(pod, pid))
            .ok_or(FindError::Namespace)
    }

    fn try_process(&self, pod: &NodeWorkload, pid: u32) -> Option<KnownNamespace> {
        let uid = &*pod.pod_uid.0;
        let belongs = || {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup"));
            text.is_ok_and(|text| is_in_pod(&text, uid))
        };
        if !belongs() {
            return None;
        }
        let netns = Netns::of_pid(pid).ok()?;
        if !belongs() {
            return None;
        }
        let cookie = netns.cookie().ok()?;
        let is_the_pod_s = cookie != self.host && netns.has_address(&pod.addresses).ok()?;
        is_the_pod_s.then(|| KnownNamespace {
            pod_uid: pod.pod_uid.clone(),
            path: self
                .lasting_name(&netns)
                .unwrap_or_else(|| format!("/proc/{pid}/ns/net").into()),
            cookie,
            addresses: Vec::new(),
            host_veth: None,
            tw_reuse_before: None,
            dns_port: None,
        })
    }

    /// The runtime's own name for the namespace, where it has one.
    fn lasting_name(&self, netns: &Netns) -> Option<PathBuf> {
        let inode = netns.inode().ok()?;
        let mut entries = fs::read_dir(&self.netns_dir).ok()?.flatten();
        let same =
            entries.find(|entry| fs::metadata(entry.path()).is_ok_and(|it| it.ino() == inode));
        let path = same?.path();
        // An inode number may be reused on another file system.
        let verified = Netns::open(&path).and_then(|named| named.cookie()).ok();
        (verified == netns.cookie().ok()).then_some(path)
    }
}

/// The pod whose cgroup has this name: `pod<UID>`, or as systemd writes it `kubepods-burstable-pod<UID>.slice` with
/// underscores.
pub(crate) fn pod_uid_of(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // 36 with dashes; the hash that names a static pod has 32 and none.
    let is_uid =
        matches!(uid.len(), 32..=36) && uid.chars().all(|it| it.is_ascii_hexdigit() || it == '-');
    is_uid.then_some(uid)
}

/// Whether `/proc/PID/cgroup` says that the process is below the pod's cgroup.
fn is_in_pod(proc_cgroup: &str, uid: &str) -> bool {
    let path = cgroup2_path(proc_cgroup).unwrap_or_default();
    path.split('/')
        .any(|name| pod_uid_of(name).as_deref() == Some(uid))
}

/// The cgroups of the wanted pods, by UID. A pod may have one per hierarchy of slices.
fn pod_cgroups(root: &Path, wanted: &BTreeSet<&str>) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut seen = 0;
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        for child in subdirectories(&dir) {
            seen += 1;
            if seen > MAX_CGROUPS {
                tracing::error!(
                    limit = MAX_CGROUPS,
                    "too many cgroups on this node: not all were searched for pods"
                );
                return found;
            }
            let name = child.file_name().unwrap_or_default().to_string_lossy();
            match pod_uid_of(&name) {
                Some(uid) if wanted.contains(uid.as_str()) => {
                    found.entry(uid).or_default().push(child);
                }
                Some(_another) => {}
                None if depth < MAX_DEPTH => open.push((child, depth + 1)),
                None => {}
            }
        }
    }
    found
}

/// The processes in a cgroup and below it, as far as this process-id namespace shows them.
fn processes(dir: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut open = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        // A cgroup may vanish at any time.
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        // Zero stands for a process of another namespace.
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<u32>().ok())
                .filter(|pid| *pid != 0),
        );
        if pids.len() >= MAX_PROCESSES {
            pids.truncate(MAX_PROCESSES);
            return pids;
        }
        if depth < MAX_DEPTH {
            open.extend(subdirectories(&dir).map(|child| (child, depth + 1)));
        }
    }
    pids
}

fn subdirectories(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f7f5e3c-91d3-4c3b-9a52-5a3d2b1c0e9f";

    #[test]
    fn both_drivers_name_a_pod_s_cgroup() {
        let check =
            |name: &str, uid: Option<&str>| assert_eq!(pod_uid_of(name).as_deref(), uid, "{name}");
        check(&format!("pod{UID}"), Some(UID));
        let systemd = UID.replace('-', "_");
        check(
            &format!("kubepods-besteffort-pod{systemd}.slice"),
            Some(UID),
        );
        check(&format!("kubepods-pod{systemd}.slice"), Some(UID));
        check(
            &format!("kubelet-kubepods-burstable-pod{systemd}.slice"),
            Some(UID),
        );
        check(
            "pod3a1b7d1f0a5c4e0a9c1d2e3f40516273",
            Some("3a1b7d1f0a5c4e0a9c1d2e3f40516273"),
        );
        check("kubepods", None);
        check("kubepods.slice", None);
        check("kubepods-besteffort.slice", None);
        check("podman", None);
        check("podman-pod.slice", None);
        check(&format!("cri-containerd-{UID}.scope"), None);
    }

    #[test]
    fn a_process_belongs_to_the_pod_that_its_cgroup_names() {
        let cgroupfs = format!("4:cpu:/x\n0::/lab/kubepods/besteffort/pod{UID}/c0ffee\n");
        assert!(is_in_pod(&cgroupfs, UID));
        assert!(!is_in_pod(
            &cgroupfs,
            "00000000-91d3-4c3b-9a52-5a3d2b1c0e9f"
        ));
        let systemd = UID.replace('-', "_");
        let systemd =
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/cri-containerd-1.scope\n");
        assert!(is_in_pod(&systemd, UID));
        let other_hierarchy_only = format!("4:cpu:/kubepods/pod{UID}/c\n0::/\n");
        assert!(!is_in_pod(&other_hierarchy_only, UID));
    }

    #[test]
    fn cgroups_and_their_processes_are_found_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: String, procs: &str| {
            let dir = root.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), procs).unwrap();
        };
        make(format!("a/kubepods/besteffort/pod{UID}"), "");
        make(format!("a/kubepods/besteffort/pod{UID}/sandbox"), "0\n41\n");
        make(format!("a/kubepods/besteffort/pod{UID}/app/inner"), "42\n");
        make(
            "a/kubepods/pod11111111-91d3-4c3b-9a52-5a3d2b1c0e9f/c".to_owned(),
            "43\n",
        );
        let found = pod_cgroups(root.path(), &[UID].into());
        assert_eq!(found.keys().collect::<Vec<_>>(), [UID]);
        let mut pids = processes(&found[UID][0]);
        pids.sort_unstable();
        assert_eq!(pids, [41, 42]);
    }
}
