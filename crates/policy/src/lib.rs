//! Authorization: policies compiled per workload or service, decided in under a microsecond, explained on request.
//!
//! Connections (L4) are decided here, requests (L7) in [`request`], and who their users are in [`token`].
//!
//! ```text
//!   model::Authorization ──applies?──► Compiled::compile ──► Compiled ──decide──► Decision   (every connection)
//!   (all that were received)   keys listed, not received ──►    │
//!                                                               └────explain────► Explanation (on request)
//! ```
//!
//! The semantics are Istio's, with the deviations of `docs/design/policy-deviations.md`. Two evaluators live here:
//! `decide` goes through an index and says only what happens, `explain` walks every policy and says why. Both are
//! compared with a third, naive one in `tests/reference.rs`. The agent calls `decide` at the destination, for new
//! connections and again when a policy changes; the agent's admin interface and `karst why` call `explain`.

mod anchor;
mod compare;
mod compile;
mod connection;
mod decision;
mod explain;
mod forest;
mod index;
mod list;
mod matcher;
#[cfg(test)]
mod mutation;
pub mod request;
mod scope;
pub mod token;

pub use compile::Compiled;
pub use connection::Connection;
pub use decision::{Decision, DenyReason, DryRun, DryRunAllow, RuleRef, Verdict};
pub use explain::{Attribute, Explanation, Outcome, PolicyTrace, RuleTrace, Unmet};
pub use scope::applies;
