//! Clients that connect without HBONE, to one service: for measurements, and the way in for gateways later. They have
//! no identity, so whatever needs one is refused.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use karst_model::name::ServiceKey;
use karst_runtime::drain;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    carry,
    destination::Destination,
    http::Client,
    mesh::Mesh,
    stream::Stream,
    workers::{Worker, Workers},
};

/// Accepts connections for one port of a service and spreads them over the threads.
pub async fn accept(
    listener: TcpListener,
    (service, port): (ServiceKey, u16),
    mesh: Arc<Mesh>,
    workers: Workers,
    drain: drain::Watch,
) {
    while let Some(accepted) = mesh.stopped.run_until_cancelled(listener.accept()).await {
        let Ok((stream, peer)) = accepted else {
            continue;
        };
        let (service, drain) = (service.clone(), drain.clone());
        workers.place("plain connection", stream, move |worker, stream| {
            serve(worker, stream, peer, (service, port), drain)
        });
    }
}

async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    (service, port): (ServiceKey, u16),
    drain: drain::Watch,
) {
    let mesh = worker.mesh.clone();
    let (Some(slot), Some(place)) = (mesh.services.get(&service), mesh.bounds.connection()) else {
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let client = Client {
        identity: None,
        addr: peer,
        labels: Arc::default(),
        key: worker.upstreams.client(None),
    };
    let destination = Destination {
        slot: Some(slot),
        also: Vec::new(),
        port,
        dialled: None,
        pinned: None,
    };
    let stream = Stream::Tcp(stream);
    carry::carry(worker, client, destination, stream, place, drain).await;
}
