//! The first steps of a container's process, inside its own mount and UTS namespaces: enter cgroup and network
//! namespace, mount, set the host name, become the user, execute. Runs as the hidden command `karst lab-pod-init`.
//!
//! Lab pods share the host's file system. Private to each container are `/tmp` and `/mnt` (empty), the files that
//! Kubernetes writes (`/etc/resolv.conf`, `/etc/hosts`), and the programs of this build under [`BIN_DIR`].

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use karst_netns::Netns;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_remount};
use serde::{Deserialize, Serialize};

/// Where a container finds the programs of this build (`karst-echo`), first on its PATH.
pub const BIN_DIR: &str = "/mnt/karst/bin";
/// The rest of a container's PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that a container's process needs to know before it becomes the command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Init {
    pub(crate) netns: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) hostname: String,
    /// Folder with `resolv.conf` and `hosts` of the pod.
    pub(crate) etc: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) directory: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) command: Vec<String>,
}

/// A file or folder of a volume and its place in the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// Becomes the container that the file `spec` describes; returns only with an error.
pub fn become_container(spec: &Path) -> Result<std::convert::Infallible, String> {
    let text = fs::read_to_string(spec).map_err(|error| format!("{}: {error}", spec.display()))?;
    let init: Init =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", spec.display()))?;
    init.prepare()?;
    let netns =
        Netns::open(&init.netns).map_err(|error| format!("{}: {error}", init.netns.display()))?;
    let failed = netns
        .run(|| init.execute())
        .map_err(|error| format!("entering the pod's namespace: {error}"))?;
    Err(format!("cannot start {}: {failed}", init.command.join(" ")))
}

impl Init {
    fn prepare(&self) -> Result<(), String> {
        crate::cgroup::enter(&self.cgroup).map_err(|error| error.chain())?;
        rustix::system::sethostname(self.hostname.as_bytes())
            .map_err(|error| format!("host name {:?}: {error}", self.hostname))?;
        self.private_folders()
            .map_err(|error| format!("private folders: {error}"))?;
        for mount in &self.mounts {
            mount
                .place()
                .map_err(|error| format!("volume at {}: {error}", mount.target.display()))?;
        }
        Ok(())
    }

    fn private_folders(&self) -> io::Result<()> {
        // The programs first: they may lie under /tmp themselves.
        mount("karst", "/mnt", "tmpfs", MountFlags::empty(), c"mode=0755")?;
        fs::create_dir_all(BIN_DIR)?;
        mount_bind(&self.bin, BIN_DIR)?;
        mount("karst", "/tmp", "tmpfs", MountFlags::empty(), c"mode=1777")?;
        for name in ["resolv.conf", "hosts"] {
            mount_bind(self.etc.join(name), Path::new("/etc").join(name))?;
        }
        self.know_the_user()
    }

    /// Some programs (PostgreSQL) insist on a name for their user: adds one where the host has none.
    fn know_the_user(&self) -> io::Result<()> {
        let known = fs::read_to_string("/etc/passwd")?;
        let uid = self.uid.to_string();
        if known
            .lines()
            .any(|line| line.split(':').nth(2) == Some(&uid))
        {
            return Ok(());
        }
        let file = self.etc.join(format!("passwd-{uid}"));
        fs::write(
            &file,
            format!("{known}pod:x:{uid}:{}::/tmp:/bin/sh\n", self.gid),
        )?;
        mount_bind(file, "/etc/passwd")?;
        Ok(())
    }

    fn execute(&self) -> io::Error {
        let Some((program, args)) = self.command.split_first() else {
            return io::Error::other("no command");
        };
        let path = format!("{BIN_DIR}:{PATH}");
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", path)
            .env("HOSTNAME", &self.hostname)
            .env("HOME", "/tmp")
            .envs(&self.env);
        // The standard library also drops the supplementary groups when it changes the user.
        command
            .current_dir(&self.directory)
            .gid(self.gid)
            .uid(self.uid)
            .exec()
    }
}

impl Mount {
    fn place(&self) -> io::Result<()> {
        if self.source.is_dir() {
            make_dir(&self.target)?;
        } else if !self.target.exists() {
            make_dir(self.target.parent().unwrap_or_else(|| Path::new("/")))?;
            fs::write(&self.target, "")?;
        }
        mount_bind_recursive(&self.source, &self.target)?;
        if self.read_only {
            mount_remount(&self.target, MountFlags::BIND | MountFlags::RDONLY, c"")?;
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if !path.starts_with("/mnt") && !path.starts_with("/tmp") {
        let advice = "lab pods share the host's file system: mount under /mnt or /tmp, or at a path that exists";
        return Err(io::Error::other(advice));
    }
    fs::create_dir_all(path)
}
