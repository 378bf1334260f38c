//! Sockets made inside a namespace, with the options that the agent's data path wants.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::Netns;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Bytes of datagrams that may wait to be read, of which the kernel counts 768 for a short one: some 5,000 queries.
/// The kernel doubles what it is told (`sock_setsockopt` of `net/core/sock.c`). A client whose query is dropped asks again
/// only after five seconds, so more fit than what the kernel grants by default, which are fewer than 300.
const DATAGRAMS: usize = 2 << 20;

/// Idle time before the first probe and between probes, and how many may go unanswered
/// (ambient's own values, so that half-open peers vanish after the same time).
const KEEPALIVE: (Duration, u32) = (Duration::from_secs(180), 9);

/// An address that no host has (RFC 5737, documentation): a listener bound there is reached by
/// `sk_lookup` and by nothing else. Written as v4-mapped for a listener of both families, as
/// binding to any other IPv6 address would make it IPv6 only.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The address family of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family to use for a destination; a v4-mapped address is IPv4.
    pub fn of(addr: &SocketAddr) -> Self {
        if addr.ip().to_canonical().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// A listener in `netns` on every address, IPv4 and IPv6 (IPv4 alone where IPv6 is off).
///
/// `port` 0 lets the kernel choose. Non-blocking; what it accepts sends without delay.
pub fn tcp_listener(netns: &Netns, port: u16) -> io::Result<TcpListener> {
    netns.run(|| {
        dual_stack(Type::STREAM, |family| match family {
            Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
            Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
        })
        .and_then(listen)
    })?
}

/// A listener in `netns` for connections that a `sk_lookup` program steers to it.
///
/// It is bound to an address that does not exist, so a process in the namespace that dials its
/// port, over loopback or over the pod's address, reaches nothing. IPv4 and IPv6; non-blocking; what
/// it accepts sends without delay.
pub fn steered_listener(netns: &Netns) -> io::Result<TcpListener> {
    netns.run(|| {
        dual_stack(Type::STREAM, |family| match family {
            Family::V4 => (NOWHERE, 0).into(),
            Family::V6 => (NOWHERE.to_ipv6_mapped(), 0).into(),
        })
        .and_then(listen)
    })?
}

/// A UDP socket in `netns` on every address of both families; `port` 0 lets the kernel choose. Whoever runs as the same
/// user may open another on its port (`SO_REUSEPORT`), and does so by naming it: the next process takes its clients over.
pub fn udp_socket(netns: &Netns, port: u16) -> io::Result<UdpSocket> {
    let addr = |family| match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    netns.run(|| {
        let share = |socket: &Socket| socket.set_reuse_port(true);
        let socket = match port {
            // With the option set before, the kernel may choose a port that another such socket has.
            0 => {
                dual_stack(Type::DGRAM, addr).and_then(|socket| share(&socket).map(|()| socket))?
            }
            _ => dual_stack_as(Type::DGRAM, share, addr)?,
        };
        set_socket_recv_buffer_size_force(&socket, DATAGRAMS)?;
        Ok(socket.into())
    })?
}

/// A TCP socket in `netns`, ready for `connect` to another host: non-blocking, no delay, keep-alive.
pub fn connect_socket(netns: &Netns, family: Family) -> io::Result<Socket> {
    let socket = local_connect_socket(netns, family)?;
    let (time, retries) = KEEPALIVE;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(time)
            .with_interval(time)
            .with_retries(retries),
    )?;
    Ok(socket)
}

/// The same for `connect` to a process of the namespace itself: without keep-alive, which our own kernel would answer for
/// as long as the process has the connection.
pub fn local_connect_socket(netns: &Netns, family: Family) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = netns.run(|| Socket::new(family.domain(), kind, Some(Protocol::TCP)))??;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// What is accepted inherits the listener's options (`sk_clone_lock`), so they are set once and not for each connection.
fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.set_tcp_nodelay(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds an IPv6 socket that also takes IPv4, or an IPv4 one where IPv6 is off.
fn dual_stack(kind: Type, addr: impl Fn(Family) -> SocketAddr) -> io::Result<Socket> {
    dual_stack_as(kind, |_| Ok(()), addr)
}

/// The same with options of its own, that are set before it is bound.
fn dual_stack_as(
    kind: Type,
    prepare: impl Fn(&Socket) -> io::Result<()>,
    addr: impl Fn(Family) -> SocketAddr,
) -> io::Result<Socket> {
    bound(kind, &prepare, Family::V6, addr(Family::V6)).or_else(|v6| {
        if addr(Family::V6).port() != 0 && v6.kind() == io::ErrorKind::AddrInUse {
            return Err(v6);
        }
        bound(kind, &prepare, Family::V4, addr(Family::V4))
    })
}

fn bound(
    kind: Type,
    prepare: impl Fn(&Socket) -> io::Result<()>,
    family: Family,
    addr: SocketAddr,
) -> io::Result<Socket> {
    let socket = Socket::new(family.domain(), kind, None)?;
    match family {
        Family::V4 => socket.set_freebind_v4(true)?,
        Family::V6 => {
            socket.set_only_v6(false)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// How many datagrams the kernel has dropped for want of room in a socket's buffer, since the socket was made. Wraps
/// around.
pub fn dropped_datagrams(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // `SK_MEMINFO_VARS` numbers of 32 bits, the last of which are the drops (`include/uapi/linux/sock_diag.h`).
    let memory: [u8; 36] = sockopt(socket, libc::SO_MEMINFO)?;
    let [.., a, b, c, d] = memory;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// An option of the socket level that has `N` bytes.
pub(crate) fn sockopt<const N: usize>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut len = N as libc::socklen_t;
    // SAFETY: `value` and `len` outlive the call, and `len` is the size of `value`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
