//! One connection of a client: finds out what it speaks and hands it to HTTP or to the relay.
//!
//! Where the port does not say, the client's first bytes do. A protocol in which the server speaks first is not made to
//! wait: the endpoint is connected meanwhile, and whoever speaks first decides.

use std::rc::Rc;

use karst_model::protocol::AppProtocol;
use karst_routing::table::Routes;
use karst_runtime::drain;
use prometheus_client::metrics::gauge::Gauge;

use crate::{
    bounds::Place,
    destination::Destination,
    detect::{self, Guess},
    error::TcpError,
    http::{self, Client, Conversation, Version},
    stream::{HttpIo, Stream},
    tcp::{self, Opened, Tracked},
    workers::Worker,
};

/// How a connection is carried.
enum Plan {
    /// Which version the port declares.
    Http(Version),
    /// By the server name of its ClientHello.
    Tls,
    Tcp,
    /// Its first bytes decide.
    Look,
}

/// Serves a client's connection to its end.
pub(crate) async fn carry(
    worker: Rc<Worker>,
    client: Client,
    destination: Destination,
    mut stream: Stream,
    place: Place,
    drain: drain::Watch,
) {
    let _open = Open::new(&worker.mesh.metrics.connections);
    let plan = plan(&client, &destination);
    let way = match plan {
        Plan::Http(declared) => http_version(&mut stream, declared).await.map(Way::Http),
        Plan::Tls => Ok(Way::Tls),
        Plan::Tcp => Ok(Way::Tcp(None)),
        Plan::Look => look(&worker, &client, &destination, &mut stream).await,
    };
    match way {
        Ok(Way::Http(version)) => {
            let conversation = Conversation::new(worker, client, destination, Some(place));
            http::serve(conversation, HttpIo::from(stream), version, drain).await;
        }
        Ok(Way::Tls) => tcp::serve_tls(&worker, &client, &destination, stream).await,
        Ok(Way::Tcp(opened)) => {
            let opened = opened.map(|opened| *opened);
            tcp::serve(&worker, &client, &destination, stream, opened).await;
        }
        Err(error) => Tracked::start(&worker, &client, &destination).refuse(&error),
    }
}

/// Counts a connection while it is open.
struct Open(Gauge);

impl Open {
    fn new(connections: &Gauge) -> Self {
        connections.inc();
        Self(connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Asks policy about a connection of which it is known that it is no HTTP, before the client is told that it is open.
/// Everything else is asked about when it is known what it is.
pub(crate) fn admit(
    worker: &Worker,
    client: &Client,
    destination: &Destination,
) -> Result<(), TcpError> {
    match plan(client, destination) {
        Plan::Tcp => tcp::allow(worker, client, destination, None),
        Plan::Http(_) | Plan::Tls | Plan::Look => Ok(()),
    }
}

/// What a connection turned out to be.
enum Way {
    Http(Version),
    Tls,
    Tcp(Option<Box<Opened>>),
}

/// By the port's declaration and its routes.
fn plan(client: &Client, destination: &Destination) -> Plan {
    let served = destination.slot.as_ref().map(|slot| slot.load());
    let port = served
        .as_ref()
        .and_then(|served| served.ports.get(&destination.port));
    let routes = port
        .filter(|_| destination.pinned.is_none())
        .map(|port| port.table.routes(client.namespace()));
    match (routes, port.map(|port| port.app_protocol)) {
        (Some(Routes::Tcp(_) | Routes::OrderedTcp(_)), _) => Plan::Tcp,
        (Some(Routes::Tls(_)), _) => Plan::Tls,
        (_, Some(AppProtocol::Http11)) => Plan::Http(Version::Http1),
        (_, Some(AppProtocol::Http2 | AppProtocol::Grpc)) => Plan::Http(Version::Http2),
        (_, Some(AppProtocol::Tls)) => Plan::Tls,
        (_, Some(AppProtocol::Tcp)) => Plan::Tcp,
        (_, Some(AppProtocol::Unknown) | None) => Plan::Look,
    }
}

/// HTTP/1 or HTTP/2 with prior knowledge: whatever the port declares, the client decides. Where HTTP/2 is declared, what
/// is neither gets no answer, since it would be one of HTTP/1.
async fn http_version(stream: &mut Stream, declared: Version) -> Result<Version, TcpError> {
    let mut wanted = 1;
    loop {
        let seen = stream.peek(wanted).await.map_err(TcpError::ClientIo)?;
        match detect::http_version(&seen) {
            Guess::Http2 => return Ok(Version::Http2),
            Guess::More(more) if seen.len() >= wanted => wanted = more,
            _ if declared == Version::Http1 => return Ok(Version::Http1),
            _ => break,
        }
    }
    match guess(stream).await? {
        Guess::Http1 => Ok(Version::Http1),
        _ => {
            stream.forget_peeked().await.map_err(TcpError::ClientIo)?;
            Err(TcpError::NoHttp)
        }
    }
}

/// Waits for the client's first bytes, and for the endpoint's.
async fn look(
    worker: &Rc<Worker>,
    client: &Client,
    destination: &Destination,
    stream: &mut Stream,
) -> Result<Way, TcpError> {
    let mut opened = None;
    let guess = {
        let mut guessing = std::pin::pin!(guess(stream));
        tokio::select! {
            biased;
            guess = &mut guessing => guess?,
            result = tcp::open(worker, client, destination, None) => match result {
                Err(error) => match guessing.await? {
                    // HTTP has better words for it.
                    guess @ (Guess::Http1 | Guess::Http2) => guess,
                    Guess::Tls if tcp::goes_by_name(destination) => Guess::Tls,
                    _ => return Err(error),
                },
                Ok(mut connected) => tokio::select! {
                    guess = &mut guessing => {
                        opened = Some(connected);
                        guess?
                    }
                    _ = connected.stream.peek(1) => return Ok(Way::Tcp(Some(Box::new(connected)))),
                },
            },
        }
    };
    Ok(match guess {
        Guess::Http1 => {
            if let Some(opened) = opened {
                tcp::give_to_http(worker, client, opened).await;
            }
            Way::Http(Version::Http1)
        }
        Guess::Http2 => Way::Http(Version::Http2),
        Guess::Tls if has_tls_routes(client, destination) || tcp::goes_by_name(destination) => {
            Way::Tls
        }
        _ => Way::Tcp(opened.map(Box::new)),
    })
}

async fn guess(stream: &mut Stream) -> Result<Guess, TcpError> {
    let mut wanted = 1;
    loop {
        let seen = stream.peek(wanted).await.map_err(TcpError::ClientIo)?;
        match detect::guess(&seen) {
            Guess::More(more) if seen.len() >= wanted => wanted = more,
            Guess::More(_) => return Ok(Guess::Other),
            known => return Ok(known),
        }
    }
}

fn has_tls_routes(client: &Client, destination: &Destination) -> bool {
    destination.slot.as_ref().is_some_and(|slot| {
        let served = slot.load();
        let port = served.ports.get(&destination.port);
        port.is_some_and(|port| matches!(port.table.routes(client.namespace()), Routes::Tls(_)))
    })
}
