//! Where the cgroup v2 hierarchy is mounted, and the ids that kernel programs compare.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The mount point of the whole cgroup v2 hierarchy, from `/proc/self/mountinfo`.
///
/// Usually `/sys/fs/cgroup`; `/sys/fs/cgroup/unified` beside cgroup v1. In a container, a mount of its own cgroup alone
/// (as its cgroup namespace shows it) does not count where the whole hierarchy is mounted as well. `NotFound` when none
/// is mounted.
pub fn cgroup2_root() -> io::Result<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 hierarchy in /proc/self/mountinfo: mount one with `mount -t cgroup2 none DIR`",
        )
    })
}

/// Fields of proc_pid_mountinfo(5): 4 the root of the mount, 5 the mount point; the type follows a lone dash.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mounts = || {
        mountinfo.lines().filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, path) = (fields.next()?, fields.next()?);
            let cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
            cgroup2.then(|| (root, path.replace("\\040", " ")))
        })
    };
    let whole = mounts().find(|(root, _)| *root == "/");
    whole
        .or_else(|| mounts().next())
        .map(|(_, path)| path.into())
}

/// Makes the calling thread, and threads that it starts, see cgroups as the namespace in `file` does
/// (`/proc/1/ns/cgroup`): paths in `/proc/PID/cgroup` are then those below the host's hierarchy.
pub fn enter_cgroup_namespace(file: impl AsRef<Path>) -> io::Result<()> {
    let namespace = fs::File::open(file)?;
    let kind = Some(LinkNameSpaceType::ControlGroup);
    Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
}

/// The path of a process in the cgroup v2 hierarchy, from the text of its `/proc/PID/cgroup`; without the slash it
/// begins with.
pub fn cgroup2_path(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
}

/// The id of a cgroup directory, as `bpf_get_current_cgroup_id` reports it for its processes.
///
/// On 64-bit kernels since 5.5 that is the inode number of the directory.
pub fn cgroup_id(path: impl AsRef<Path>) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// Whether a cgroup of this id is anywhere below `root`. Ids are not used again while the machine runs.
pub fn cgroup_exists(root: &Path, id: u64) -> bool {
    if cgroup_id(root).is_ok_and(|own| own == id) {
        return true;
    }
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    let mut folders = folders.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    folders.any(|folder| cgroup_exists(&folder.path(), id))
}

/// The id of the cgroup v2 that this process is in.
pub fn own_cgroup_id() -> io::Result<u64> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = cgroup2_path(&own)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "process is in no cgroup v2"))?;
    cgroup_id(cgroup2_root()?.join(path))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn cgroup_v2_is_found_beside_v1() {
        let mounts = "30 20 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 20 0:26 / /sys/fs/my\\040groups rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(mounts).as_deref(),
            Some(Path::new("/sys/fs/my groups"))
        );
        assert_eq!(mount_point("30 20 0:25 / /x rw - cgroup cgroup rw\n"), None);
    }

    #[test]
    fn the_whole_hierarchy_is_preferred_to_a_container_s_own() {
        let own = "40 20 0:26 /kubepods/podx /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let whole = "41 20 0:26 / /host/sys/fs/cgroup rw master:9 - cgroup2 cgroup2 rw\n";
        let both = format!("{own}{whole}");
        assert_eq!(
            mount_point(&both).as_deref(),
            Some(Path::new("/host/sys/fs/cgroup"))
        );
        assert_eq!(
            mount_point(own).as_deref(),
            Some(Path::new("/sys/fs/cgroup"))
        );
    }

    #[test]
    fn the_unified_line_of_a_process_is_found_among_others() {
        assert_eq!(
            cgroup2_path("5:cpu:/a\n0::/kubepods/podx\n"),
            Some("kubepods/podx")
        );
        assert_eq!(cgroup2_path("5:cpu:/a\n"), None);
    }
}
