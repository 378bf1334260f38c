//! Kubernetes and Istio objects that Karst reads, their labels and annotations.
//!
//! ```text
//!   YAML files ──files──┐
//!                       ├──► Object (one variant per kind that we read) ──► index, lab
//!   API server ──watch──┘
//! ```
//!
//! Core kinds come from `k8s-openapi`; Istio's CRDs are written by hand in [`istio`], those of the Gateway API in
//! [`gateway`], Karst's own in [`karst`], one file per kind.
//! Every label and annotation that Karst honours is a constant in [`labels`], so that nobody spells one differently.

pub mod crd;
pub mod decode;
pub mod gateway;
pub mod honoured;
pub mod istio;
pub mod karst;
pub mod kind;
pub mod labels;
pub mod object;

pub use kind::{Kind, KindError};
pub use object::{Object, ObjectKey};

/// The Kubernetes types themselves, so that users of [`Object`] agree on their version.
pub use k8s_openapi;
