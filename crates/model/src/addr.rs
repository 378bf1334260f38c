//! Addresses as the mesh sees them: an IP is only unique inside its network.

use std::{fmt, net::IpAddr, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Name of a network: a set of addresses that reach each other without a gateway. Empty is the default network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Network(pub Arc<str>);

/// An address together with the network in which it means something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkAddr {
    pub network: Network,
    pub ip: IpAddr,
}

impl NetworkAddr {
    pub fn new(network: Network, ip: IpAddr) -> Self {
        Self {
            network,
            ip: canonical_ip(ip),
        }
    }
}

impl fmt::Display for NetworkAddr {
    /// `<network>/<ip>`, the alias under which workload discovery knows an address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network.0, self.ip)
    }
}

/// The address that an application dialled, before capture rewrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

/// IPv4-mapped IPv6 addresses (`::ffff:a.b.c.d`) become IPv4, so that one host has one key.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// [`canonical_ip`] for a socket address. Scope and flow label of IPv6 are dropped.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(addr.ip()), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert_eq!(
            canonical("[::ffff:10.0.0.1]:80".parse().unwrap()),
            "10.0.0.1:80".parse().unwrap()
        );
        assert_eq!(
            canonical("[fd00::1]:80".parse().unwrap()),
            "[fd00::1]:80".parse().unwrap()
        );
    }
}
