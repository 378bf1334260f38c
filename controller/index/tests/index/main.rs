//! The index from outside: objects as YAML in, the model out.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of test functions"
)]

mod credentials;
mod destination_merge;
mod destination_rules;
mod enrolment;
mod entries;
mod limits;
mod order;
mod policies;
mod request_policies;
mod routes;
mod services;
mod telemetry;
mod tokens;
mod trust;
mod virtual_services;
mod waypoints;
mod world;
