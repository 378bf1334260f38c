//! Certificates of peers, and join tokens that a person pastes.

use karst_identity::{join_token::JoinToken, peer::peer_id};
use rustls_pki_types::CertificateDer;

use crate::Target;

/// A certificate in DER.
pub const CERTIFICATE: Target = Target {
    name: "certificate",
    run: run_certificate,
    seeds: certificate_seeds,
};

/// A join token.
pub const JOIN_TOKEN: Target = Target {
    name: "join_token",
    run: run_join_token,
    seeds: join_token_seeds,
};

fn run_certificate(bytes: &[u8]) {
    if let Ok(id) = peer_id(&[CertificateDer::from(bytes)]) {
        let again: karst_model::identity::SpiffeId = id
            .to_string()
            .parse()
            .expect("an identity that was written can be read");
        assert_eq!(id, again);
    }
}

/// A sequence with nothing in it: real certificates lie in the corpus.
fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x30\x00".to_vec(),
        b"\x30\x82\x01\x00\x30\x81\x80\xa0\x03\x02\x01\x02".to_vec(),
    ]
}

fn run_join_token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = JoinToken::parse(text);
    }
}

fn join_token_seeds() -> Vec<Vec<u8>> {
    // {"r":"00","n":"node-a","e":1,"i":"x"} sealed by nobody.
    vec![
        b"eyJyIjoiMDAiLCJuIjoibm9kZS1hIiwiZSI6MSwiaSI6IngifQ.AAAA".to_vec(),
        b"karst1.eyJyIjoiMDAifQ.AAAA".to_vec(),
    ]
}
