//! A connector for gRPC channels: TCP, then TLS as configured. Handed to tonic's `connect_with_connector`.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

/// Longest time for TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for one address while others are left: on a node that has just started one family may not be routed yet.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(1);
const HTTPS_PORT: u16 = 443;

/// Connects to the host and port of a URI, always by TLS, and verifies the server by `config`.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

/// Why the controller could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("controller address {0} has no host: expected https://<host>:<port>")]
    NoHost(Uri),
    #[error("controller host {0:?} is neither a DNS name nor an IP address")]
    Name(String),
    #[error(
        "connecting to {address} failed: is the controller running, and reachable from this node"
    )]
    Tcp {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "TLS with {address} failed: the controller is not the one that this node trusts, or its certificate lacks the name that was dialled"
    )]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("connecting to {address} took longer than {CONNECT_TIMEOUT:?}")]
    TimedOut { address: String },
}

impl Connector {
    /// Verifies the name of the URI.
    pub fn new(config: Arc<ClientConfig>) -> Self {
        Self {
            tls: TlsConnector::from(config),
            server_name: None,
        }
    }

    /// Verifies this name instead of the URI's, where the controller is dialled by an address it has no name for.
    #[must_use]
    pub fn with_server_name(mut self, name: ServerName<'static>) -> Self {
        self.server_name = Some(name);
        self
    }

    /// One connection to the URI's host and port (443 if it names none).
    pub async fn connect(self, uri: Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
        let host = uri
            .host()
            .ok_or_else(|| ConnectError::NoHost(uri.clone()))?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = uri.port_u16().unwrap_or(HTTPS_PORT);
        let address = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let name = match self.server_name {
            Some(name) => name,
            None => ServerName::try_from(host.clone())
                .ok()
                .ok_or(ConnectError::Name(host))?,
        };
        tokio::time::timeout(CONNECT_TIMEOUT, dial(&self.tls, &address, name))
            .await
            .unwrap_or(Err(ConnectError::TimedOut { address }))
    }
}

async fn dial(
    tls: &TlsConnector,
    address: &str,
    name: ServerName<'static>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let tcp_error = |source| ConnectError::Tcp {
        address: address.to_owned(),
        source,
    };
    let tcp = connect_any(address).await.map_err(tcp_error)?;
    tcp.set_nodelay(true).map_err(tcp_error)?;
    tls.connect(name, tcp)
        .await
        .map_err(|source| ConnectError::Tls {
            address: address.to_owned(),
            source,
        })
}

/// Connects to the first of the name's addresses that answers.
async fn connect_any(address: &str) -> io::Result<TcpStream> {
    let mut addrs: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let Some(last) = addrs.pop() else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        ));
    };
    for addr in addrs {
        let attempt = tokio::time::timeout(ADDRESS_PATIENCE, TcpStream::connect(addr)).await;
        if let Ok(Ok(connected)) = attempt {
            return Ok(connected);
        }
    }
    TcpStream::connect(last).await
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await.map(TokioIo::new) })
    }
}
