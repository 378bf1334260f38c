//! Delta xDS client: a pure session, the store it feeds, and the connection that drives it.
//!
//! ```text
//!   controller ──stream──► client ──response──► Session (pure) ──updates──► State ──lookups, changes──► agent
//!                            ▲                     │                          │
//!                            └──────ack / nack─────┘                          └──► saved (disk, for restarts)
//! ```
//!
//! The agent goes on with what [`State`] holds for as long as its certificates live: nothing here removes a resource
//! because a controller is away.

pub mod client;
mod index;
pub mod recording;
pub mod saved;
pub mod session;
pub mod state;
pub mod trust;
pub mod update;

pub use index::{Counts, PoliciesFor};
pub use state::{Change, Changed, Changes, State};
pub use update::{Kind, Update};
