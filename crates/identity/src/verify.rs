//! Verification of mesh peers: the chain against the bundle, and the SPIFFE ID in place of a host name.

use std::{fmt, sync::Arc};

use karst_model::identity::{SpiffeId, TrustDomains};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    bundle::TrustBundle,
    certificate::Facts,
    clock::system_time,
    peer::{PeerCertError, id_of},
    tls::shared_provider,
};

/// Which side of a connection the certificate stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Server,
    Client,
}

/// A certificate chain as a peer (or our CA) sent it.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub(crate) leaf: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
}

/// Checks validity, usage and chain, and returns whom the leaf names. Trust domain and expected identity are the
/// caller's to check.
pub(crate) fn verify_chain(
    chain: Chain<'_>,
    bundle: &TrustBundle,
    usage: Usage,
    now: UnixTime,
) -> Result<SpiffeId, PeerCertError> {
    let facts = Facts::read(chain.leaf)?;
    let id = id_of(&facts)?;
    let peer = id.to_string();
    let at = system_time(now);
    if at < facts.not_before {
        return Err(PeerCertError::NotYetValid {
            peer,
            not_before: facts.not_before,
            now: at,
        });
    }
    if at > facts.not_after {
        return Err(PeerCertError::Expired {
            peer,
            not_after: facts.not_after,
            now: at,
        });
    }
    let (allowed, wanted, eku) = match usage {
        Usage::Server => (
            facts.server_auth,
            "serverAuth",
            webpki::KeyUsage::server_auth(),
        ),
        Usage::Client => (
            facts.client_auth,
            "clientAuth",
            webpki::KeyUsage::client_auth(),
        ),
    };
    if !allowed {
        return Err(PeerCertError::WrongUsage {
            peer,
            usage: wanted,
        });
    }
    let refused = |source| chain_error(source, &facts, &peer, bundle);
    let leaf = webpki::EndEntityCert::try_from(chain.leaf).map_err(refused)?;
    let algorithms = algorithms().all;
    leaf.verify_for_usage(
        algorithms,
        bundle.anchors(),
        chain.intermediates,
        now,
        eku,
        None,
        None,
    )
    .map_err(refused)?;
    Ok(id)
}

/// A root of the same name with another key also means "not one of ours".
fn chain_error(
    source: webpki::Error,
    facts: &Facts,
    peer: &str,
    bundle: &TrustBundle,
) -> PeerCertError {
    match source {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerCertError::UnknownRoot {
                peer: peer.to_owned(),
                issuer: facts.issuer.clone(),
                roots: bundle.roots().len(),
            }
        }
        source => PeerCertError::Chain {
            peer: peer.to_owned(),
            source,
        },
    }
}

/// Hands our error through rustls, which keeps it as a cause of the `io::Error`.
pub(crate) fn refuse(error: PeerCertError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Server side of a tunnel: any member of our trust domain or its aliases.
pub(crate) struct ClientVerifier {
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) trust: Arc<TrustDomains>,
}

/// Client side of a tunnel: only the identities that may serve this destination, by any name of our trust domain. The
/// host name is ignored.
pub(crate) struct ServerVerifier {
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) accepted: Arc<[SpiffeId]>,
    pub(crate) trust: Arc<TrustDomains>,
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: a mesh client has one certificate, and hints would cost bytes in every handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let peer = verify_chain(
            Chain {
                leaf,
                intermediates,
            },
            &self.bundle,
            Usage::Client,
            now,
        )
        .map_err(refuse)?;
        if !self.trust.covers(&peer.trust_domain) {
            return Err(refuse(PeerCertError::TrustDomain {
                peer,
                own: self.trust.own.clone(),
            }));
        }
        Ok(ClientCertVerified::assertion())
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

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peer = verify_chain(
            Chain {
                leaf,
                intermediates,
            },
            &self.bundle,
            Usage::Server,
            now,
        )
        .map_err(refuse)?;
        if !self.accepted.iter().any(|one| self.trust.same(one, &peer)) {
            return Err(refuse(PeerCertError::Unexpected {
                peer,
                accepted: self.accepted.clone(),
            }));
        }
        Ok(ServerCertVerified::assertion())
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

pub(crate) fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &shared_provider().signature_verification_algorithms
}

pub(crate) fn tls12_refused() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not offered".to_owned())
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("bundle", &self.bundle)
            .field("trust", &self.trust)
            .finish()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier")
            .field("bundle", &self.bundle)
            .field("accepted", &self.accepted)
            .finish()
    }
}
