//! Private keys of workloads, and the certificate signing requests made from them.

use karst_model::identity::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

/// An ECDSA P-256 key. Its bytes are overwritten when it is dropped; it never prints itself.
pub struct PrivateKey(KeyPair);

/// A key that could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("making a P-256 key failed: the platform's random source or crypto library refused")]
    Generate(#[source] rcgen::Error),
    #[error("private key is not a PKCS#8 PEM of an ECDSA P-256 key")]
    Parse(#[source] rcgen::Error),
    #[error("{0:?} cannot be written as a URI name in a certificate signing request")]
    Name(String, #[source] rcgen::Error),
    #[error("signing the certificate signing request failed")]
    Sign(#[source] rcgen::Error),
}

impl PrivateKey {
    /// A new key from the platform's random source.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(KeyError::Generate)
    }

    /// Reads PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(KeyError::Parse)
    }

    /// PKCS#8 PEM, overwritten when dropped. Only for writing to a root-only place.
    pub fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// A CSR with an empty subject and one critical URI name, the identity: some CAs refuse a common name, or a
    /// non-critical name beside an empty subject.
    pub fn csr_pem(&self, id: &SpiffeId) -> Result<String, KeyError> {
        let name = id.to_string();
        let uri = name
            .as_str()
            .try_into()
            .map_err(|source| KeyError::Name(name.clone(), source))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let csr = params.serialize_request(&self.0).map_err(KeyError::Sign)?;
        csr.pem().map_err(KeyError::Sign)
    }

    /// The public half, as SubjectPublicKeyInfo DER.
    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn pkcs8(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialized_der().to_vec()))
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{
        certification_request::X509CertificationRequest, extensions::ParsedExtension,
        pem::parse_x509_pem, prelude::FromDer as _,
    };

    use super::*;

    #[test]
    fn a_csr_has_no_subject_and_one_critical_uri() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let pem = key.csr_pem(&id).unwrap();
        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&block.contents).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        assert_eq!(
            csr.certification_request_info.subject_pki.raw,
            key.public_key()
        );
        let names: Vec<_> = csr.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(san)] = names[..] else {
            panic!("{names:?}")
        };
        assert_eq!(san.general_names.len(), 1);
        let critical_san = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
        assert!(
            block
                .contents
                .windows(critical_san.len())
                .any(|window| window == critical_san)
        );
    }

    #[test]
    fn a_key_survives_its_pem() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(
            PrivateKey::from_pem(&key.pem()).unwrap().public_key(),
            key.public_key()
        );
        assert!(matches!(
            PrivateKey::from_pem("no key"),
            Err(KeyError::Parse(_))
        ));
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256)");
    }
}
