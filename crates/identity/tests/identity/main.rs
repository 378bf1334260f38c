//! The crate from outside: handshakes between configurations, the store against a scripted CA, the control plane.

mod control_plane;
mod credential;
mod handshake;
mod mint;
mod store;
