//! TLS from a waypoint to endpoints that speak it themselves: servers outside of the mesh, or an application's own TLS
//! inside of it. Certificates are verified as a web client does, not by SPIFFE identities.
//!
//! ```text
//!   model::UpstreamTls + host + protocol ──► Origination (verified configuration, name) ──connect(io)──► OriginatedIo
//! ```
//!
//! Whatever cannot be used as it is written (roots that are no PEM, a name that is none) is an error here, and with it every
//! connection: nothing falls back to plain text or to less verification.

use std::{fmt, fs, sync::Arc, sync::OnceLock, time::Duration};

use karst_model::traffic::{San, TlsMode, TrustAnchors, UpstreamTls};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
    pem::PemObject,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Where systems keep the well-known roots; the first file that is there counts. `SSL_CERT_FILE` names another.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A connection after its handshake.
pub type OriginatedIo<IO> = TlsStream<IO>;

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inside {
    Http1,
    Http2,
    /// Nobody knows, and no protocol is offered.
    Bytes,
}

impl Inside {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Bytes => Vec::new(),
        }
    }
}

/// How to make TLS connections to one kind of endpoint.
#[derive(Clone)]
pub struct Origination {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Why TLS to an endpoint cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OriginationError {
    #[error("TLS to this service is misconfigured: {0}")]
    Broken(Arc<str>),
    #[error("mode {0:?} makes no TLS connection of its own")]
    Mode(TlsMode),
    #[error("{0:?} can be no server name: give the TLS settings an sni")]
    Name(String),
    #[error("the roots to verify by are not PEM")]
    Roots(#[source] rustls_pki_types::pem::Error),
    #[error("the roots to verify by hold no certificate that can be used")]
    NoRoots,
    #[error("this machine has no file of well-known roots (SSL_CERT_FILE, or {})", SYSTEM_ROOTS[0])]
    NoSystemRoots,
    #[error("roots of the mesh verify members of the mesh only: use mode ISTIO_MUTUAL")]
    MeshRoots,
    #[error("the list of revoked certificates cannot be read")]
    Crl(#[source] CrlError),
    #[error("mode MUTUAL needs a certificate of its own, and there is none")]
    NoCredential,
    #[error("the certificate {name} is not PEM")]
    Credential {
        name: Arc<str>,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("the certificate {name} cannot be used with its key")]
    Pair {
        name: Arc<str>,
        #[source]
        source: rustls::Error,
    },
}

/// What is wrong with a list of revoked certificates.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    #[error("not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("not a list that can be used")]
    List(#[source] webpki::Error),
    #[error("empty")]
    Empty,
}

/// Why a handshake failed. The cause names the certificate or the protocol.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the TLS handshake with {name} failed")]
    Failed {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the TLS handshake with {name} took longer than {patience:?}")]
    TimedOut { name: String, patience: Duration },
}

impl Origination {
    /// `host`: the name of the service, which is sent and verified where the settings name no other.
    ///
    /// # Errors
    /// [`OriginationError`]: the settings cannot be used as they are written.
    pub fn new(tls: &UpstreamTls, host: &str, inside: Inside) -> Result<Self, OriginationError> {
        if let Some(why) = &tls.broken {
            return Err(OriginationError::Broken(why.clone()));
        }
        let name = tls.sni.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_invalid| OriginationError::Name(name.to_owned()))?;
        let verifier = Arc::new(verifier(tls)?);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match tls.mode {
            TlsMode::Simple => builder.with_no_client_auth(),
            TlsMode::Mutual => {
                let own = tls.credential.as_ref();
                let own = own.ok_or(OriginationError::NoCredential)?;
                let (chain, key) = pair(own).map_err(|source| OriginationError::Credential {
                    name: own.name.clone(),
                    source,
                })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|source| OriginationError::Pair {
                        name: own.name.clone(),
                        source,
                    })?
            }
            mode @ (TlsMode::Disable | TlsMode::Mesh) => return Err(OriginationError::Mode(mode)),
        };
        config.alpn_protocols = inside.alpn();
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// Shakes hands on an open connection.
    ///
    /// # Errors
    /// [`HandshakeError`]: the endpoint speaks no TLS, or its certificate is not accepted.
    pub async fn connect<IO>(
        &self,
        io: IO,
        patience: Duration,
    ) -> Result<OriginatedIo<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.name.to_str().into_owned();
        let connector = TlsConnector::from(self.config.clone());
        let handshake = connector.connect(self.name.clone(), io);
        match tokio::time::timeout(patience, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(HandshakeError::Failed { name, source }),
            Err(_elapsed) => Err(HandshakeError::TimedOut { name, patience }),
        }
    }
}

/// Everything that aws-lc-rs has: servers out there are older than the mesh.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
        .clone()
}

