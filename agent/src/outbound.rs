//! Traffic from captured pods: find what was dialled, choose an endpoint, tunnel or connect, relay.

pub(crate) mod balancer;
pub(crate) mod dial;
mod first_bytes;
pub(crate) mod resolve;
pub(crate) mod waypoint;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use karst_hbone::{
    Authority, Baggage, Flow, Forwarded, RelayEnd, TraceParent, Tunnel, TunnelRequest, copy_tcp,
    relay,
};
use karst_model::workload::Workload;
use karst_runtime::drain;
use karst_telemetry::{
    metrics::tcp::{Reporter, ResponseFlags, Security, TcpLabels},
    settings::Side,
};
use tokio::net::TcpStream;

use crate::{
    capture::pods::LocalPod,
    error::OutboundError,
    inbound::own_workload,
    metrics::{peer, service_labels},
    outbound::resolve::{Route, Upstream},
    reset,
    tracked::{Bytes, Tracked},
    workers::Worker,
};

/// Istio's name for where connections go that nothing in a registry is known of, where only that may be reached.
const BLACK_HOLE: &str = "BlackHoleCluster";

/// The other side of an outbound connection, once it is there.
enum Connected {
    Tunnel {
        tunnel: Tunnel,
        /// Bytes of the application that are in it already.
        sent: u64,
    },
    Direct(TcpStream),
}

/// Serves one captured connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    _drain: drain::Watch,
    stream: TcpStream,
    client: SocketAddr,
) {
    let mesh = &worker.mesh;
    let Some(dialled) = mesh.datapath.take_orig_dst(pod.cookie, client) else {
        mesh.metrics.no_original_destination.inc();
        let tracked = Tracked::start(&mesh.metrics.tcp, labels(None, None), client, client);
        tracked.refuse(
            &OutboundError::NotCaptured,
            OutboundError::NotCaptured.flag(),
        );
        return reset::close(stream);
    };
    let source = own_workload(mesh, &pod).await;
    let route = source
        .as_deref()
        .ok_or_else(|| OutboundError::UnknownSource(pod.workload_uid.clone()))
        .and_then(|source| resolve::resolve(mesh, source, pod.egress(), dialled));
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            let mut labels = labels(source.as_deref(), None);
            if error.is_unregistered() {
                labels.service.name = BLACK_HOLE.into();
                labels.service.host = BLACK_HOLE.into();
            }
            Tracked::start(&mesh.metrics.tcp, labels, client, dialled).refuse(&error, error.flag());
            return reset::close(stream);
        }
    };
    let mut tracked = Tracked::start(
        &mesh.metrics.tcp,
        labels(source.as_deref(), Some(&route)),
        client,
        dialled,
    )
    .recorded_for(&mesh.hub, source.as_deref(), Side::Client);
    let connected = connect(
        &worker,
        &pod,
        source.as_deref(),
        &route,
        (&stream, client),
        &mut tracked,
    )
    .await;
    match connected {
        Ok(connected) => {
            tracked.opened();
            carry(stream, connected, tracked).await;
        }
        Err(error) => {
            tracked.refuse(&error, error.flag());
            reset::close(stream);
        }
    }
}

async fn connect(
    worker: &Worker,
    pod: &Arc<LocalPod>,
    source: Option<&Workload>,
    route: &Route,
    (stream, client): (&TcpStream, SocketAddr),
    tracked: &mut Tracked<'_>,
) -> Result<Connected, OutboundError> {
    match &route.upstream {
        Upstream::Direct { addr } => {
            let connected = dial::tcp(&pod.netns, *addr).await;
            connected
                .map(Connected::Direct)
                .map_err(|source| OutboundError::Connect {
                    addr: *addr,
                    source,
                })
        }
        Upstream::Tunnel { key, target } => {
            let authority = Authority::Addr(*target);
            tracked.through_tunnel(key.addr, authority.to_string());
            let request = TunnelRequest {
                baggage: source.and_then(|source| Baggage::of(source).encode()),
                forwarded: Some(Forwarded {
                    source: client,
                    host: route
                        .service
                        .as_ref()
                        .map(|service| service.key.hostname.clone()),
                }),
                traceparent: Some(TraceParent::fresh()),
                ..TunnelRequest::new(authority)
            };
            let first = first_bytes::take(stream);
            let opened = worker.pool.open(pod, key, request, &first).await;
            opened
                .map(|tunnel| Connected::Tunnel {
                    tunnel,
                    sent: first.len() as u64,
                })
                .map_err(|source| OutboundError::Tunnel {
                    addr: key.addr,
                    source,
                })
        }
    }
}

async fn carry(stream: TcpStream, connected: Connected, tracked: Tracked<'_>) {
    // Nothing revokes an outbound connection: policy is enforced where it arrives.
    let RelayEnd {
        sent,
        received,
        end,
    } = match connected {
        Connected::Tunnel { tunnel, sent } => {
            relay(stream, tunnel, &Flow::after_sending(sent)).await
        }
        Connected::Direct(upstream) => copy_tcp(stream, upstream, &Flow::default()).await,
    };
    tracked.finish(
        Bytes {
            request: sent,
            response: received,
        },
        &end,
        None,
    );
}

/// Who talks to whom, as the source reports it.
fn labels(source: Option<&Workload>, route: Option<&Route>) -> TcpLabels {
    let tunnelled = route.is_some_and(|route| matches!(route.upstream, Upstream::Tunnel { .. }));
    let destination = route.and_then(|route| route.workload.as_deref());
    let identity =
        |workload: Option<&Workload>| workload.filter(|_| tunnelled).map(Workload::identity);
    TcpLabels {
        reporter: Reporter::Source,
        source: peer(source, identity(source).as_ref()),
        destination: peer(destination, identity(destination).as_ref()),
        service: service_labels(route.and_then(|route| route.service.as_deref())),
        response_flags: ResponseFlags::None,
        security: if tunnelled {
            Security::MutualTls
        } else {
            Security::Unknown
        },
    }
}
