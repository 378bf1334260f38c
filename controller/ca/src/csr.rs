//! Certificate signing requests, checked: a signature proves the key, and the key must be strong.
//!
//! Names in the request are not read at all: whom a certificate names is decided by authorization, never by the CSR.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _,
    public_key::PublicKey,
};

/// Far more than a request with an 8192-bit RSA key needs.
const SIZE_MAX: usize = 32 * 1024;
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// The public key of a request whose signature was checked.
#[derive(Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

/// A request that is not signed. Each text may be shown to the caller: it speaks of what the caller sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("certificate request has {0} bytes, at most {SIZE_MAX} are read")]
    TooLarge(usize),
    #[error("certificate request is not PEM")]
    Pem,
    #[error("certificate request is a PEM block named {0:?}, expected CERTIFICATE REQUEST")]
    Label(String),
    #[error("certificate request is not PKCS#10 DER: {0}")]
    Der(String),
    #[error("certificate request is not signed by the key that it holds")]
    Signature,
    #[error("key of the certificate request is too weak: {0}")]
    WeakKey(String),
    #[error(
        "key of the certificate request is of a kind that is not signed ({0}): expected ECDSA P-256 or P-384, or RSA"
    )]
    KeyKind(String),
}

impl RequestedKey {
    /// Parses and checks.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > SIZE_MAX {
            return Err(CsrError::TooLarge(pem.len()));
        }
        let (_rest, block) = parse_x509_pem(pem.as_bytes()).ok().ok_or(CsrError::Pem)?;
        if !matches!(
            &block.label[..],
            "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
        ) {
            return Err(CsrError::Label(block.label.clone()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| CsrError::Der(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Der(format!(
                "{} bytes follow the request",
                rest.len()
            )));
        }
        let key = &csr.certification_request_info.subject_pki;
        check_strength(key)?;
        csr.verify_signature().ok().ok_or(CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(key.raw)
            .map_err(|error| CsrError::KeyKind(error.to_string()))?;
        Ok(Self(key))
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }
}

fn check_strength(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    match key.parsed() {
        // The curve's own rules are checked with the signature; a size says which curve it is.
        Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => Ok(()),
        Ok(PublicKey::EC(point)) if point.key_size() < 256 => Err(CsrError::WeakKey(format!(
            "ECDSA with {} bits, at least 256 are needed",
            point.key_size()
        ))),
        Ok(PublicKey::EC(point)) => Err(CsrError::KeyKind(format!(
            "ECDSA with {} bits",
            point.key_size()
        ))),
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() < RSA_BITS_MIN => {
            Err(CsrError::WeakKey(format!(
                "RSA with {} bits, at least {RSA_BITS_MIN} are needed",
                rsa.key_size()
            )))
        }
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() > RSA_BITS_MAX => {
            Err(CsrError::KeyKind(format!(
                "RSA with {} bits, at most {RSA_BITS_MAX} are read",
                rsa.key_size()
            )))
        }
        Ok(PublicKey::RSA(_)) => Ok(()),
        Ok(_) => Err(CsrError::KeyKind(key.algorithm.algorithm.to_id_string())),
        Err(error) => Err(CsrError::Der(error.to_string())),
    }
}
