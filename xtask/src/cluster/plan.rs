//! The names and addresses of a cluster, all derived from its number, so that several stand side by side.
//!
//! ```text
//!              node network            pods of node k              services
//!   IPv4  10.(200+id).0.0/24    10.(200+id).(64+k).0/24      10.(96+id).0.0/16
//!   IPv6  fd00:6b61:id::/64     fd00:6b61:id:(40+k)::/64     fd00:6b61:id:ffff::/112
//! ```
//!
//! The host is number 1 of the node network and node k is number 10 + k. Cluster 0 has Kubernetes' usual service
//! addresses, so that the examples fit it as they are.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::shell;

/// Numbers that a cluster may have; more would leave the ranges of addresses above.
const IDS: u8 = 16;
/// Nodes that a cluster may have; bounded by memory long before.
const NODES: u8 = 32;

/// Which addresses pods and services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Families {
    /// IPv4 alone.
    Single,
    /// IPv4 first, and IPv6.
    Dual,
}

/// What a cluster looks like. Kept with its state, so that every later verb sees the cluster that `up` made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    id: u8,
    nodes: u8,
    families: Families,
}

/// A range of addresses as text, in each family that the cluster has: what most options want, joined by commas.
type Ranges = Vec<String>;

impl Plan {
    /// A plan, unless a number is out of its range.
    pub(crate) fn new(id: u8, nodes: u8, families: Families) -> Result<Self> {
        ensure!(
            id < IDS,
            "--id {id} is out of range: clusters have the numbers 0 to {}",
            IDS - 1
        );
        ensure!(
            (1..=NODES).contains(&nodes),
            "--nodes {nodes} is out of range: a cluster has 1 to {NODES} nodes"
        );
        Ok(Self {
            id,
            nodes,
            families,
        })
    }

    /// The prefix of everything that the cluster makes on the host: namespaces, links, cgroups.
    pub(crate) fn prefix(&self) -> String {
        format!("kc{}", self.id)
    }

    /// Where everything that the cluster writes lies.
    pub(crate) fn state(&self) -> PathBuf {
        state_of(self.id)
    }

    /// The nodes, in order.
    pub(crate) fn nodes(&self) -> Vec<NodePlan> {
        (1..=self.nodes)
            .map(|number| NodePlan {
                cluster: self.clone(),
                number,
            })
            .collect()
    }

    fn families(&self, v4: String, v6: String) -> Ranges {
        match self.families {
            Families::Single => vec![v4],
            Families::Dual => vec![v4, v6],
        }
    }

    fn v4(&self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 200 + self.id, third, fourth)
    }

    fn v6(&self, network: u16, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x6b61, self.id.into(), network, 0, 0, 0, host)
    }

    /// The host's address, where the API server listens.
    pub(crate) fn host(&self) -> Ipv4Addr {
        self.v4(0, 1)
    }

    /// The host's addresses on the node network.
    pub(crate) fn host_networks(&self) -> Ranges {
        self.families(
            format!("{}/24", self.host()),
            format!("{}/64", self.v6(0, 1)),
        )
    }

    /// All pods' addresses.
    pub(crate) fn pods(&self) -> Ranges {
        let v6 = Ipv6Addr::new(0xfd00, 0x6b61, self.id.into(), 0x40, 0, 0, 0, 0);
        self.families(format!("{}/18", self.v4(64, 0)), format!("{v6}/58"))
    }

    /// The services' virtual addresses.
    pub(crate) fn services(&self) -> Ranges {
        let v4 = Ipv4Addr::new(10, 96 + self.id, 0, 0);
        self.families(format!("{v4}/16"), format!("{}/112", self.v6(0xffff, 0)))
    }

    /// The address of the service `kubernetes`.
    pub(crate) fn api_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96 + self.id, 0, 1)
    }

    /// The cluster's resolver.
    pub(crate) fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96 + self.id, 0, 10)
    }

    /// Where etcd listens for clients on loopback; its peer port is the next one.
    pub(crate) fn etcd_port(&self) -> u16 {
        23_790 + 10 * u16::from(self.id)
    }

    /// The API server's address.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:6443", self.host())
    }
}

