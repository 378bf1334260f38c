//! DNS sockets of a captured pod: decode, ask [`super::answer`], forward what it does not know.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use karst_model::addr::canonical;
use karst_model::{
    service::HealthPolicy,
    workload::{Health, Workload},
};
use karst_runtime::{drain, supervise::spawn_local_connection};
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    dns::{
        answer::{Names, Outcome, SearchDomains, answer, encode_udp, refusal},
        forward::{self, Transport},
        pod::{PodDns, end_clients},
    },
    mesh::Mesh,
};

/// Queries of one pod that wait for their answer; one more is dropped and counted, as a resolver would under load. As many
/// as connections may wait: a name is asked for before each.
const MAX_IN_FLIGHT: u32 = 4096;

/// How often the kernel is asked, at most, for what it has dropped.
const OVERFLOW_LOOKS: Duration = Duration::from_secs(1);

/// Longest query that is read whole; a longer one is malformed by then, and ignored.
const MAX_QUERY: usize = 4096;

/// A TCP client that sends nothing for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(30);

/// Answers queries over UDP on this thread until the pod is gone, or until a drain: the next agent has a socket on the
/// same port, and this one answers only what it was asked already.
pub(crate) fn spawn_udp(mesh: &Arc<Mesh>, pod: &Arc<PodDns>, drain: &drain::Watch) {
    let (mesh, pod, drain) = (mesh.clone(), pod.clone(), drain.clone());
    spawn_local_connection("dns udp", async move {
        if let Err(error) = serve_udp(&mesh, &pod, drain).await {
            tracing::error!(pod = %pod.pod_uid, %error, "cannot answer the pod's DNS queries");
        }
    });
}

async fn serve_udp(mesh: &Arc<Mesh>, pod: &Arc<PodDns>, mut drain: drain::Watch) -> io::Result<()> {
    let socket = Rc::new(UdpSocket::from_std(pod.handle()?)?);
    let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize));
    let mut overflow = Overflow::default();
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        tokio::select! {
            biased;
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, client)) => {
                    take(mesh, pod, &slots, &socket, &buffer[..length], client);
                    mesh.metrics.dns_overload.inc_by(overflow.since_last_look(socket.as_fd()));
                }
                // The client's port closed before our last answer reached it.
                Err(_unreachable) => {}
            },
            () = pod.stop.cancelled() => return Ok(()),
            () = drain.signaled() => break,
        }
    }
    if let Some(parted) = pod.part() {
        // Past tokio, which may not have heard yet that there is something to read.
        while let Some((length, client)) = next_queued(&parted, &mut buffer) {
            take(mesh, pod, &slots, &socket, &buffer[..length], client);
        }
    }
    tokio::select! {
        () = pod.stop.cancelled() => {}
        () = answered(pod, &slots) => {}
    }
    Ok(())
}

/// Counts queries that found no room in the socket's buffer. Looked at when a query is read: where one was dropped, others
/// wait to be.
#[derive(Default)]
struct Overflow {
    looked: Option<Instant>,
    dropped: u32,
}

impl Overflow {
    fn since_last_look(&mut self, socket: BorrowedFd<'_>) -> u64 {
        let now = Instant::now();
        if self.looked.is_some_and(|at| now - at < OVERFLOW_LOOKS) {
            return 0;
        }
        self.looked = Some(now);
        // A kernel that does not tell drops none that we could count.
        let dropped = karst_netns::dropped_datagrams(socket).unwrap_or(self.dropped);
        let before = std::mem::replace(&mut self.dropped, dropped);
        dropped.wrapping_sub(before).into()
    }
}

/// What the socket has got already.
fn next_queued(socket: &std::net::UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Ok(received) => return Some(received),
            // As above: said once for each answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_nothing_more) => return None,
        }
    }
}

/// Completes when nothing waits for an answer any more. Clients of a pod that has left the mesh connect anew, past us:
/// this may be the last agent of the node.
async fn answered(pod: &PodDns, slots: &Semaphore) {
    // An error is that the semaphore is closed, which this one never is.
    let _all = slots.acquire_many(MAX_IN_FLIGHT).await;
    if !pod.knows_mesh() {
        end_clients(&pod.pod_uid, &pod.netns, pod.port());
    }
}

