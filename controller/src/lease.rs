//! Who leads among the replicas: one Lease, a pure state machine, and the shell that talks to the API server.
//!
//! ```text
//!   every 2 s: read the Lease ──► Election::handle ──► Create | Take | Renew | nothing
//!                                      ▲                   │ with the version that was read: a conflict changes nothing
//!                                      └──── outcome ──────┘
//! ```
//!
//! Only the leader writes status, trust bundles, waypoints and the state of the CA. All of it is written with the version
//! that was read, or is the same whoever writes it, so that two leaders for a moment do no harm. A leader that cannot renew
//! stops leading before anybody else may begin, and the client of one that was stopped for a while asks the clock before its
//! next write ([`fenced`]).

mod election;
mod fence;
mod keep;

pub use self::{
    election::{Action, Election, Observed},
    fence::fenced,
    keep::{Leadership, WRITE_PATIENCE, keep},
};
