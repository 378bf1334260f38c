//! The agent's side of the control plane: joining, the node's token, certificates, reports of what is captured.
//!
//! Discovery has its own client (`karst-discovery`); it shares the [`Link`] made here.

mod join;
mod report;
mod signer;

pub(crate) use join::{JoinError, Link};
pub(crate) use report::run as run_reports;
pub(crate) use signer::ControllerSigner;
