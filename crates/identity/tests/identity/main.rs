//! The crate from outside: handshakes between configurations, the store against a scripted CA, the control plane.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not the helpers beside them"
)]

mod control_plane;
mod credential;
mod handshake;
mod mint;
mod origination;
mod store;
