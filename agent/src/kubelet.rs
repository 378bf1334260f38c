//! Which cgroups the kubelet's probes come from: found by itself, and again after a restart of the kubelet.
//!
//! systemd makes a new cgroup, with a new id, each time it starts a unit. Probes may pass only from that cgroup, so it is
//! looked at every second, which costs two small reads.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use karst_netns::{cgroup_id, cgroup2_path};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::error_chain::Chain;

use crate::capture::{datapath::Datapath, find::pod_uid_of};

/// Names of the processes that are or contain a kubelet: itself, k3s, MicroK8s.
const NAMES: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "k3s", "kubelite"];
/// How often the kubelet is looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// As many as the kernel programs have room for.
const MAX_KUBELETS: usize = 3;

/// Looks for kubelets on this node.
pub(crate) struct Kubelets {
    pub(crate) proc: PathBuf,
    pub(crate) cgroup_root: PathBuf,
    /// `/proc/PID/ns/net` of the kubelet has this inode number: the node's.
    pub(crate) host_netns_inode: u64,
}

/// A kubelet that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kubelet {
    pid: u32,
    /// Clock ticks since boot: tells a process from a later one with the same number.
    started: String,
    /// Below the root of the cgroup v2 hierarchy.
    cgroup: PathBuf,
    pub(crate) cgroup_id: u64,
}

impl Kubelets {
    /// The kubelets that run now.
    pub(crate) fn find(&self) -> Vec<Kubelet> {
        let processes = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found: Vec<_> = pids.filter_map(|pid| self.kubelet(pid)).collect();
        found.sort_by_key(|kubelet| kubelet.pid);
        found.dedup_by_key(|kubelet| kubelet.cgroup_id);
        if found.len() > MAX_KUBELETS {
            tracing::warn!(
                found = found.len(),
                limit = MAX_KUBELETS,
                "too many kubelets: the probes of some will be refused under STRICT"
            );
            found.truncate(MAX_KUBELETS);
        }
        found
    }

    /// Whether this process is a kubelet: by name, of root, in the node's namespaces, and in no pod. A pod could give
    /// its process any name, and with hostNetwork and hostPID have the namespaces too.
    fn kubelet(&self, pid: u32) -> Option<Kubelet> {
        let dir = self.proc.join(pid.to_string());
        let name = fs::read_to_string(dir.join("comm")).ok()?;
        if !NAMES.contains(&name.trim_end()) || fs::metadata(&dir).ok()?.uid() != 0 {
            return None;
        }
        let same_namespaces = fs::metadata(dir.join("ns/net")).ok()?.ino() == self.host_netns_inode
            && is_in_this_pid_namespace(&fs::read_to_string(dir.join("status")).ok()?);
        let text = fs::read_to_string(dir.join("cgroup")).ok()?;
        let path = cgroup2_path(&text)?;
        let in_a_pod = path.split('/').any(|name| pod_uid_of(name).is_some());
        if !same_namespaces || in_a_pod || path.starts_with("../") {
            return None;
        }
        Some(Kubelet {
            pid,
            started: started(&dir)?,
            cgroup_id: cgroup_id(self.cgroup_root.join(path)).ok()?,
            cgroup: path.into(),
        })
    }

    /// Whether the process is still the same, in the same cgroup.
    fn is_current(&self, kubelet: &Kubelet) -> bool {
        let dir = self.proc.join(kubelet.pid.to_string());
        let id = cgroup_id(self.cgroup_root.join(&kubelet.cgroup)).ok();
        started(&dir).as_deref() == Some(&kubelet.started) && id == Some(kubelet.cgroup_id)
    }

    /// Keeps the kernel programs told, until shutdown. `known` is what they were told at the start.
    pub(crate) async fn follow(
        self,
        mut known: Vec<Kubelet>,
        datapath: Arc<dyn Datapath>,
        shutdown: Shutdown,
    ) {
        note(&known);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_PERIOD) => {}
                () = shutdown.cancelled() => return,
            }
            if !known.is_empty() && known.iter().all(|kubelet| self.is_current(kubelet)) {
                continue;
            }
            let found = self.find();
            // A kubelet that is away for a moment keeps its place: nobody else can be in its cgroup.
            if found.is_empty() || found == known {
                continue;
            }
            let ids: Vec<_> = found.iter().map(|kubelet| kubelet.cgroup_id).collect();
            match datapath.set_kubelet_cgroups(&ids) {
                Ok(()) => {
                    note(&found);
                    known = found;
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "cannot tell the kernel programs the kubelet's cgroup");
                }
            }
        }
    }
}

