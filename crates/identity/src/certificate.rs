//! What this crate reads from an X.509 certificate, in one parse.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

/// The parts of a certificate that identity decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Hexadecimal.
    pub(crate) serial: String,
    pub(crate) issuer: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// All URI subject alternative names, in order.
    pub(crate) uris: Vec<String>,
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
    /// SubjectPublicKeyInfo DER.
    pub(crate) public_key: Vec<u8>,
}

/// Bytes that are no X.509 certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FactsError {
    #[error("not X.509 DER: {0}")]
    Der(String),
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    #[error("extension unreadable or repeated: {0}")]
    Extension(String),
}

impl Facts {
    pub(crate) fn read(cert: &CertificateDer<'_>) -> Result<Self, FactsError> {
        let (rest, cert) =
            X509Certificate::from_der(cert).map_err(|error| FactsError::Der(error.to_string()))?;
        if !rest.is_empty() {
            return Err(FactsError::Trailing(rest.len()));
        }
        let extension =
            |error: x509_parser::error::X509Error| FactsError::Extension(error.to_string());
        let usage = cert
            .extended_key_usage()
            .map_err(extension)?
            .map(|usage| usage.value);
        Ok(Self {
            serial: cert
                .tbs_certificate
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            issuer: cert.issuer().to_string(),
            not_before: time_of(cert.validity().not_before),
            not_after: time_of(cert.validity().not_after),
            uris: uris(&cert).map_err(extension)?,
            server_auth: usage.is_some_and(|usage| usage.server_auth),
            client_auth: usage.is_some_and(|usage| usage.client_auth),
            public_key: cert.public_key().raw.to_vec(),
        })
    }
}

fn uris(cert: &X509Certificate<'_>) -> Result<Vec<String>, x509_parser::error::X509Error> {
    let Some(names) = cert.subject_alternative_name()? else {
        return Ok(Vec::new());
    };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(names.value.general_names.iter().filter_map(uri).collect())
}

fn time_of(at: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
}