/// Answers one query in a task of its own.
fn take(
    mesh: &Arc<Mesh>,
    pod: &Arc<PodDns>,
    slots: &Arc<Semaphore>,
    socket: &Rc<UdpSocket>,
    query: &[u8],
    client: SocketAddr,
) {
    if !pod.is_own(canonical(client).ip()) {
        mesh.metrics.dns_strangers.inc();
        return;
    }
    let Ok(slot) = slots.clone().try_acquire_owned() else {
        mesh.metrics.dns_overload.inc();
        return;
    };
    let (query, socket, mesh, pod) = (query.to_vec(), socket.clone(), mesh.clone(), pod.clone());
    spawn_local_connection("dns query", async move {
        if let Some(bytes) = respond(&mesh, &pod, &query, Transport::Udp).await {
            // A client that is gone is no error of ours.
            let _ = socket.send_to(&bytes, client).await;
        }
        drop(slot);
    });
}

/// Answers queries of one TCP client, one after the other.
pub(crate) async fn serve_tcp(
    mesh: Arc<Mesh>,
    pod: Arc<PodDns>,
    _drain: drain::Watch,
    mut stream: TcpStream,
    _client: SocketAddr,
) {
    while let Ok(Ok(query)) = timeout(TCP_IDLE, forward::read_framed(&mut stream)).await {
        let Some(bytes) = respond(&mesh, &pod, &query, Transport::Tcp).await else {
            return;
        };
        if forward::write_framed(&mut stream, &bytes).await.is_err() {
            return;
        }
    }
}

/// The bytes to answer with, or None for what deserves no answer.
async fn respond(mesh: &Mesh, pod: &PodDns, bytes: &[u8], over: Transport) -> Option<Vec<u8>> {
    mesh.metrics.dns_queries.inc();
    let query = Message::from_vec(bytes).ok()?;
    if !pod.knows_mesh() {
        return forward(mesh, pod, &query, bytes, over).await;
    }
    let search = SearchDomains::new(&pod.namespace, &mesh.config.cluster_domain);
    let names = ClientView { mesh, pod };
    match answer(&query, &names, &search) {
        Outcome::Ignore => None,
        Outcome::Answer(response) => encode(&query, &response, over),
        Outcome::Forward => forward(mesh, pod, &query, bytes, over).await,
    }
}

/// The answer of the cluster's resolver, or that there is none.
async fn forward(
    mesh: &Mesh,
    pod: &PodDns,
    query: &Message,
    bytes: &[u8],
    over: Transport,
) -> Option<Vec<u8>> {
    match forward_raw(mesh, pod, bytes, over).await {
        Some(answer) => Some(answer),
        None => encode(query, &refusal(query, ResponseCode::ServFail), over),
    }
}

fn encode(query: &Message, response: &Message, over: Transport) -> Option<Vec<u8>> {
    match over {
        Transport::Udp => encode_udp(query, response),
        Transport::Tcp => response.to_vec().ok(),
    }
}

async fn forward_raw(mesh: &Mesh, pod: &PodDns, query: &[u8], over: Transport) -> Option<Vec<u8>> {
    let resolver = SocketAddr::new(mesh.config.cluster_dns?, 53);
    mesh.metrics.dns_forwarded.inc();
    match forward::ask((&pod.netns, &pod.forwards), resolver, query, over).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            mesh.metrics.dns_failures.inc();
            tracing::debug!(pod = %pod.pod_uid, %resolver, %error, "the cluster's resolver did not answer");
            None
        }
    }
}

/// The mesh's names as the pod may see them.
struct ClientView<'a> {
    mesh: &'a Mesh,
    pod: &'a PodDns,
}

impl Names for ClientView<'_> {
    fn lookup(&self, host: &str) -> Option<Vec<IpAddr>> {
        let state = &self.mesh.state;
        let service = state.service_by_host(host, &self.pod.namespace)?;
        let network = self.mesh.config.own_network();
        if !service.addresses.is_empty() {
            let vips = service
                .addresses
                .iter()
                .filter(|vip| vip.network == network && vip.prefix_len.is_none());
            return Some(vips.map(|vip| vip.ip).collect());
        }
        let in_cluster = host.ends_with(&format!(".svc.{}", self.mesh.config.cluster_domain));
        if !in_cluster {
            return None;
        }
        let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let usable = |w: &Workload| w.network == network && (all || w.health == Health::Healthy);
        let endpoints = state.endpoints(&service.key);
        Some(
            endpoints
                .iter()
                .filter(|w| usable(w))
                .flat_map(|w| w.addresses.clone())
                .collect(),
        )
    }
}