fn note(kubelets: &[Kubelet]) {
    if kubelets.is_empty() {
        tracing::warn!(
            "no kubelet was found among the node's processes: its probes of captured pods pass only as plain text does; \
            the agent needs hostPID, or name the cgroup with --kubelet-cgroup"
        );
    }
    for kubelet in kubelets {
        let cgroup = Path::new("/").join(&kubelet.cgroup);
        tracing::info!(pid = kubelet.pid, cgroup = %cgroup.display(), "the kubelet's probes may pass");
        if kubelet.cgroup.as_os_str().is_empty() {
            tracing::warn!(
                "the kubelet runs in the root cgroup: every process of the node there may reach declared probe \
                ports of captured pods; run the kubelet as a service of its own"
            );
        }
    }
}

/// `NSpid` lists the process's number in each namespace from the reader's inwards.
fn is_in_this_pid_namespace(status: &str) -> bool {
    let mut lines = status.lines();
    let numbers = lines.find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_ascii_whitespace().count() == 1)
}

/// Field 22 of proc_pid_stat(5). The name in field 2 is in parentheses and may hold blanks.
fn started(dir: &Path) -> Option<String> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up node: `/proc` and a cgroup tree.
    struct World {
        dir: tempfile::TempDir,
        kubelets: Kubelets,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (proc, cgroup_root) = (dir.path().join("proc"), dir.path().join("cgroup"));
            fs::create_dir_all(&proc).unwrap();
            fs::create_dir_all(&cgroup_root).unwrap();
            fs::write(dir.path().join("net"), "").unwrap();
            let host_netns_inode = fs::metadata(dir.path().join("net")).unwrap().ino();
            let kubelets = Kubelets {
                proc,
                cgroup_root,
                host_netns_inode,
            };
            Self { dir, kubelets }
        }

        fn process(&self, pid: u32, name: &str, cgroup: &str) -> PathBuf {
            let dir = self.kubelets.proc.join(pid.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::create_dir_all(self.kubelets.cgroup_root.join(cgroup)).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
            fs::write(dir.join("cgroup"), format!("0::/{cgroup}\n")).unwrap();
            fs::write(
                dir.join("status"),
                format!("Name:\t{name}\nNSpid:\t{pid}\n"),
            )
            .unwrap();
            let fields = ["0"; 18].join(" ");
            fs::write(
                dir.join("stat"),
                format!("{pid} (a) b) S {fields} 77{pid} 0\n"),
            )
            .unwrap();
            std::os::unix::fs::symlink(self.dir.path().join("net"), dir.join("ns/net")).unwrap();
            dir
        }

        fn pids(&self) -> Vec<u32> {
            self.kubelets
                .find()
                .iter()
                .map(|kubelet| kubelet.pid)
                .collect()
        }
    }

    #[test]
    fn the_kubelet_is_found_by_name_among_processes() {
        let world = World::new();
        world.process(10, "containerd", "system.slice/containerd.service");
        world.process(11, "kubelet", "system.slice/kubelet.service");
        let found = world.kubelets.find();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].cgroup, Path::new("system.slice/kubelet.service"));
        assert_eq!(found[0].started, "7711");
    }

    #[test]
    fn a_pod_s_process_is_no_kubelet_whatever_its_name() {
        let world = World::new();
        let pod = "kubepods/pod0f7f5e3c-91d3-4c3b-9a52-5a3d2b1c0e9f/c";
        world.process(10, "kubelet", pod);
        let nested = world.process(11, "kubelet", "system.slice/docker-1.scope");
        fs::write(nested.join("status"), "NSpid:\t11\t1\n").unwrap();
        let elsewhere = world.process(12, "kubelet", "machine.slice/other");
        fs::remove_file(elsewhere.join("ns/net")).unwrap();
        fs::write(elsewhere.join("ns/net"), "").unwrap();
        assert_eq!(world.pids(), [0_u32; 0]);
    }

    #[test]
    fn a_restarted_kubelet_is_another() {
        let world = World::new();
        let service = "system.slice/kubelet.service";
        world.process(11, "kubelet", service);
        let before = world.kubelets.find().remove(0);
        assert!(world.kubelets.is_current(&before));
        // As systemd does: the process ends, its cgroup goes, and both come anew.
        fs::remove_dir_all(world.kubelets.proc.join("11")).unwrap();
        assert!(!world.kubelets.is_current(&before));
        fs::rename(
            world.kubelets.cgroup_root.join(service),
            world.dir.path().join("old"),
        )
        .unwrap();
        world.process(12, "kubelet", service);
        let after = world.kubelets.find().remove(0);
        assert_eq!(after.pid, 12);
        assert_ne!(after.cgroup_id, before.cgroup_id);
    }
}
