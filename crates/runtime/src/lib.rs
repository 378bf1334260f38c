//! How Karst programs run: supervised tasks, drain, signals, readiness, admin endpoints, build information.
//!
//! ```text
//!   signal ──► drain ──► listeners stop, connections finish or are cut at the deadline
//!   supervise ──► every task has a name; a panic costs one connection, or starts the drain
//! ```

pub mod drain;
pub mod supervise;
