//! Endpoint choice, pure: locality, health, weights, session affinity.
//!
//! ```text
//!   Service + port + source ──┐
//!   endpoints (Workload)    ──┼─► balance::choose ──► Choice { workload, address, target port } ──► agent dials
//!   affinity (last choice)  ──┘         │
//!                                       └─► NoEndpoint, which says what was there and why it was no use
//! ```
//!
//! The agent's `outbound/resolve` calls it for every connection to a service. Nothing here does I/O or reads a clock.

pub mod affinity;
pub mod balance;
