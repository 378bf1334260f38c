//! The few rtnetlink(7) requests that are needed, in the calling thread's namespace.

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Size of `nlmsghdr`.
const HEADER: usize = 16;

/// Sends one request and waits for the kernel's verdict.
pub(crate) fn request(kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
    let (family, raw) = (AddressFamily::NETLINK, SocketType::RAW);
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(family, raw, SocketFlags::CLOEXEC, None)?;
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    // Sequence number and port: one request per socket needs neither.
    message.extend([0; 8]);
    message.extend(payload);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut reply = [0_u8; 1024];
    let (got, _) = rustix::net::recv(&socket, &mut reply[..], RecvFlags::empty())?;
    match errno(&reply[..got]) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The errno of an NLMSG_ERROR reply; 0 is an acknowledgement.
fn errno(reply: &[u8]) -> i32 {
    let code = reply
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok());
    code.map_or(libc::EPROTO, |bytes| -i32::from_ne_bytes(bytes))
}
