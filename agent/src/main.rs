//! The per-node L4 proxy: enrolls pods, tunnels their traffic, holds their identities.

fn main() {}
