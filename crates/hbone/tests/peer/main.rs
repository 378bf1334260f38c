//! Scripted peers: the other side is the `h2` library or bytes written by hand, never our own code.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic like the tests themselves"
)]

mod certs;
mod raw;
mod rig;

mod client;
mod hostile;
mod relay;
mod server;
mod tls;
