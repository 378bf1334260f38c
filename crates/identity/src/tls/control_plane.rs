//! Configurations for the connection between agents and the controller.
//!
//! The client proves itself by a bearer token, so the server must be verified before a byte of it is sent: by a root
//! bundle, or, before one is had, by the fingerprint of the root that a join token carries. The host name is always
//! checked too, since workload certificates hang on the same roots (and carry no host names).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::verify_tls13_signature,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use super::{ALPN_H2, provider};
use crate::{
    bundle::{Fingerprint, TrustBundle, fingerprint, hex},
    verify::{algorithms, tls12_refused},
};

/// How the controller is recognised.
#[derive(Clone, Debug)]
pub enum ControlPlaneTrust {
    /// Its chain must end in one of these.
    Bundle(TrustBundle),
    /// It must present (in its chain) the root with this SHA-256, and chain to that.
    PinnedRoot(Fingerprint),
}

/// Control-plane TLS that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("serving certificate is not PEM")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    #[error("serving certificate holds no certificate")]
    NoCertificate,
    #[error("serving key is not a PEM private key")]
    Key(#[source] rustls_pki_types::pem::Error),
    #[error("serving key cannot be used, or does not belong to the certificate")]
    Pair(#[source] rustls::Error),
    #[error("trust bundle cannot be used for TLS")]
    Bundle(#[source] rustls::client::VerifierBuilderError),
}

/// Client configuration towards a controller: TLS 1.3, ALPN h2, no client certificate, no resumption.
pub fn control_plane_client_config(
    trust: &ControlPlaneTrust,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        ControlPlaneTrust::Bundle(bundle) => bundle_verifier(bundle).map_err(TlsError::Bundle)?,
        ControlPlaneTrust::PinnedRoot(pin) => Arc::new(PinnedRootVerifier { pin: *pin }),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("our provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn bundle_verifier(
    bundle: &TrustBundle,
) -> Result<Arc<WebPkiServerVerifier>, rustls::client::VerifierBuilderError> {
    let mut roots = RootCertStore::empty();
    roots.roots.extend(bundle.anchors().iter().cloned());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()
}

/// Server configuration of a controller: TLS 1.3, ALPN h2, no client certificate (callers bring bearer tokens).
pub fn control_plane_server_config(certificate: Arc<ServingCertificate>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("our provider has TLS 1.3 suites")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Server configuration for questions of the Kubernetes API server, which asks webhooks by HTTP/1.1.
pub fn webhook_server_config(certificate: Arc<ServingCertificate>) -> Arc<ServerConfig> {
    let mut config = (*control_plane_server_config(certificate)).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A controller's own certificate, replaceable while connections arrive.
pub struct ServingCertificate(ArcSwap<CertifiedKey>);

impl ServingCertificate {
    /// `chain_pem`: leaf, intermediates **and root**, which callers that pin its fingerprint need to see.
    pub fn new(chain_pem: &str, key_pem: &str) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(read_pair(
            chain_pem, key_pem,
        )?))))
    }

    /// New handshakes use this one; on error the present one stays.
    pub fn replace(&self, chain_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.0.store(Arc::new(read_pair(chain_pem, key_pem)?));
        Ok(())
    }
}

fn read_pair(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(TlsError::Certificate)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(TlsError::Key)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Pair)
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServingCertificate")
    }
}

/// Why a controller was not believed by its pinned root.
#[derive(Debug, Clone, thiserror::Error)]
enum PinError {
    #[error(
        "controller did not present the root {0} that the join token names: the token is of another mesh, or somebody answers in the controller's place"
    )]
    Absent(String),
    #[error("root that the join token names cannot be used as one")]
    Anchor(#[source] webpki::Error),
}

/// Trusts exactly one root, known by its fingerprint, found in the chain that the server presents.
#[derive(Debug)]
struct PinnedRootVerifier {
    pin: Fingerprint,
}

impl PinnedRootVerifier {
    fn trusted(&self, presented: &[CertificateDer<'_>]) -> Result<TrustBundle, PinError> {
        let root = presented.iter().find(|cert| fingerprint(cert) == self.pin);
        let root = root
            .ok_or_else(|| PinError::Absent(hex(&self.pin)))?
            .clone()
            .into_owned();
        match TrustBundle::from_der(vec![root]) {
            Ok(bundle) => Ok(bundle),
            Err(crate::BundleError::Anchor { source, .. }) => Err(PinError::Anchor(source)),
            Err(_) => Err(PinError::Absent(hex(&self.pin))),
        }
    }
}

impl ServerCertVerifier for PinnedRootVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = |error| {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(
                Arc::new(error),
            )))
        };
        let bundle = self.trusted(intermediates).map_err(other)?;
        let verifier =
            bundle_verifier(&bundle).map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
