//! Who gets which address: nodes, their pods, services. Every lab may use the same ranges, as nothing leaves its
//! namespaces. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::daemon::Families;

/// The controller's addresses on the link between nodes.
pub(crate) const CONTROLLER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(172, 18, 0, 2),
    Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2),
);
/// The cluster DNS service, on every node.
pub(crate) const CLUSTER_DNS: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 96, 0, 10),
    Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa),
);
/// The cluster DNS service as pods of these families reach it.
pub(crate) fn cluster_dns(families: Families) -> IpAddr {
    match families {
        Families::Dual => CLUSTER_DNS.0.into(),
        Families::Ipv6 => CLUSTER_DNS.1.into(),
    }
}

/// First host number that services get when they name no address; those below are for the YAML to name.
const FIRST_SERVICE: u16 = 0x100;

/// One node's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeAddresses {
    index: u8,
}

impl NodeAddresses {
    /// The `index`th node, counted from 0; at most 200.
    pub(crate) fn new(index: u8) -> Self {
        Self { index }
    }

    /// On the link between nodes.
    pub(crate) fn node(&self) -> (Ipv4Addr, Ipv6Addr) {
        let host = self.index + 10;
        (
            Ipv4Addr::new(172, 18, 0, host),
            Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, host.into()),
        )
    }

    /// The ranges of this node's pods, as routes write them.
    pub(crate) fn pod_cidrs(&self) -> (String, String) {
        (
            format!("10.244.{}.0/24", self.index),
            format!("fd00:10:244:{:x}::/64", self.index),
        )
    }

    /// Addresses of the pod with this host number, 2 to 254.
    pub(crate) fn pod(&self, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, self.index.into(), 0, 0, 0, host.into());
        (Ipv4Addr::new(10, 244, self.index, host), v6)
    }

    /// The host number of an address of this node's range.
    pub(crate) fn host_of(&self, addr: Ipv4Addr) -> Option<u8> {
        let [a, b, node, host] = addr.octets();
        (a == 10 && b == 244 && node == self.index && (2..=254).contains(&host)).then_some(host)
    }
}

/// Hands out pod host numbers of one node, the one that was free longest first, so that addresses are not reused at once.
#[derive(Debug, Default)]
pub(crate) struct HostNumbers {
    taken: BTreeSet<u8>,
    last: u8,
}

impl HostNumbers {
    /// A free number, or the `wanted` one if it is free. `None` when all 253 are taken, or the wanted one is.
    pub(crate) fn take(&mut self, wanted: Option<u8>) -> Option<u8> {
        let host = match wanted {
            Some(wanted) => (!self.taken.contains(&wanted)).then_some(wanted)?,
            None => {
                let next = (self.last.max(1) + 1..=254)
                    .chain(2..=254)
                    .find(|host| !self.taken.contains(host))?;
                self.last = next;
                next
            }
        };
        self.taken.insert(host);
        Some(host)
    }

    pub(crate) fn release(&mut self, host: u8) {
        self.taken.remove(&host);
    }
}

/// Hands out service addresses; a service keeps its own as long as the lab lives.
#[derive(Debug, Default)]
pub(crate) struct ServiceAddresses {
    by_name: BTreeMap<(String, String), u16>,
}

impl ServiceAddresses {
    /// The pair of addresses of a service that names none.
    pub(crate) fn of(&mut self, namespace: &str, name: &str) -> (IpAddr, IpAddr) {
        let next = self
            .by_name
            .values()
            .max()
            .map_or(FIRST_SERVICE, |last| last.wrapping_add(1));
        let number = *self
            .by_name
            .entry((namespace.to_owned(), name.to_owned()))
            .or_insert(next);
        let [high, low] = number.to_be_bytes();
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number);
        (Ipv4Addr::new(10, 96, high, low).into(), v6.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_numbers_are_not_reused_at_once() {
        let mut hosts = HostNumbers::default();
        assert_eq!(hosts.take(None), Some(2));
        hosts.release(2);
        assert_eq!(hosts.take(None), Some(3));
        assert_eq!(hosts.take(Some(2)), Some(2));
        assert_eq!(hosts.take(Some(2)), None);
        while hosts.take(None).is_some() {}
        hosts.release(77);
        assert_eq!(hosts.take(None), Some(77));
    }

    #[test]
    fn a_service_keeps_its_address() {
        let mut services = ServiceAddresses::default();
        let first = services.of("a", "x");
        assert_ne!(services.of("a", "y"), first);
        assert_eq!(services.of("a", "x"), first);
        assert_eq!(first.0.to_string(), "10.96.1.0");
    }

    #[test]
    fn nodes_and_pods_have_both_families() {
        let node = NodeAddresses::new(1);
        assert_eq!(node.pod(2).0.to_string(), "10.244.1.2");
        assert_eq!(node.pod(2).1.to_string(), "fd00:10:244:1::2");
        assert_eq!(node.host_of("10.244.1.9".parse().unwrap()), Some(9));
        assert_eq!(node.host_of("10.244.2.9".parse().unwrap()), None);
    }
}
