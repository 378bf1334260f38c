//! The control plane: Kubernetes objects in; discovery, certificates and status out.
//!
//! ```text
//!   Kubernetes API ────watch──┐
//!   directory of YAML ─files──┴─► mesh (owns the index) ──delta──► serve (resources, sessions) ──► agents
//!                                  ▲                                  │
//!                                  └────────── reports ───────────────┘    ca: certificates, tokens
//! ```
//!
//! A library beside the binary so that tests can run a whole controller in their process.

pub mod admission;
pub mod app;
pub mod cluster;
pub mod config;
pub mod credentials;
pub mod deploy;
pub mod files;
pub mod jwks;
pub mod lease;
pub mod mesh;
pub mod pods;
pub mod problems;
pub mod serve;
pub mod status;
pub mod watch;
