//! Scripted peers: real clients over HBONE on loopback, the real waypoint with its threads, and applications behind
//! agents that the tests write themselves. The state of the mesh is filled by hand.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may panic like the tests themselves; some tests measure"
)]

mod app;
mod client;
mod rig;

mod backends;
mod differential;
mod egress;
mod external;
mod http;
mod limits;
mod malformed;
mod mutual;
mod operation;
mod policy;
mod resilience;
mod routes;
mod tcp;
mod telemetry;
mod tokens;
mod upgrades;
mod virtual_services;
