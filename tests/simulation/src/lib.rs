//! The simulation rung: the pure parts of the product, joined as the programs join them, without a socket or a clock.
//!
//! ```text
//!   Cluster (objects, edited at random)
//!      │ events
//!   Controller: Index ──► publications ──► Resources ──► one served Session per stream
//!      ▲ reports                                             │ responses   ▲ requests
//!      │                                                     ▼ faults      │
//!   Agent × 2: captured pods ◄── discovery State ◄── discovery Session ────┘
//! ```
//!
//! One seed decides everything: what is edited, whose turn it is, what is lost, doubled, swapped or spoiled. After every
//! step the rules of [`check`] must hold; when the faults end, every agent must hold what a mesh without faults holds.
//! Requests at a waypoint are simulated apart (`tests/requests.rs`), over [`endpoints`].

pub mod agent;
pub mod check;
pub mod cluster;
pub mod controller;
pub mod endpoints;
pub mod run;