fn pair(
    own: &karst_model::traffic::ClientCredential,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rustls_pki_types::pem::Error> {
    let chain = CertificateDer::pem_slice_iter(own.chain.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(own.key.expose().as_bytes())?;
    Ok((chain, key))
}

fn verifier(tls: &UpstreamTls) -> Result<Verifier, OriginationError> {
    let trust = match (tls.insecure, &tls.anchors) {
        (true, _) => Trust::Anybody,
        (false, TrustAnchors::System) => Trust::Roots(system_roots()?),
        (false, TrustAnchors::Pem(pem)) => Trust::Roots(Arc::new(roots(pem.as_bytes())?)),
        (false, TrustAnchors::Mesh) => return Err(OriginationError::MeshRoots),
    };
    let revoked = match &tls.crl {
        None => Vec::new(),
        Some(pem) => revoked(pem).map_err(OriginationError::Crl)?,
    };
    Ok(Verifier {
        trust,
        revoked,
        names: tls.sans.clone(),
    })
}

/// Certificates that are none, in a file of hundreds, are left out.
fn roots(pem: &[u8]) -> Result<RootCertStore, OriginationError> {
    let all: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(OriginationError::Roots)?;
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(all);
    match usable {
        0 => Err(OriginationError::NoRoots),
        _ => Ok(roots),
    }
}

/// Read once: whoever changes them starts the program again.
fn system_roots() -> Result<Arc<RootCertStore>, OriginationError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let named = std::env::var("SSL_CERT_FILE").ok();
    let files = named.as_deref().into_iter().chain(SYSTEM_ROOTS);
    let pem = files.filter_map(|file| fs::read(file).ok()).next();
    let found = Arc::new(roots(&pem.ok_or(OriginationError::NoSystemRoots)?)?);
    Ok(ROOTS.get_or_init(|| found).clone())
}

fn revoked(pem: &str) -> Result<Vec<CertRevocationList<'static>>, CrlError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes());
    let mut revoked = Vec::new();
    for list in lists {
        let list = list.map_err(CrlError::Pem)?;
        let list = OwnedCertRevocationList::from_der(&list).map_err(CrlError::List)?;
        revoked.push(CertRevocationList::from(list));
    }
    match revoked.is_empty() {
        true => Err(CrlError::Empty),
        false => Ok(revoked),
    }
}

/// Verifies as the settings say.
struct Verifier {
    trust: Trust,
    revoked: Vec<CertRevocationList<'static>>,
    /// Any of these must be in the certificate; none: the server's name.
    names: Vec<San>,
}

enum Trust {
    /// `insecureSkipVerify`.
    Anybody,
    Roots(Arc<RootCertStore>),
}

/// A certificate of a trusted root that is for somebody else.
#[derive(Debug, thiserror::Error)]
#[error("the certificate has none of the names {wanted}; it has {present}")]
struct NoName {
    wanted: String,
    present: String,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots(roots) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_depth(RevocationCheckDepth::EndEntity).build());
        certificate
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &roots.roots,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            )
            .map_err(refused)?;
        self.verify_name(leaf, &certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl Verifier {
    fn verify_name(
        &self,
        leaf: &CertificateDer<'_>,
        certificate: &EndEntityCert<'_>,
        server_name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        let is_for = |name: &str| {
            let name = ServerName::try_from(name);
            name.is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
        };
        if self.names.is_empty() {
            let valid = certificate.verify_is_valid_for_subject_name(server_name);
            return valid.map_err(refused);
        }
        let uris = uris(leaf);
        let has = |name: &San| match name {
            San::Dns(name) => is_for(name),
            San::Uri(name) => uris.iter().any(|uri| **uri == **name),
            San::Any(name) => is_for(name) || uris.iter().any(|uri| **uri == **name),
        };
        if self.names.iter().any(has) {
            return Ok(());
        }
        let wanted: Vec<&str> = self.names.iter().map(text).collect();
        let names = certificate.valid_dns_names().map(str::to_owned);
        let present: Vec<String> = names.chain(uris).collect();
        let error = NoName {
            wanted: wanted.join(", "),
            present: present.join(", "),
        };
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            OtherError(Arc::new(error)),
        )))
    }
}

fn text(name: &San) -> &str {
    match name {
        San::Any(name) | San::Dns(name) | San::Uri(name) => name,
    }
}

fn uris(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice());
    let uris = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

fn refused(error: webpki::Error) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertNotValidForName(_) => CertificateError::NotValidForName,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    })
}
