//! The agent's side of the control plane: credentials, certificates, reports of what is captured.
//!
//! Discovery has its own client (`karst-discovery`); it shares the [`Link`] made here.

mod answers;
mod join;
mod link;
mod report;
mod service_account;
mod signer;

pub(crate) use answers::run as run_answers;
pub(crate) use join::JoinError;
pub(crate) use link::Link;
pub(crate) use report::run as run_reports;
pub(crate) use signer::ControllerSigner;
