//! DNS sockets of a captured pod: decode, ask [`super::answer`], forward what it does not know.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, ResponseCode};
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
    capture::pods::LocalPod,
    dns::{
        answer::{Names, Outcome, SearchDomains, answer, encode_udp, refusal},
        forward::{self, Transport},
    },
    mesh::Mesh,
};

/// Queries of one pod in flight; one more is dropped and counted, as a resolver would under load.
const MAX_IN_FLIGHT: usize = 256;

/// A TCP client that sends nothing for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(30);

/// Answers queries over UDP until the pod is released.
pub(crate) async fn serve_udp(
    socket: UdpSocket,
    mesh: Arc<Mesh>,
    pod: Arc<LocalPod>,
    mut drain: drain::Watch,
) {
    let socket = Rc::new(socket);
    let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // The client's port closed before our last answer reached it.
                Err(_unreachable) => continue,
            },
            () = pod.stop.cancelled() => return,
            () = drain.signaled() => return,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            mesh.metrics.dns_overload.inc();
            continue;
        };
        let (query, socket, mesh, pod) = (
            buffer[..length].to_vec(),
            socket.clone(),
            mesh.clone(),
            pod.clone(),
        );
        spawn_local_connection("dns query", async move {
            if let Some(bytes) = respond(&mesh, &pod, &query, Transport::Udp).await {
                // A client that is gone is no error of ours.
                let _ = socket.send_to(&bytes, client).await;
            }
            drop(slot);
        });
    }
}

/// Answers queries of one TCP client, one after the other.
pub(crate) async fn serve_tcp(
    mesh: Arc<Mesh>,
    pod: Arc<LocalPod>,
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
async fn respond(mesh: &Mesh, pod: &LocalPod, bytes: &[u8], over: Transport) -> Option<Vec<u8>> {
    mesh.metrics.dns_queries.inc();
    let query = Message::from_vec(bytes).ok()?;
    let search = SearchDomains::new(&pod.namespace, &mesh.config.cluster_domain);
    let names = ClientView { mesh, pod };
    match answer(&query, &names, &search) {
        Outcome::Ignore => None,
        Outcome::Answer(response) => encode(&query, &response, over),
        Outcome::Forward => match forward_raw(mesh, pod, bytes, over).await {
            Some(answer) => Some(answer),
            None => encode(&query, &refusal(&query, ResponseCode::ServFail), over),
        },
    }
}

fn encode(query: &Message, response: &Message, over: Transport) -> Option<Vec<u8>> {
    match over {
        Transport::Udp => encode_udp(query, response),
        Transport::Tcp => response.to_vec().ok(),
    }
}

async fn forward_raw(
    mesh: &Mesh,
    pod: &LocalPod,
    query: &[u8],
    over: Transport,
) -> Option<Vec<u8>> {
    let resolver = SocketAddr::new(mesh.config.cluster_dns?, 53);
    mesh.metrics.dns_forwarded.inc();
    match forward::ask(&pod.netns, resolver, query, over).await {
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
    pod: &'a LocalPod,
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
