//! Scripted peers: the other side is the `h2` library or bytes written by hand, never our own code.

mod certs;
mod raw;
mod rig;

mod client;
mod hostile;
mod relay;
mod server;
mod tls;
