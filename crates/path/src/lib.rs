//! Which way a connection takes through the mesh. Pure: reads the discovered state and decides.
//!
//! ```text
//!   discovery::State ──► outbound::resolve ──► agent: one connection of a pod
//!   Facts (the same store, of a whole mesh) ──► why::answer ──► `karst why`: the same decisions, each with its reason
//! ```
//!
//! Why this is one crate: `docs/design/0014-why-asks-the-data-plane.md`.

pub mod describe;
mod facts;
pub mod outbound;
pub mod why;

pub use facts::Facts;
