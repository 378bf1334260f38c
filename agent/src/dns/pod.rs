//! What answers the queries of one pod.
//!
//! A client that connects a UDP socket to its resolver (nginx, c-ares) gets the agent's socket in the resolver's place,
//! written into its own by the kernel side, and keeps it for as long as it likes. So the agent's socket outlives the
//! capture: a pod that has left the mesh is answered there as its resolver would, and the next agent takes the same port.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use karst_model::{enrollment::NodeWorkload, name::PodUid};
use karst_netns::{Netns, NetnsCookie};
use karst_runtime::supervise::Shutdown;

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

    /// Closes it, but for the handles that are out.
    pub(crate) fn close(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
