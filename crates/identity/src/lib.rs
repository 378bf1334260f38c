//! Keys, certificates, trust bundles and the only place where rustls is set up.
//!
//! ```text
//!   require(id) ──► Store ──► Rotation (pure: when, how often) ──► key + CSR ──► CertificateSigner (the CA)
//!                     │                                                              │
//!                     │◄──────────────── Credential (checked chain, rustls configs) ◄┘
//!   tunnels ◄─────────┘  credential(id): server_config(), client_config(accepted)
//!
//!   agent ──► tls::Connector ──► controller ◄── tls::incoming     (control plane: bearer tokens over verified TLS)
//! ```
//!
//! Workload keys are made here, stay in this process and (optionally) in a root-only directory, and are never logged.
//! Called by the agent and later the waypoint for workload identities, by `controller` and `ca` for theirs.

pub mod bundle;
mod certificate;
pub mod clock;
pub mod credential;
pub mod join_token;
mod key;
pub mod peer;
mod persist;
pub mod private_file;
pub mod rotation;
pub mod signer;
pub mod store;
pub mod tls;
mod verify;

pub use bundle::{BundleError, TrustBundle};
pub use credential::{Credential, CredentialError};
pub use join_token::{JoinToken, JoinTokenError};
pub use key::{KeyError, PrivateKey};
pub use peer::{PeerCertError, peer_cert_error, peer_id};
pub use rotation::Priority;
pub use signer::{CertificateSigner, SignError, SignedCertificate};
pub use store::{IdentityError, Store, StoreConfig};
