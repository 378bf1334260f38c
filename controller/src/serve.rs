//! What the controller serves: discovery, certificates, enrolment of nodes and their reports, all on one TLS port.
//!
//! ```text
//!   index ──delta──► publish ──► Resources (each encoded once) ──► one Session per stream ──► agents, waypoints
//!   agents ──reports──► mesh (the index's owner)
//!   agents, waypoints ──observations──► what was denied or failed, who talks to whom
//!   people ──read──► Resources, agents through `nodes`, observations
//! ```
//!
//! Every call but `Enrollment.Join` carries a bearer token. Whole-mesh discovery is for node agents and
//! waypoints only, and each of them gets its own part of the rest.

pub mod acks;
pub mod caller;
pub mod certificates;
pub mod collectors;
pub mod discovery;
pub mod enrollment;
pub mod metrics;
pub mod nodes;
pub mod observations;
pub mod peer;
pub mod publish;
pub mod read;
pub mod reports;
pub mod resources;
pub mod session;
