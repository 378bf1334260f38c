//! Interfaces and addresses of a network namespace, as rtnetlink(7) tells them.
//!
//! The agent finds the host's end of a pod's veth with it. Names alone would not do: `/sys/class/net` shows the
//! namespace in which it was mounted, not the one that a thread is in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::Netns;

// Message types, flags and attributes, from `linux/rtnetlink.h`, `linux/netlink.h`, `linux/if_link.h`, `linux/if_addr.h`.
const RTM_GETLINK: u16 = 18;
const RTM_NEWLINK: u16 = 16;
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The upper two bits of an attribute's type are flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// Sizes of `nlmsghdr`, `ifinfomsg` and `ifaddrmsg`.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// The kernel fills at most 32 KiB per read of a dump.
const BUFFER: usize = 64 << 10;

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
    dump(RTM_GETLINK, RTM_NEWLINK, LINK_HEADER, |body| {
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
    dump(RTM_GETADDR, RTM_NEWADDR, ADDRESS_HEADER, |body| {
        // With a peer, IFA_ADDRESS is the peer's and IFA_LOCAL ours; without, IPv6 has IFA_ADDRESS alone.
        let local = attribute(body, ADDRESS_HEADER, IFA_LOCAL);
        let value = local.or_else(|| attribute(body, ADDRESS_HEADER, IFA_ADDRESS));
        if let (Some(index), Some(addr)) = (u32_at(body, 4), value.and_then(ip)) {
            found.push(Assigned { index, addr });
        }
    })?;
    Ok(found)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

/// Asks for everything of one kind, and hands over the body of each message of type `wanted`.
fn dump(kind: u16, wanted: u16, header: usize, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = ask(kind, header)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (got, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..got];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((kind, body, after)) = next_message(rest) {
            rest = after;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(errno(body))),
                kind if kind == wanted && body.len() >= header => each(body),
                _ => {}
            }
        }
    }
}

fn ask(kind: u16, header: usize) -> io::Result<OwnedFd> {
    let (family, raw) = (AddressFamily::NETLINK, SocketType::RAW);
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(family, raw, SocketFlags::CLOEXEC, None)?;
    let length = HEADER + header;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number, port, and a header of zeros: all families, all interfaces.
    message.resize(length, 0);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    Ok(socket)
}

/// Type and body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let kind = u16_at(bytes, 4)?;
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

/// The value of the first attribute of this type.
fn attribute(body: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(header..)?;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        if u16_at(rest, 2)? & ATTRIBUTE_TYPE == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn errno(body: &[u8]) -> i32 {
    let code = u32_at(body, 0).map(|code| i32::from_ne_bytes(code.to_ne_bytes()));
    code.map_or(libc::EPROTO, i32::wrapping_neg)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(two.try_into().ok()?))
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

    #[test]
    fn messages_that_are_cut_short_end_the_reading() {
        assert_eq!(next_message(&[1, 2, 3]), None);
        let mut message = vec![0; HEADER];
        message[0] = 200;
        assert_eq!(next_message(&message), None, "longer than what was read");
        assert_eq!(attribute(&[4, 0, 5, 0], 0, IFLA_LINK), Some(&[][..]));
        assert_eq!(
            attribute(&[0, 0, 5, 0], 0, IFLA_LINK),
            None,
            "a length of zero"
        );
        assert_eq!(
            attribute(&[9, 0, 5, 0, 1], 0, IFLA_LINK),
            None,
            "longer than the rest"
        );
    }
}
