//! Certificates minted for one test run, and the TLS configurations around them.

use std::{net::Ipv4Addr, sync::Arc};

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
    version::TLS13,
};

/// A client's and a server's configuration under one root, TLS 1.3, ALPN `h2`, both sides authenticated.
pub(crate) fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (issuer, root) = authority();
    between(&issuer, &issuer, &root)
}

/// A root, and what signs under it.
pub(crate) fn authority() -> (Issuer<'static, KeyPair>, Certificate) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    (Issuer::new(ca, ca_key), root)
}

/// Both sides know `root`, whoever signed their certificates.
pub(crate) fn between(
    of_client: &Issuer<'_, KeyPair>,
    of_server: &Issuer<'_, KeyPair>,
    root: &Certificate,
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(provider());

    let (chain, key) = leaf(of_client);
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)
        .unwrap();
    client.enable_sni = false;
    client.alpn_protocols = vec![b"h2".to_vec()];

    let (chain, key) = leaf(of_server);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .unwrap();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(client), Arc::new(server))
}

/// The suites that HBONE peers offer.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    }
}

/// The stock verifier wants a name: 0.0.0.0, the placeholder that `tls_connect` asks for.
fn leaf(issuer: &Issuer<'_, KeyPair>) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![
        SanType::URI(
            "spiffe://cluster.local/ns/shop/sa/orders"
                .try_into()
                .unwrap(),
        ),
        SanType::IpAddress(Ipv4Addr::UNSPECIFIED.into()),
    ];
    let certificate = params.signed_by(&key, issuer).unwrap();
    (
        vec![certificate.der().clone()],
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    )
}
