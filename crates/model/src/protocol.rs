//! Closed sets of protocols: what a port speaks and how a workload is reached.

use serde::{Deserialize, Serialize};

/// What the application speaks on a port, as far as the port's declaration tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// How a workload accepts mesh traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TunnelProtocol {
    /// Plain TCP to the workload's own port.
    #[default]
    None,
    /// HTTP/2 CONNECT over mutual TLS on port 15008.
    Hbone,
}

/// Port on which every HBONE server listens.
pub const HBONE_PORT: u16 = 15008;

/// Ports that belong to the node proxy in other implementations; never a destination of a tunnel.
pub const RESERVED_PORTS: [u16; 4] = [15001, 15006, 15008, 15080];
