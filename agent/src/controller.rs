//! The agent's side of the control plane: credentials, certificates, reports of what is captured.
//!
//! Discovery has its own client (`karst-discovery`), the way to the controller its own crate (`karst-link`).

mod answers;
mod report;

pub(crate) use answers::run as run_answers;
pub(crate) use report::run as run_reports;
