//! How Karst programs run: supervised tasks, drain, signals, readiness, liveness, admin endpoints, build information.
//!
//! ```text
//!   signal ──► Shutdown ──► drain ──► listeners stop, connections finish or are cut at the deadline
//!   supervise ──► every task has a name; a panic costs one connection, or starts the drain
//!   readiness, telemetry, the program's own state ──► admin (HTTP on a local port)
//! ```

pub mod admin;
pub mod build_info;
pub mod clock;
pub mod drain;
pub mod liveness;
pub mod readiness;
pub mod signal;
pub mod supervise;
