//! What answers the queries of one pod.
//!
//! A client that connects a UDP socket to its resolver (nginx, c-ares) gets the agent's socket in the resolver's place,
//! written into its own by the kernel side, and keeps it for as long as it likes. So the agent's socket outlives the
//! capture: a pod that has left the mesh is answered there as its resolver would, and the next agent takes the same port.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use karst_model::{enrollment::NodeWorkload, name::PodUid};
use karst_netns::{Netns, NetnsCookie};
use karst_runtime::supervise::Shutdown;
use tokio::sync::Semaphore;

/// Queries of one pod that the cluster's resolver has at the same time. Fewer than what a socket's default buffer holds
/// (some 270 short ones), so that a pod whose agent has much to catch up with does not flood it.
const MAX_FORWARDS: usize = 256;

/// Ends the sockets that are connected to an agent's, where nobody will answer any more: their owners connect anew.
pub(crate) fn end_clients(pod_uid: &PodUid, netns: &Netns, port: u16) {
    match netns.end_udp_clients(port) {
        Ok(clients) => {
            tracing::debug!(pod = %pod_uid, clients, "clients that were connected to the agent's DNS connect anew")
        }
        Err(error) => {
            tracing::debug!(pod = %pod_uid, %error, "clients that are connected to the agent's DNS will find out by themselves")
        }
    }
}

/// A pod's UDP socket, and as whom it asks.
pub(crate) struct PodDns {
    pub(crate) pod_uid: PodUid,
    pub(crate) namespace: Arc<str>,
    pub(crate) netns: Netns,
    pub(crate) cookie: NetnsCookie,
    /// Who of those that wait may ask the cluster's resolver now.
    pub(crate) forwards: Semaphore,
    /// Ends it, with the pod.
    pub(crate) stop: Shutdown,
    /// None once it is closed to us: the next agent has one on the same port, and this one must not take its queries.
    socket: Mutex<Option<UdpSocket>>,
    port: u16,
    /// From which alone it is asked.
    addresses: ArcSwap<Vec<IpAddr>>,
    knows_mesh: AtomicBool,
}

impl PodDns {
    /// Opens the socket in the pod's namespace: on the port that an earlier agent had there, while that is free or only
    /// agents have it, else on any. The names of the mesh are unknown to it until [`Self::enter`].
    pub(crate) fn open(
        pod: &NodeWorkload,
        netns: &Netns,
        earlier_port: Option<u16>,
    ) -> io::Result<Self> {
        let pod_uid = pod.pod_uid.clone();
        let again = earlier_port.and_then(|port| {
            let opened = karst_netns::udp_socket(netns, port);
            opened.inspect_err(|error| {
                tracing::warn!(pod = %pod_uid, port, %error, "the port of an earlier agent's DNS cannot be had again: \
                    clients that keep one connected UDP socket must connect it anew");
                end_clients(&pod_uid, netns, port);
            }).ok()
        });
        let socket = match again {
            Some(socket) => socket,
            None => karst_netns::udp_socket(netns, 0)?,
        };
        Ok(Self {
            port: socket.local_addr()?.port(),
            forwards: Semaphore::new(MAX_FORWARDS),
            stop: Shutdown::new(),
            addresses: ArcSwap::from_pointee(pod.addresses.clone()),
            knows_mesh: AtomicBool::new(false),
            pod_uid,
            namespace: pod.namespace.clone(),
            netns: netns.try_clone()?,
            cookie: netns.cookie()?,
            socket: Mutex::new(Some(socket)),
        })
    }

    /// The pod is captured, with these addresses: names of the mesh are answered from now on.
    pub(crate) fn enter(&self, addresses: &[IpAddr]) {
        self.addresses.store(Arc::new(addresses.to_vec()));
        self.knows_mesh.store(true, Ordering::Release);
    }

    /// The pod has left the mesh: what it asks is its resolver's business, whose addresses lead somewhere without us.
    pub(crate) fn leave(&self) {
        self.knows_mesh.store(false, Ordering::Release);
    }

    pub(crate) fn knows_mesh(&self) -> bool {
        self.knows_mesh.load(Ordering::Acquire)
    }

