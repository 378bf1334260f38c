//! The L7 proxy of a namespace or a service: in the path of everything that is sent to what it serves.
//!
//! ```text
//!   agent ══HBONE══► inbound (identity) ─► destination (service or pod, and port) ─► detect (protocol)
//!                                                                                      │
//!        ┌── http::phases: accept, identify, normalise, route, authenticate, authorize, limit, filter,
//!        │                 pick endpoint, send, retry, reply, record  ◄─────────────── HTTP/1, HTTP/2
//!        └── tcp: route by SNI or port, authorize, relay              ◄─────────────── everything else
//!        │
//!        └─► upstream (endpoints of a service, pooled connections) ══HBONE══► agent of the workload ─► application
//! ```
//!
//! What a request may do and where it goes is decided by `karst-routing` and `karst-policy`; here is the I/O. A
//! connection and everything it needs stay on one thread. Configuration is an immutable snapshot per service
//! ([`services`]), swapped whole: a change never touches what is in flight, except that policy revokes.

mod admin;
pub mod app;
mod authorize;
mod bounds;
mod carry;
pub mod config;
mod destination;
pub mod detect;
mod error;
mod health;
mod http;
mod inbound;
mod labels;
pub mod mesh;
mod metrics;
pub mod plain;
mod rate_limits;
mod services;
mod share;
mod stream;
mod tcp;
mod upstream;
pub mod workers;

pub use inbound::accept;
