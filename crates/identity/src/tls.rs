//! The crypto provider, TLS of the control plane (agents to the controller, with bearer tokens inside), and TLS to servers
//! that are no members of the mesh.
//!
//! Mesh tunnels take their configurations from [`crate::Credential`]; nothing else sets rustls up.

mod accept;
mod connect;
mod control_plane;
mod origination;

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::ServerName;

pub use self::{
    accept::{Incoming, MAX_HANDSHAKES, incoming},
    connect::{ConnectError, Connector},
    control_plane::{
        ControlPlaneTrust, ServingCertificate, TlsError, control_plane_client_config,
        control_plane_server_config, webhook_server_config,
    },
    origination::{CrlError, HandshakeError, Inside, OriginatedIo, Origination, OriginationError},
};

pub(crate) const ALPN_H2: &[u8] = b"h2";

/// aws-lc-rs with the suites of the mesh in their order, and the hybrid key exchange first.
///
/// ChaCha20 is not offered, as in ztunnel. Peers without ML-KEM negotiate X25519, P-256 or P-384.
pub fn provider() -> Arc<CryptoProvider> {
    shared_provider().clone()
}

pub(crate) fn shared_provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(build_provider()))
}

fn build_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Makes [`provider`] the default of the process. First thing in every `main` and test helper; more calls do nothing.
pub fn install_provider() {
    let _already_installed = CryptoProvider::clone(&provider()).install_default();
}

/// The name to hand to rustls for a mesh peer: it is never sent (no SNI) and never compared.
pub fn mesh_server_name() -> ServerName<'static> {
    ServerName::try_from("mesh.invalid").expect("a valid host name")
}
