//! Certificate authority: root, signing, who may ask for what, tokens.
//!
//! ```text
//!   bearer token ──► Authenticator ──► Caller ──┐
//!                                               ├─► authorize (pure) ──► Authority ──► leaf, intermediates, roots
//!   CSR + wanted identity ──► csr (checked) ────┘
//!
//!   join token (once) ──► Tokens ──► node token (renewable)
//! ```
//!
//! The controller's gRPC services call this; nothing here opens a socket. Time is a parameter everywhere. A private key
//! of a workload never comes here: only requests signed by one.

pub mod authenticate;
pub mod authority;
pub mod authorize;
pub mod csr;
pub mod plugged;
pub mod root;
pub mod rotation;
pub mod token;

pub use authenticate::{AuthError, Authenticator, Caller, KeySet, KeySetAuthenticator};
pub use authority::{
    Authority, AuthorityConfig, AuthorityError, LocalSigner, Material, ServerPair,
};
pub use authorize::{NodeView, Refusal, Rules};
pub use csr::{CsrError, RequestedKey};
pub use plugged::{PluggedCa, PluggedError};
pub use token::{IssueError, JoinError, Tokens};
