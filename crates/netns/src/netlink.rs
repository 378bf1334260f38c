//! Questions to the kernel over netlink(7), in the calling thread's namespace.

use std::{io, os::fd::OwnedFd};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

// Message types and flags, from `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// The upper two bits of an attribute's type are flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// Size of `nlmsghdr`.
const HEADER: usize = 16;

/// The kernel fills at most 32 KiB per read of a dump.
const BUFFER: usize = 64 << 10;

/// Asks for everything of one kind, and hands over the body of each message of type `wanted` that is as long as the
/// question at least.
pub(crate) fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    question: &[u8],
    wanted: u16,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = ask(protocol, kind, NLM_F_DUMP, question)?;
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
                kind if kind == wanted && body.len() >= question.len() => each(body),
                _ => {}
            }
        }
    }
}

/// Has the kernel do something, and waits until it is done.
pub(crate) fn order(protocol: Option<Protocol>, kind: u16, what: &[u8]) -> io::Result<()> {
    let socket = ask(protocol, kind, NLM_F_ACK, what)?;
    let mut buffer = [0; 1024];
    let (got, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    let answer = next_message(&buffer[..got]).filter(|(kind, ..)| *kind == NLMSG_ERROR);
    match answer.map_or(libc::EPROTO, |(_, body, _)| errno(body)) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn ask(protocol: Option<Protocol>, kind: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    let (family, raw) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = rustix::net::socket_with(family, raw, SocketFlags::CLOEXEC, protocol)?;
    let length = HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question per socket needs neither.
    message.extend([0; 8]);
    message.extend(body);
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
pub(crate) fn attribute(body: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
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

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
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
    fn messages_that_are_cut_short_end_the_reading() {
        const WANTED: u16 = 5;
        assert_eq!(next_message(&[1, 2, 3]), None);
        let mut message = vec![0; HEADER];
        message[0] = 200;
        assert_eq!(next_message(&message), None, "longer than what was read");
        assert_eq!(attribute(&[4, 0, 5, 0], 0, WANTED), Some(&[][..]));
        assert_eq!(
            attribute(&[0, 0, 5, 0], 0, WANTED),
            None,
            "a length of zero"
        );
        assert_eq!(
            attribute(&[9, 0, 5, 0, 1], 0, WANTED),
            None,
            "longer than the rest"
        );
    }
}
