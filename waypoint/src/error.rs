//! What can go wrong before there is a request: small enums, each with the status that the HBONE client sees.

use std::{io, net::SocketAddr};

use karst_hbone::{Authority, Flag, OpenError};
use karst_identity::tls::{HandshakeError, OriginationError};
use karst_model::name::ServiceKey;
use karst_routing::balance::NoEndpoint;

use crate::services::{NoHost, NoMember};

/// Why a client's stream is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    /// Config lags behind, or the client was misled: another try elsewhere may help.
    #[error("{asked} is no service or workload whose waypoint this is")]
    NotServed { asked: Authority },
    #[error("service {service} has no port {port}")]
    NoPort { service: String, port: u16 },
    #[error("too many client connections are open")]
    Full,
}

impl InboundError {
    /// Status of the CONNECT response.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::NotServed { .. } | Self::NoPort { .. } => 404,
            Self::Full => 503,
        }
    }

    pub(crate) fn flag(&self) -> Flag {
        Flag::Connect
    }
}

/// Why there is no connection to an endpoint. Nothing was sent then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect to {addr}")]
    Tcp {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot open a tunnel to {addr}")]
    Tunnel {
        addr: SocketAddr,
        #[source]
        source: OpenError,
    },
    #[error("no TLS connection to {addr}")]
    Tls {
        addr: SocketAddr,
        #[source]
        source: Box<TlsFault>,
    },
    #[error(
        "the endpoint at {addr} is not in the mesh, and tls.mode ISTIO_MUTUAL of its service's DestinationRule lets nothing \
         go in clear"
    )]
    NotInMesh { addr: SocketAddr },
    #[error("connections to {set} are limited to {limit}, and {what}")]
    Full {
        set: String,
        limit: u32,
        what: &'static str,
    },
    #[error("the endpoint at {addr} does not speak HTTP")]
    Handshake {
        addr: SocketAddr,
        #[source]
        source: hyper::Error,
    },
}

/// Why TLS to an endpoint cannot be had: the configuration's fault, or the endpoint's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFault {
    #[error(transparent)]
    Settings(#[from] OriginationError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl ConnectError {
    pub(crate) fn flag(&self) -> Flag {
        match self {
            Self::Tunnel { source, .. } => source.flag(),
            _ => Flag::Connect,
        }
    }
}

/// Why a connection that is no HTTP is not carried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    #[error("{0}")]
    Denied(String),
    #[error("no route of this service takes the connection: {0}")]
    NoRoute(String),
    #[error("the route's backend cannot be used: {0}")]
    Backend(String),
    #[error("connections to {set} are limited to {limit}")]
    Full { set: String, limit: u32 },
    #[error(transparent)]
    NoMember(#[from] NoMember),
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the client's connection broke")]
    ClientIo(#[source] io::Error),
    #[error("the client's first bytes are neither HTTP/2 nor an HTTP/1 request")]
    NoHttp,
    #[error("the client's first bytes are no TLS ClientHello")]
    Hello,
    #[error(
        "service {0} has no endpoints but those of the host that a client names, and this one named none in TLS"
    )]
    NoName(ServiceKey),
    #[error(transparent)]
    NoHost(#[from] NoHost),
}

impl TcpError {
    pub(crate) fn flag(&self) -> Flag {
        match self {
            Self::Denied(_) => Flag::Deny,
            Self::Connect(error) => error.flag(),
            _ => Flag::Connect,
        }
    }
}