/// Where the cluster of this number keeps its state.
pub(crate) fn state_of(id: u8) -> PathBuf {
    shell::root().join(format!("target/cluster/{id}"))
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    cluster: Plan,
    number: u8,
}

impl NodePlan {
    /// Its name in Kubernetes.
    pub(crate) fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Its name on the host: of its network namespace, its link and its cgroup.
    pub(crate) fn host_name(&self) -> String {
        format!("{}-{}", self.cluster.prefix(), self.name())
    }

    /// What survives its reboot: its disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.cluster.state().join(self.name())
    }

    /// Its addresses on the node network, without a length.
    pub(crate) fn addresses(&self) -> Ranges {
        let (v4, v6) = self.own();
        self.cluster.families(v4.to_string(), v6.to_string())
    }

    /// Its addresses on the node network, with the network's length.
    pub(crate) fn networks(&self) -> Ranges {
        let (v4, v6) = self.own();
        self.cluster
            .families(format!("{v4}/24"), format!("{v6}/64"))
    }

    fn own(&self) -> (Ipv4Addr, Ipv6Addr) {
        let host = 10 + self.number;
        (self.cluster.v4(0, host), self.cluster.v6(0, host.into()))
    }

    /// Its pods' addresses.
    pub(crate) fn pods(&self) -> Ranges {
        let v4 = self.cluster.v4(64 + self.number, 0);
        let v6 = self.cluster.v6(0x40 + u16::from(self.number), 0);
        self.cluster
            .families(format!("{v4}/24"), format!("{v6}/64"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plan(id: u8) -> Plan {
        Plan::new(id, 2, Families::Dual).unwrap()
    }

    #[test]
    fn the_first_cluster_has_the_usual_service_addresses() {
        let plan = plan(0);
        assert_eq!(plan.services(), ["10.96.0.0/16", "fd00:6b61:0:ffff::/112"]);
        assert_eq!(plan.dns().to_string(), "10.96.0.10");
        assert_eq!(plan.host().to_string(), "10.200.0.1");
    }

    #[test]
    fn a_node_has_addresses_of_both_families() {
        let node = &plan(1).nodes()[1];
        assert_eq!(node.name(), "n2");
        assert_eq!(node.host_name(), "kc1-n2");
        assert_eq!(node.addresses(), ["10.201.0.12", "fd00:6b61:1::c"]);
        assert_eq!(node.pods(), ["10.201.66.0/24", "fd00:6b61:1:42::/64"]);
    }

    #[test]
    fn a_single_stack_has_no_ipv6() {
        let plan = Plan::new(0, 1, Families::Single).unwrap();
        let node = &plan.nodes()[0];
        let all = [
            plan.pods(),
            plan.services(),
            plan.host_networks(),
            node.pods(),
            node.addresses(),
        ];
        assert!(all.iter().flatten().all(|range| !range.contains(':')));
    }

    #[test]
    fn no_two_clusters_or_nodes_share_anything() {
        let mut seen = BTreeSet::new();
        for id in 0..IDS {
            let plan = Plan::new(id, NODES, Families::Dual).unwrap();
            let mut mine = [plan.services(), vec![plan.etcd_port().to_string()]].concat();
            for node in plan.nodes() {
                mine.extend([node.addresses(), node.pods(), vec![node.host_name()]].concat());
            }
            for one in mine {
                assert!(seen.insert(one.clone()), "{one} is there twice");
            }
        }
    }

    #[test]
    fn names_fit_the_kernels_limit_for_interfaces() {
        let plan = Plan::new(IDS - 1, NODES, Families::Dual).unwrap();
        assert!(plan.nodes().iter().all(|node| node.host_name().len() < 16));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(Plan::new(IDS, 2, Families::Dual).is_err());
        assert!(Plan::new(0, 0, Families::Dual).is_err());
        assert!(Plan::new(0, NODES + 1, Families::Dual).is_err());
    }
}
