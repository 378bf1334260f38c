//! HBONE: HTTP/2 CONNECT over mutual TLS, client pool and server.
//!
//! ```text
//!                    client side                                    server side
//!   app TCP ──► relay ──► Tunnel ──► h2 ──► tls ──► BulkIo ══ TCP ══ BulkIo ──► tls ──► h2 ──► Tunnel ──► relay ──► app TCP
//!                           ▲                                                            ▲
//!                    pool::Pool::open                                              server::serve
//! ```
//!
//! Everything that belongs to one connection runs on one thread (a current-thread runtime with a `LocalSet`): a message
//! costs no channel and no hop between threads. The wire contract is Istio's HBONE: port 15008, ALPN `h2`, `CONNECT`
//! with only `:authority`, status 200 before any payload.

pub mod bulk_io;
pub mod error;
pub mod io;
pub mod keepalive;
pub mod pool;
pub mod proxy_protocol;
pub mod relay;
pub mod request;
pub mod server;
pub mod stream;
pub mod tls;

pub use error::{
    Blame, ConnectError, DialError, Flag, OpenError, RequestError, Retry, ServeError, StreamError,
};
pub use io::TunnelIo;
pub use pool::{Connect, Pool, PoolConfig, PoolKey};
pub use relay::{AppIo, End, Flow, RelayEnd, copy_tcp, join_tunnels, relay};
pub use request::{
    Authority, Baggage, Client, Forwarded, InboundRequest, TraceParent, TunnelRequest,
};
pub use server::{Incoming, ServerConfig};
pub use stream::{Tunnel, TunnelReader, TunnelWriter};

/// TCP port on which every HBONE server listens.
pub const HBONE_PORT: u16 = 15008;

/// Flow control window of one stream, in bytes, as Istio's node proxy sets it.
pub const STREAM_WINDOW: u32 = 4 << 20;

/// Flow control window of one connection, in bytes: four stream windows, so that one unread stream cannot stop the others.
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// Largest frame that we accept, in bytes, and largest chunk that we send where the peer accepts as much.
pub const MAX_FRAME: u32 = 1 << 20;
