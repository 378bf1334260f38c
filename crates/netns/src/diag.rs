//! Connected UDP sockets of a network namespace, as sock_diag(7) tells and ends them.

use std::io;

use rustix::net::{Protocol, netlink};

use crate::{
    Netns,
    netlink::{dump, order},
};

const SOCK_DIAG: Option<Protocol> = Some(netlink::SOCK_DIAG);

// Message types and states, from `linux/sock_diag.h` and `net/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// A UDP socket that is connected.
const ESTABLISHED: u32 = 1 << 1;

/// Sizes of `inet_diag_req_v2` and of the `inet_diag_sockid` in it, which is also in `inet_diag_msg`, behind four bytes.
const REQUEST: usize = 56;
const ID: usize = 48;

impl Netns {
    /// Ends the UDP sockets of this namespace that are connected to `port`: each fails with ECONNABORTED, and whoever waits
    /// for one hears of it at once. Returns how many.
    ///
    /// EOPNOTSUPP where the kernel is built without CONFIG_INET_DIAG_DESTROY, ENOENT without CONFIG_INET_UDP_DIAG.
    pub fn end_udp_clients(&self, port: u16) -> io::Result<usize> {
        self.run(|| {
            let mut ended = 0;
            for family in [libc::AF_INET, libc::AF_INET6] {
                for one in clients(family as u8, port)? {
                    match order(SOCK_DIAG, SOCK_DESTROY, &one) {
                        Ok(()) => ended += 1,
                        // It went by itself.
                        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok(ended)
        })?
    }
}

/// The sockets that are connected to `port`, each as the request that names it.
fn clients(family: u8, port: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let all = request(family, &[0; ID]);
    dump(
        SOCK_DIAG,
        SOCK_DIAG_BY_FAMILY,
        &all,
        SOCK_DIAG_BY_FAMILY,
        |body| {
            let id = &body[4..4 + ID];
            // Source port, then the port of the peer, in network order.
            if id[2..4] == port.to_be_bytes() {
                found.push(request(body[0], id));
            }
        },
    )?;
    Ok(found)
}

fn request(family: u8, id: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST);
    request.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
    request.extend(ESTABLISHED.to_ne_bytes());
    request.extend(id);
    request
}
