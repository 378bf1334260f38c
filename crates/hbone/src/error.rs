//! What goes wrong in a tunnel, whose fault it is, whether to try again, and the label it gets in metrics and logs.

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The other side of the connection, or the network between.
    Peer,
    /// What the operator configured: a policy, a limit.
    Config,
    /// This machine: descriptors, memory, a missing credential.
    Platform,
    /// A defect in Karst.
    Bug,
}

/// Whether the same request may be sent again without the application noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Nothing reached the peer's application: another connection may be tried at once.
    OtherConnection,
    /// Trying again makes sense, but not at once.
    Later,
    /// It would fail again, or bytes may already have been delivered.
    No,
}

/// The `response_flags` label of `istio_tcp_connections_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flag {
    #[default]
    None,
    Connect,
    Deny,
    TlsFailure,
    H2HandshakeFailure,
    NetworkPolicy,
    IdentityError,
}

impl Flag {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Connect => "CONNECT",
            Self::Deny => "DENY",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A CONNECT request that cannot be served; the peer gets status 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("method {0} is not CONNECT")]
    Method(String),
    #[error("extended CONNECT (:protocol {0:?}) is not supported")]
    Protocol(String),
    #[error("request has no authority")]
    NoAuthority,
    #[error("authority {0:?} is not <address>:<port> or <hostname>:<port>")]
    Authority(String),
    #[error("authority {0:?} has no port from 1 to 65535")]
    Port(String),
}

impl RequestError {
    pub fn blame(&self) -> Blame {
        Blame::Peer
    }

    pub fn retry(&self) -> Retry {
        Retry::No
    }

    pub fn flag(&self) -> Flag {
        Flag::Connect
    }
}

/// No TLS connection to the peer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A timeout to this port is nearly always a NetworkPolicy that blocks it.
    #[error("no answer within {0:?}; a NetworkPolicy may block TCP port 15008")]
    Timeout(Duration),
    #[error("TCP connect failed")]
    Tcp(#[source] io::Error),
    #[error("no socket for the connection")]
    Socket(#[source] io::Error),
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// TLS 1.3 tells a client only after its own handshake. The text is the alert's: what the peer thinks of our
    /// certificate (unknown root, expired, ...), or of the clock.
    #[error("the peer refused our certificate: {0}")]
    Refused(String),
    #[error("TLS handshake not finished within {0:?}")]
    TlsTimeout(Duration),
    #[error("no certificate to connect with")]
    Identity(#[source] Box<dyn Error + Send + Sync>),
}

impl ConnectError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Timeout(_) => Blame::Config,
            Self::Tcp(_) | Self::Tls(_) | Self::Refused(_) | Self::TlsTimeout(_) => Blame::Peer,
            Self::Socket(_) | Self::Identity(_) => Blame::Platform,
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Self::Timeout(_) | Self::Tcp(_) | Self::TlsTimeout(_) => Retry::OtherConnection,
            Self::Socket(_) | Self::Identity(_) => Retry::Later,
            Self::Tls(_) | Self::Refused(_) => Retry::No,
        }
    }

    pub fn flag(&self) -> Flag {
        match self {
            Self::Timeout(_) => Flag::NetworkPolicy,
            Self::Tcp(_) | Self::Socket(_) => Flag::Connect,
            Self::Tls(_) | Self::Refused(_) | Self::TlsTimeout(_) => Flag::TlsFailure,
            Self::Identity(_) => Flag::IdentityError,
        }
    }
}

/// A pooled connection that did not come to be. Shared by everyone who waited for it.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no connection to the peer")]
    Connect(#[from] ConnectError),
    #[error("HTTP/2 handshake failed")]
    Handshake(#[source] h2::Error),
}

impl DialError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Connect(error) => error.blame(),
            Self::Handshake(_) => Blame::Peer,
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            Self::Handshake(_) => Retry::OtherConnection,
        }
    }

    pub fn flag(&self) -> Flag {
        match self {
            Self::Connect(error) => error.flag(),
            Self::Handshake(_) => Flag::H2HandshakeFailure,
        }
    }
}

/// A tunnel that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("dial failed")]
    Dial(#[source] Arc<DialError>),
    /// Anything but 200. 401 is a denial by policy, 503 that the peer could not reach the application.
    #[error("peer answered with status {0}")]
    Status(u16),
    #[error("connection to the peer failed before it answered")]
    Request(#[source] h2::Error),
    #[error("peer did not answer within {0:?}")]
    ResponseTimeout(Duration),
    #[error("all {0} connections of the pool are in use")]
    Connections(usize),
    #[error("{0} requests already wait for a connection")]
    Waiters(usize),
    #[error("connections to this peer ended {0} times before a request could be sent")]
    Attempts(u32),
    #[error("request cannot be written as HTTP")]
    Invalid(#[source] http::Error),
}

impl OpenError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Dial(error) => error.blame(),
            Self::Status(401) | Self::Connections(_) | Self::Waiters(_) => Blame::Config,
            Self::Status(_) | Self::Request(_) | Self::ResponseTimeout(_) | Self::Attempts(_) => {
                Blame::Peer
            }
            Self::Invalid(_) => Blame::Bug,
        }
    }

    pub fn retry(&self) -> Retry {
        match self {
            Self::Dial(error) => error.retry(),
            Self::Status(503) | Self::Request(_) | Self::Attempts(_) => Retry::OtherConnection,
            Self::ResponseTimeout(_) | Self::Connections(_) | Self::Waiters(_) => Retry::Later,
            Self::Status(_) | Self::Invalid(_) => Retry::No,
        }
    }

    pub fn flag(&self) -> Flag {
        match self {
            Self::Dial(error) => error.flag(),
            Self::Status(401) => Flag::Deny,
            _ => Flag::Connect,
        }
    }
}

/// An open tunnel that broke.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("peer reset the stream: {0}")]
    Reset(h2::Reason),
    #[error("connection that carried the stream failed")]
    Connection(#[source] h2::Error),
    #[error("stream is already closed for writing")]
    Closed,
}

impl StreamError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Reset(_) | Self::Connection(_) => Blame::Peer,
            Self::Closed => Blame::Bug,
        }
    }

    pub fn retry(&self) -> Retry {
        Retry::No
    }

    pub fn flag(&self) -> Flag {
        Flag::Connect
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason),
            _ => Self::Connection(error),
        }
    }
}

/// A served connection that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("HTTP/2 handshake not finished within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("HTTP/2 handshake failed")]
    Handshake(#[source] h2::Error),
    #[error("connection failed")]
    Connection(#[source] h2::Error),
    #[error("peer did not answer a ping within {0:?}")]
    PingTimeout(Duration),
    #[error("peer keeps opening and resetting streams")]
    Abandoned,
    #[error("streams still open at the drain deadline")]
    DrainDeadline,
}

impl ServeError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::DrainDeadline => Blame::Config,
            _ => Blame::Peer,
        }
    }

    pub fn retry(&self) -> Retry {
        Retry::No
    }

    pub fn flag(&self) -> Flag {
        match self {
            Self::HandshakeTimeout(_) | Self::Handshake(_) => Flag::H2HandshakeFailure,
            Self::DrainDeadline => Flag::None,
            Self::Connection(_) | Self::PingTimeout(_) | Self::Abandoned => Flag::Connect,
        }
    }
}