    /// Whether this address is the pod itself. The kernel side keeps strangers away from captured pods alone.
    pub(crate) fn is_own(&self, client: IpAddr) -> bool {
        client.is_loopback() || self.addresses.load().contains(&client)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A second handle.
    pub(crate) fn handle(&self) -> io::Result<UdpSocket> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        match &*socket {
            Some(socket) => socket.try_clone(),
            None => Err(io::Error::other("the agent is ending")),
        }
    }

    /// Gives it up: what it has got can be read and answered still, and whatever comes from now on is the next agent's, or
    /// finds nobody here. Without that, what came between the last look and the end would be lost.
    pub(crate) fn part(&self) -> Option<UdpSocket> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let parted = socket.take()?;
        drop(socket);
        if let Err(error) = connect_to_nobody(&parted, &self.addresses.load()) {
            tracing::warn!(pod = %self.pod_uid, %error, "queries that come while this agent ends may be lost: they are asked again");
        }
        Some(parted)
    }
}

/// The port of the discard service (RFC 863), from which nothing comes.
const DISCARD: u16 = 9;

/// Connects a socket, so that the kernel looks for another one of its port for everything but what this peer sends
/// (`udp4_lib_lookup2` of `net/ipv4/udp.c`). To an own address, which stays the source of answers then: a connected socket
/// has one source for the family of its peer.
fn connect_to_nobody(socket: &UdpSocket, own: &[IpAddr]) -> io::Result<()> {
    let (sixth, fourth): (Vec<_>, Vec<_>) = own.iter().copied().partition(IpAddr::is_ipv6);
    let candidates = if socket.local_addr()?.is_ipv4() {
        fourth
    } else {
        // A pod without addresses of the sixth kind may have no such loopback either.
        let mapped = fourth.into_iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.to_ipv6_mapped().into()),
            IpAddr::V6(_) => None,
        });
        let loopback = [Ipv6Addr::LOCALHOST.into()];
        sixth.into_iter().chain(loopback).chain(mapped).collect()
    };
    let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
    for ip in candidates {
        outcome = socket.connect((ip, DISCARD));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// As an agent and the next one have it.
    fn shared(port: u16, domain: Domain) -> UdpSocket {
        let any: SocketAddr = match domain {
            Domain::IPV4 => (Ipv4Addr::UNSPECIFIED, port).into(),
            _ => (Ipv6Addr::UNSPECIFIED, port).into(),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), None).unwrap();
        if domain == Domain::IPV6 {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_reuse_port(true).unwrap();
        socket.bind(&any.into()).unwrap();
        socket.into()
    }

    /// Clients, each of which has asked.
    fn asked(addresses: &[IpAddr], port: u16, each: usize) -> Vec<UdpSocket> {
        let addresses = addresses
            .iter()
            .flat_map(|ip| std::iter::repeat_n(*ip, each));
        let clients = addresses.map(|ip| {
            let client = UdpSocket::bind((ip, 0)).unwrap();
            client.connect((ip, port)).unwrap();
            client.send(b"query").unwrap();
            client
        });
        clients.collect()
    }

    /// Answers all that a socket has got.
    fn answer(socket: &UdpSocket) -> usize {
        let queued = || socket.recv_from(&mut [0; 16]).ok();
        std::iter::from_fn(queued)
            .inspect(|(_, client)| assert_eq!(socket.send_to(b"answer", client).unwrap(), 6))
            .count()
    }

    #[test]
    fn a_socket_that_parts_answers_what_it_has_got_and_gets_no_more() {
        let (fourth, sixth) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let cases: [(Domain, &[IpAddr]); 3] = [
            (Domain::IPV4, &[fourth]),
            (Domain::IPV6, &[fourth]),
            (Domain::IPV6, &[fourth, sixth]),
        ];
        for (domain, own) in cases {
            let earlier = shared(0, domain);
            let port = earlier.local_addr().unwrap().port();
            let before = asked(own, port, 3);
            let next = shared(port, domain);
            connect_to_nobody(&earlier, own).unwrap();
            let after = asked(own, port, 50);

            assert_eq!(answer(&earlier), before.len(), "{domain:?} {own:?}");
            assert_eq!(answer(&next), after.len(), "{domain:?} {own:?}");
            for client in before.iter().chain(&after) {
                client.set_nonblocking(true).unwrap();
                assert_eq!(client.recv(&mut [0; 16]).unwrap(), 6, "{client:?}");
            }
        }
    }
}
