//! Where the cgroup v2 hierarchy is mounted, and the ids that kernel programs compare.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mount point of the cgroup v2 hierarchy, from `/proc/mounts`.
///
/// Usually `/sys/fs/cgroup`; `/sys/fs/cgroup/unified` beside cgroup v1. `NotFound` when none is
/// mounted.
pub fn cgroup2_root() -> io::Result<PathBuf> {
    mount_point(&fs::read_to_string("/proc/mounts")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 hierarchy in /proc/mounts: mount one with `mount -t cgroup2 none DIR`",
        )
    })
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// The id of a cgroup directory, as `bpf_get_current_cgroup_id` reports it for its processes.
///
/// On 64-bit kernels since 5.5 that is the inode number of the directory.
pub fn cgroup_id(path: impl AsRef<Path>) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// The id of the cgroup v2 that this process is in.
pub fn own_cgroup_id() -> io::Result<u64> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "process is in no cgroup v2"))?;
    cgroup_id(cgroup2_root()?.join(path))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn cgroup_v2_is_found_beside_v1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/my\\040groups cgroup2 rw 0 0\n";
        assert_eq!(
            mount_point(mounts).as_deref(),
            Some(Path::new("/sys/fs/my groups"))
        );
        assert_eq!(mount_point("cgroup /x cgroup rw 0 0\n"), None);
    }
}
