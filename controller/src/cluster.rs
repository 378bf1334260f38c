//! What the controller does with the Kubernetes API besides watching it: who calls, what it keeps there.

pub mod bundles;
pub mod connect;
pub mod records;
pub mod reviewed;
pub mod root;
pub mod token_review;
