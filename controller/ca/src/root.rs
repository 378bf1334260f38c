//! The root certificates and keys of this mesh, as one file that is replaced whole.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use karst_identity::{
    TrustBundle,
    bundle::{BundleError, Fingerprint, fingerprint, hex},
    private_file::{self, PrivateFileError},
};
use karst_model::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::rotation::Phase;

const FILE: &str = "authority.json";
const VERSION: u32 = 1;
/// Roots start this far in the past, since clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// What the file holds.
#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Roots {
    version: u32,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) phase: Phase,
    /// The first signs; the second, if any, is the next (phase `Announced`) or the former (phase `Switched`).
    pub(crate) roots: Vec<Root>,
}

/// One root. The key is overwritten when it is dropped.
#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Root {
    pub(crate) certificate_pem: String,
    key_pem: String,
}

impl Drop for Root {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

/// State of the CA that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("{} is not what a Karst CA writes: restore it from a backup, or move it away to begin a new mesh", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has version {found}, this program reads {VERSION}: use the version that wrote it", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{} is of trust domain {found}, configured is {configured}: use another state folder for another mesh", path.display())]
    TrustDomain {
        path: PathBuf,
        found: TrustDomain,
        configured: TrustDomain,
    },
    #[error("state of the CA holds no root")]
    Empty,
    #[error("{} holds {count} roots in phase {phase:?}: restore it from a backup", path.display())]
    Count {
        path: PathBuf,
        count: usize,
        phase: Phase,
    },
    #[error("root certificates of the CA are unusable")]
    Bundle(#[from] BundleError),
    #[error("root certificate or key of the CA is unusable")]
    Root(#[source] rcgen::Error),
    #[error("key of the CA does not belong to its root certificate")]
    Pair,
    #[error("making a root failed: the platform's random source or crypto library refused")]
    Make(#[source] rcgen::Error),
}

impl Roots {
    /// Reads the file, or makes a first root and writes it. Of two processes that begin at once, one root remains.
    pub(crate) fn load_or_create(
        dir: &Path,
        trust_domain: &TrustDomain,
        life: Duration,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        let path = dir.join(FILE);
        let json = match private_file::read(&path)? {
            Some(json) => json,
            None => {
                let first = Self::first(trust_domain, life, now)?;
                private_file::create_once(&path, &first.json())?
            }
        };
        Self::parse(&path, json, trust_domain)
    }

    /// A new mesh: one root.
    pub(crate) fn first(
        trust_domain: &TrustDomain,
        life: Duration,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        Ok(Self {
            version: VERSION,
            trust_domain: trust_domain.clone(),
            phase: Phase::Steady,
            roots: vec![Root::make(trust_domain, life, now)?],
        })
    }

    /// `path`: where the text was, for messages.
    pub(crate) fn parse(
        path: &Path,
        mut json: Vec<u8>,
        configured: &TrustDomain,
    ) -> Result<Self, RootError> {
        let parsed: Result<Self, _> = serde_json::from_slice(&json);
        json.zeroize();
        let this = parsed.map_err(|source| RootError::Json {
            path: path.to_owned(),
            source,
        })?;
        if this.version != VERSION {
            return Err(RootError::Version {
                path: path.to_owned(),
                found: this.version,
            });
        }
        if this.trust_domain != *configured {
            let found = this.trust_domain.clone();
            return Err(RootError::TrustDomain {
                path: path.to_owned(),
                found,
                configured: configured.clone(),
            });
        }
        let expected = if this.phase == Phase::Steady { 1 } else { 2 };
        if this.roots.len() != expected {
            return Err(RootError::Count {
                path: path.to_owned(),
                count: this.roots.len(),
                phase: this.phase,
            });
        }
        Ok(this)
    }

    /// Replaces the file; after an error the former one holds.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), PrivateFileError> {
        let mut json = self.json();
        let saved = private_file::write(&dir.join(FILE), &json);
        json.zeroize();
        saved
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("strings always serialise")
    }

    /// All roots, the signing one first.
    pub(crate) fn bundle(&self) -> Result<TrustBundle, BundleError> {
        let pem: String = self
            .roots
            .iter()
            .map(|root| root.certificate_pem.as_str())
            .collect();
        TrustBundle::from_pem(&pem)
    }
}

impl Root {
    /// A new self-signed root. Its name is unique, so that two roots in one bundle are told apart.
    pub(crate) fn make(
        trust_domain: &TrustDomain,
        life: Duration,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(RootError::Make)?;
        let serial = random_serial();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, trust_domain.to_string());
        name.push(
            DnType::CommonName,
            format!("Karst root {}", &hex(&serial)[..8]),
        );
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + life).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(RootError::Make)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// What signs in this root's name; refuses a key that is of another certificate.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, RootError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(RootError::Root)?;
        let (_, block) = x509_parser::pem::parse_x509_pem(self.certificate_pem.as_bytes())
            .ok()
            .ok_or(RootError::Pair)?;
        let certificate = block.parse_x509().ok().ok_or(RootError::Pair)?;
        if certificate.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(RootError::Pair);
        }
        Issuer::from_ca_cert_pem(&self.certificate_pem, key).map_err(RootError::Root)
    }

    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        let (_, block) = x509_parser::pem::parse_x509_pem(self.certificate_pem.as_bytes()).ok()?;
        let seconds = block.parse_x509().ok()?.validity().not_after.timestamp();
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
    }
}

/// SHA-256 of the signing root.
pub(crate) fn signing_fingerprint(bundle: &TrustBundle) -> Option<Fingerprint> {
    bundle.roots().first().map(fingerprint)
}

/// 16 random bytes, positive and not zero.
pub(crate) fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = random_bytes();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .expect("the platform's random source works, or nothing here is safe");
    bytes
}
