//! Pure decisions about requests and connections: which route, which backend, which endpoint, whether again.
//!
//! ```text
//!   http head ──request──► Request ──table──► rule ──weights──► backend ──balance──► endpoint ──► agent, waypoint dial
//!                             ▲                │                                        ▲
//!                             └────filter──────┘           failure ──retry──► again? ───┘
//! ```
//!
//! The agent's `outbound/resolve` calls [`balance`] for every connection to a service; the waypoint's phases call all of
//! it. Nothing here does I/O, reads a clock or draws a random number by itself.

pub mod affinity;
pub mod balance;
pub mod breaker;
mod compare;
pub mod deadline;
pub mod ewma;
pub mod filter;
pub mod hash;
pub mod health;
#[cfg(test)]
mod mutation;
pub mod outlier;
pub mod pattern;
pub mod priority;
pub mod ratelimit;
pub mod request;
pub mod retry;
pub mod session;
pub mod share;
pub mod table;
pub mod token;
pub mod warm_up;
pub mod weights;

// The reference's files name this crate as every test in `tests/` does.
#[cfg(test)]
extern crate self as karst_routing;
