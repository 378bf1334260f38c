//! A node's control groups: one that its pods are below, and one in version 2 for its kubelet alone.
//!
//! On a real node the kubelet is a unit of systemd and so in a group of its own; agents tell its probes by that.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::plan::NodePlan;
use crate::shell;

const ROOT: &str = "/sys/fs/cgroup";

/// How long the kernel may take to let go of a group whose processes were killed.
const EMPTY: Duration = Duration::from_secs(20);

/// The controllers that the kubelet wants below its root, in version 2.
const CONTROLLERS: &str = "+cpu +cpuset +memory +pids +io";

/// How the machine has its groups mounted.
enum Layout {
    /// Version 2 alone.
    Unified,
    /// Version 1, with version 2 beside it in this folder.
    Hybrid(PathBuf),
}

fn layout() -> Result<Layout> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let place = second_version(&mounts).context(
        "no cgroup2 is mounted: mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), since capture needs it",
    )?;
    Ok(if place == Path::new(ROOT) {
        Layout::Unified
    } else {
        Layout::Hybrid(place)
    })
}

/// Where version 2 is mounted, from a list of mounts.
fn second_version(mounts: &str) -> Option<PathBuf> {
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut places = fields.filter_map(|fields| match fields[..] {
        [_, place, "cgroup2", ..] => Some(PathBuf::from(place)),
        _ => None,
    });
    places.next()
}

/// The folder whose `cgroup.procs` puts a process into the kubelet's group.
pub(super) fn kubelet(node: &NodePlan) -> Result<PathBuf> {
    let place = match layout()? {
        Layout::Unified => PathBuf::from(ROOT),
        Layout::Hybrid(place) => place,
    };
    Ok(place.join(format!("{}-kubelet", node.host_name())))
}

/// The root of the node's pods, as the kubelet's configuration names it.
pub(super) fn pods(node: &NodePlan) -> String {
    format!("/{}", node.host_name())
}

/// Makes the node's groups.
pub(super) fn make(node: &NodePlan) -> Result<()> {
    let kubelet = kubelet(node)?;
    fs::create_dir_all(&kubelet).with_context(|| format!("making {}", kubelet.display()))?;
    match layout()? {
        Layout::Unified => unified(node),
        Layout::Hybrid(_) => hybrid(node),
    }
}

/// Whether groups can be made here.
pub(super) fn preflight() -> Result<()> {
    let mut parents = match layout()? {
        Layout::Unified => {
            switch_on()?;
            vec![PathBuf::from(ROOT)]
        }
        Layout::Hybrid(place) => vec![place],
    };
    parents.extend(first_version()?);
    for parent in parents {
        let tried = parent.join("karst-preflight");
        fs::create_dir_all(&tried)
            .and_then(|()| fs::remove_dir(&tried))
            .with_context(|| format!("making a control group in {}", parent.display()))?;
    }
    Ok(())
}

/// Switches controllers on below the root group. A container's root group has processes, which only the machine's own
/// may have beside controllers: they move into a group below it.
fn switch_on() -> Result<()> {
    let root = Path::new(ROOT);
    let switch = root.join("cgroup.subtree_control");
    let first = fs::write(&switch, CONTROLLERS);
    if first.is_ok() {
        return Ok(());
    }
    let init = root.join("init");
    fs::create_dir_all(&init).with_context(|| format!("making {}", init.display()))?;
    let processes = fs::read_to_string(root.join("cgroup.procs"))?;
    for process in processes.lines() {
        // One that has ended meanwhile, or belongs to the kernel, cannot be moved.
        let _ = fs::write(init.join("cgroup.procs"), process);
    }
    fs::write(&switch, CONTROLLERS).with_context(|| {
        format!(
            "switching {CONTROLLERS} on in {}: a container needs a writable cgroup file system of its own",
            switch.display()
        )
    })
}

fn unified(node: &NodePlan) -> Result<()> {
    switch_on()?;
    let pods = Path::new(ROOT).join(node.host_name());
    fs::create_dir_all(&pods)?;
    fs::write(pods.join("cgroup.subtree_control"), CONTROLLERS)?;
    Ok(())
}

/// One folder below each controller; cpuset's must be filled before a process may enter it.
fn hybrid(node: &NodePlan) -> Result<()> {
    let controllers = first_version()?;
    ensure!(
        !controllers.is_empty(),
        "no controller of cgroup version 1 is mounted below {ROOT}"
    );
    for controller in controllers {
        let pods = controller.join(node.host_name());
        fs::create_dir_all(&pods).with_context(|| format!("making {}", pods.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(controller.join(file)) {
                fs::write(pods.join(file), all)?;
            }
        }
    }
    Ok(())
}

/// The mounted controllers of version 1. `cpu,cpuacct` and the like are links to one folder each.
fn first_version() -> Result<Vec<PathBuf>> {
    let folders = fs::read_dir(ROOT).with_context(|| format!("listing {ROOT}"))?;
    let mut controllers: Vec<PathBuf> = folders
        .flatten()
        .filter_map(|entry| entry.path().canonicalize().ok())
        .filter(|folder| folder.join("cgroup.clone_children").exists())
        .collect();
    controllers.sort();
    controllers.dedup();
    Ok(controllers)
}

/// Removes the node's groups with everything below; its processes are gone.
pub(super) fn remove(node: &NodePlan) -> Result<()> {
    let mut parents = first_version().unwrap_or_default();
    if let Some(place) = kubelet(node)?.parent() {
        parents.push(place.to_owned());
    }
    let names = [node.host_name(), format!("{}-kubelet", node.host_name())];
    for parent in parents {
        for group in names.iter().map(|name| parent.join(name)) {
            shell::wait_for(&format!("{} is removed", group.display()), EMPTY, || {
                remove_tree(&group).then_some(())
            })?;
        }
    }
    Ok(())
}

/// Removes a group and those below it, deepest first; whether it is gone.
fn remove_tree(group: &Path) -> bool {
    let Ok(inside) = fs::read_dir(group) else {
        return !group.exists();
    };
    for folder in inside.flatten().filter(|entry| entry.path().is_dir()) {
        remove_tree(&folder.path());
    }
    fs::remove_dir(group).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_is_found_alone_and_beside_version_one() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            second_version(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(second_version(unified), Some(PathBuf::from(ROOT)));
        assert_eq!(second_version("proc /proc proc rw 0 0\n"), None);
    }
}
