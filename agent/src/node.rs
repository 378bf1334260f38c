//! The node around the agent: its network namespace, its cgroups, its resolver.
//!
//! In a cluster the agent runs in a pod of its own, with the node's process ids (`hostPID`): what belongs to the node is
//! then found through process 1. Without a container (`karst lab`, a plain host) the agent is where the node is.

use std::{fs, net::IpAddr, path::PathBuf};

use anyhow::Context as _;
use karst_netns::{Netns, NetnsCookie, cgroup2_root, enter_cgroup_namespace};

use crate::config::Config;

/// Where resolvers are configured, also in containers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the agent must know of its node.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) cookie: NetnsCookie,
    /// Where the whole cgroup v2 hierarchy is mounted.
    pub(crate) cgroup_root: PathBuf,
}

impl Node {
    /// Looks around, and makes the calling thread see cgroups as the node does: call it before other threads start.
    pub(crate) fn enter(config: &Config) -> anyhow::Result<Self> {
        let netns = match &config.host_ns_dir {
            Some(dir) => {
                let file = dir.join("cgroup");
                enter_cgroup_namespace(&file).with_context(|| {
                    format!("cannot enter the node's cgroup namespace {}: the agent needs hostPID and the \
                        capabilities SYS_ADMIN and SYS_PTRACE", file.display())
                })?;
                let file = dir.join("net");
                Netns::open(&file).with_context(|| {
                    format!("cannot open the node's network namespace {}: the agent needs hostPID and the \
                        capabilities SYS_ADMIN and SYS_PTRACE", file.display())
                })?
            }
            None => Netns::current().context("cannot read the node's network namespace")?,
        };
        let cgroup_root = match &config.cgroup_root {
            Some(root) => root.clone(),
            None => cgroup2_root().context(
                "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`",
            )?,
        };
        Ok(Self {
            cookie: netns
                .cookie()
                .context("cannot read the cookie of the node's network namespace")?,
            netns,
            cgroup_root,
        })
    }
}

/// The first name server of this container or host: in a pod, the cluster's.
pub(crate) fn own_resolver() -> Option<IpAddr> {
    first_nameserver(&fs::read_to_string(RESOLV_CONF).ok()?)
}

fn first_nameserver(resolv_conf: &str) -> Option<IpAddr> {
    let mut words = resolv_conf
        .lines()
        .map(|line| line.split_ascii_whitespace());
    words.find_map(|mut words| match (words.next()?, words.next()?) {
        ("nameserver", addr) => addr.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_server_is_taken() {
        let file =
            "search a.svc b\n# nameserver 1.1.1.1\n\nnameserver 10.96.0.10\nnameserver fd00::a\n";
        assert_eq!(first_nameserver(file), Some([10, 96, 0, 10].into()));
        assert_eq!(first_nameserver("nameserver\noptions ndots:5\n"), None);
    }
}
