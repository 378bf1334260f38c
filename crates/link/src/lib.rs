//! The way of a data-plane program (agent, waypoint) to its controller: TLS verified by the mesh's roots, the credential
//! that says who it is, and certificates through it.
//!
//! ```text
//!   token + roots (files that Kubernetes renews) ──┐
//!   join token, once ──► node token, renewed     ──┴─► Link ──► channel, bearer ──► discovery, reports
//!                                                       └────► ControllerSigner ──► identity::Store
//! ```

mod join;
mod observe;
mod service_account;
mod signer;
mod way;

use std::path::PathBuf;

pub use join::JoinError;
pub use observe::observe;
pub use signer::ControllerSigner;
pub use way::Link;

/// How to reach the controller, and with which credential.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// `https://HOST:PORT`.
    pub controller: String,
    /// Name that the controller's certificate must hold; the host of `controller` where unset.
    pub controller_name: Option<String>,
    /// A service account's projected token, together with `root_cert_file`.
    pub token_file: Option<PathBuf>,
    /// The mesh's roots, PEM.
    pub root_cert_file: Option<PathBuf>,
    /// A join token for the first contact, where there is no service account.
    pub join_token_file: Option<PathBuf>,
    /// The name to join as.
    pub node: String,
    /// Where the credential that joining brings is kept; only its owner may look inside.
    pub run_dir: PathBuf,
}
