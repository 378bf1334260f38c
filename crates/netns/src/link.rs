//! Interfaces and addresses of a network namespace, as rtnetlink(7) tells them.
//!
//! The agent finds the host's end of a pod's veth with it. Names alone would not do: `/sys/class/net` shows the
//! namespace in which it was mounted, not the one that a thread is in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustix::net::Protocol;

use crate::{
    Netns,
    netlink::{attribute, dump, u32_at},
};

/// NETLINK_ROUTE is 0.
const ROUTE: Option<Protocol> = None;

// Message types and attributes, from `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`.
const RTM_GETLINK: u16 = 18;
const RTM_NEWLINK: u16 = 16;
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Sizes of `ifinfomsg` and `ifaddrmsg`; zeros in a request mean all families and all interfaces.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// An interface whose other end is in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crossing {
    index: u32,
    /// Index of the other end, in its own namespace.
    peer: u32,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Assigned {
    index: u32,
    addr: IpAddr,
}

impl Netns {
    /// Whether an interface of this namespace has one of these addresses.
    pub fn has_address(&self, addresses: &[IpAddr]) -> io::Result<bool> {
        let assigned = self.run(assigned)??;
        Ok(assigned.iter().any(|one| addresses.contains(&one.addr)))
    }

    /// Index, in `host`, of the other end of the link that carries one of `addresses` here.
    ///
    /// None where the two ends do not name each other: the pod's interface is no pair (ipvlan, macvlan, a device that was
    /// moved), or its other end is in a third namespace.
    pub fn host_end(&self, host: &Self, addresses: &[IpAddr]) -> io::Result<Option<u32>> {
        let inside = self.run(|| -> io::Result<_> {
            let assigned = assigned()?;
            let crossings = crossings()?;
            let carries = |link: &&Crossing| {
                let mut own = assigned.iter().filter(|one| one.index == link.index);
                own.any(|one| addresses.contains(&one.addr))
            };
            Ok(crossings.iter().find(carries).copied())
        })??;
        let Some(inside) = inside else {
            return Ok(None);
        };
        let answers = |link: &Crossing| link.index == inside.peer && link.peer == inside.index;
        let outside = host.run(crossings)??;
        Ok(outside.into_iter().find(answers).map(|link| link.index))
    }
}

/// The interfaces of the calling thread's namespace whose other end is elsewhere.
fn crossings() -> io::Result<Vec<Crossing>> {
    let mut found = Vec::new();
    dump(ROUTE, RTM_GETLINK, &[0; LINK_HEADER], RTM_NEWLINK, |body| {
        let index = u32_at(body, 4);
        let peer = attribute(body, LINK_HEADER, IFLA_LINK).map(|value| u32_at(value, 0));
        let crosses = attribute(body, LINK_HEADER, IFLA_LINK_NETNSID).is_some();
        if let (Some(index), Some(Some(peer)), true) = (index, peer, crosses) {
            found.push(Crossing { index, peer });
        }
    })?;
    Ok(found)
}

/// The addresses of the calling thread's namespace.
fn assigned() -> io::Result<Vec<Assigned>> {
    let mut found = Vec::new();
    dump(
        ROUTE,
        RTM_GETADDR,
        &[0; ADDRESS_HEADER],
        RTM_NEWADDR,
        |body| {
            // With a peer, IFA_ADDRESS is the peer's and IFA_LOCAL ours; without, IPv6 has IFA_ADDRESS alone.
            let local = attribute(body, ADDRESS_HEADER, IFA_LOCAL);
            let value = local.or_else(|| attribute(body, ADDRESS_HEADER, IFA_ADDRESS));
            if let (Some(index), Some(addr)) = (u32_at(body, 4), value.and_then(ip)) {
                found.push(Assigned { index, addr });
            }
        },
    )?;
    Ok(found)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_its_address() {
        let here = Netns::current().unwrap();
        assert!(here.has_address(&[Ipv4Addr::LOCALHOST.into()]).unwrap());
        // RFC 5737, documentation: nobody has it.
        assert!(
            !here
                .has_address(&[Ipv4Addr::new(192, 0, 2, 77).into()])
                .unwrap()
        );
    }
}
