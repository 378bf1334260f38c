//! Trust bundles: the root certificates that peers may chain to. Several at once, so that roots can be rotated.

use std::fmt::Write as _;

use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use sha2::{Digest, Sha256};

/// Most roots that a bundle may hold; a rotation needs two.
pub const MAX_ROOTS: usize = 64;

/// SHA-256 of a certificate's DER bytes.
pub type Fingerprint = [u8; 32];

/// One or more root certificates, without duplicates, in the order given.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Text that is no usable trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("trust bundle holds no certificate: expected PEM blocks named CERTIFICATE")]
    Empty,
    #[error("trust bundle is not valid PEM at certificate {index}")]
    Pem {
        index: usize,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("certificate {index} of the trust bundle cannot be a root")]
    Anchor {
        index: usize,
        #[source]
        source: webpki::Error,
    },
    #[error("trust bundle holds more than {MAX_ROOTS} roots")]
    TooMany,
}

impl TrustBundle {
    /// Reads one or more PEM blocks. All are trusted: taking only the first would break root rotation.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        let mut roots = Vec::new();
        for (index, root) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
            roots.push(root.map_err(|source| BundleError::Pem { index, source })?);
            if roots.len() > MAX_ROOTS {
                return Err(BundleError::TooMany);
            }
        }
        Self::from_der(roots)
    }

    /// A bundle of these certificates.
    pub fn from_der(certs: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::with_capacity(certs.len());
        let mut anchors = Vec::with_capacity(certs.len());
        for (index, cert) in certs.into_iter().enumerate() {
            if roots.contains(&cert) {
                continue;
            }
            let anchor = webpki::anchor_from_trusted_cert(&cert)
                .map_err(|source| BundleError::Anchor { index, source })?;
            anchors.push(anchor.to_owned());
            roots.push(cert);
        }
        match roots.len() {
            0 => Err(BundleError::Empty),
            1..=MAX_ROOTS => Ok(Self { roots, anchors }),
            _ => Err(BundleError::TooMany),
        }
    }

    /// The roots as certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots in the form that chain verification wants.
    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// All roots as concatenated PEM.
    pub fn pem(&self) -> String {
        self.roots
            .iter()
            .map(|root| certificate_pem(root))
            .collect()
    }

    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.roots.iter().map(|root| fingerprint(root)).collect()
    }
}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.fingerprints().iter().map(|print| hex(print)))
            .finish()
    }
}

/// SHA-256 over the DER bytes of a certificate, as join tokens carry it.
pub fn fingerprint(cert: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(cert.as_ref()).into()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

/// One certificate as a PEM block.
pub fn certificate_pem(cert: &CertificateDer<'_>) -> String {
    pem_block("CERTIFICATE", cert.as_ref())
}

/// A PEM block with lines of 64 characters (RFC 7468).
pub(crate) fn pem_block(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(body.len() + body.len() / 64 + 64);
    let _infallible = writeln!(pem, "-----BEGIN {label}-----");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    let _infallible = writeln!(pem, "-----END {label}-----");
    pem
}
