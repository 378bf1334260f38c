//! A CA that somebody else made and plugged in, in the form of Istio's Secret `cacerts`.

use std::time::{Duration, SystemTime};

use karst_identity::{
    TrustBundle,
    bundle::{BundleError, certificate_pem},
};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// Certificates between leaf and root that are taken.
const INTERMEDIATES_MAX: usize = 8;

/// The four texts, PEM.
#[derive(Clone, Copy)]
pub struct PluggedCa<'a> {
    /// `ca-cert.pem`: what signs. May be a root itself.
    pub certificate: &'a str,
    /// `ca-key.pem`.
    pub key: &'a str,
    /// `root-cert.pem`: one or more roots.
    pub roots: &'a str,
    /// `cert-chain.pem`: from the signing certificate up to a root; the root may be in it.
    pub chain: &'a str,
}

/// A plugged-in CA that cannot be used. Each is the fault of whoever made it.
#[derive(Debug, thiserror::Error)]
pub enum PluggedError {
    #[error("{0} is no certificate in PEM")]
    Certificate(&'static str),
    #[error("root-cert.pem is unusable")]
    Roots(#[source] BundleError),
    #[error(
        "ca-key.pem is no private key that can be used: PKCS#8, PKCS#1 or SEC1 in PEM, not encrypted"
    )]
    Key(#[source] rcgen::Error),
    #[error("ca-key.pem is not the key of ca-cert.pem")]
    Pair,
    #[error("ca-cert.pem is no CA: it may not sign certificates")]
    NotCa,
    #[error(
        "cert-chain.pem and root-cert.pem do not lead from ca-cert.pem to a root: {0:?} is signed by none of them"
    )]
    Broken(String),
    #[error("cert-chain.pem holds more than {INTERMEDIATES_MAX} certificates")]
    Long,
    #[error("ca-cert.pem cannot sign with this key")]
    Issuer(#[source] rcgen::Error),
}

/// What an authority needs of it.
pub(crate) struct Read {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// PEM, the signing certificate first, without roots.
    pub(crate) intermediates: Vec<String>,
    pub(crate) bundle: TrustBundle,
    /// When the first certificate on the way to the root ends.
    pub(crate) not_after: SystemTime,
}

impl PluggedCa<'_> {
    pub(crate) fn read(&self) -> Result<Read, PluggedError> {
        let signing = certificates(self.certificate, "ca-cert.pem")?;
        let signing = signing.into_iter().next();
        let signing = signing.ok_or(PluggedError::Certificate("ca-cert.pem"))?;
        let bundle = TrustBundle::from_pem(self.roots).map_err(PluggedError::Roots)?;
        let key = KeyPair::from_pem(self.key).map_err(PluggedError::Key)?;
        let parsed = parse(&signing, "ca-cert.pem")?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(PluggedError::Pair);
        }
        if !parsed.is_ca() {
            return Err(PluggedError::NotCa);
        }
        let given = certificates(self.chain, "cert-chain.pem")?;
        let path = path(&signing, &given, bundle.roots())?;
        let ends = path.iter().map(|cert| not_after(cert));
        let not_after = ends.min().unwrap_or(SystemTime::UNIX_EPOCH);
        let below_root = path.iter().filter(|cert| !bundle.roots().contains(cert));
        Ok(Read {
            intermediates: below_root.map(certificate_pem).collect(),
            issuer: Issuer::from_ca_cert_pem(&certificate_pem(&signing), key)
                .map_err(PluggedError::Issuer)?,
            bundle,
            not_after,
        })
    }
}

fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, PluggedError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_pem| PluggedError::Certificate(what))
}

fn parse<'a>(
    cert: &'a CertificateDer<'_>,
    what: &'static str,
) -> Result<X509Certificate<'a>, PluggedError> {
    let parsed = X509Certificate::from_der(cert).ok();
    parsed
        .map(|(_, cert)| cert)
        .ok_or(PluggedError::Certificate(what))
}

/// The certificates from `signing` up to a root, that root included.
fn path<'a>(
    signing: &CertificateDer<'a>,
    given: &[CertificateDer<'a>],
    roots: &[CertificateDer<'a>],
) -> Result<Vec<CertificateDer<'a>>, PluggedError> {
    let mut path = vec![signing.clone()];
    while let Some(last) = path.last().filter(|last| !roots.contains(last)) {
        if path.len() > INTERMEDIATES_MAX {
            return Err(PluggedError::Long);
        }
        let child = parse(last, "cert-chain.pem")?;
        let above = roots.iter().chain(given);
        let parent = above
            .filter(|cert| !path.contains(cert))
            .find(|cert| signs(cert, &child));
        match parent {
            Some(parent) => path.push(parent.clone()),
            None => return Err(PluggedError::Broken(child.subject().to_string())),
        }
    }
    Ok(path)
}

fn signs(parent: &CertificateDer<'_>, child: &X509Certificate<'_>) -> bool {
    let Ok((_, parent)) = X509Certificate::from_der(parent) else {
        return false;
    };
    parent.subject() == child.issuer() && child.verify_signature(Some(parent.public_key())).is_ok()
}

fn not_after(cert: &CertificateDer<'_>) -> SystemTime {
    let seconds = X509Certificate::from_der(cert)
        .ok()
        .and_then(|(_, cert)| u64::try_from(cert.validity().not_after.timestamp()).ok());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or_default())
}
