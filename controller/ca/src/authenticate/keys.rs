//! Sets of public keys that may vouch for callers: PEM files and JWKS files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet},
};
use x509_parser::{pem::parse_x509_pem, prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use crate::token::key_id;

/// Most keys in a set: a token without a key id is tried against all.
const KEYS_MAX: usize = 64;
/// Far more than [`KEYS_MAX`] keys need.
const FILE_SIZE_MAX: u64 = 1 << 20;
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_P384: &str = "1.3.132.0.34";
const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_ED25519: &str = "1.3.101.112";

/// Public keys, in the order added. Cheap to clone.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Arc<VerifyKey>>,
}

/// One public key with what it may be used for.
pub(crate) struct VerifyKey {
    id: String,
    algorithms: &'static [Algorithm],
    decoding: DecodingKey,
}

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("reading {} failed", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is larger than {FILE_SIZE_MAX} bytes: expected public keys", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: Box<Self> },
    #[error("not a PEM block named PUBLIC KEY (a private key does not belong here)")]
    Pem,
    #[error("not a JSON Web Key Set")]
    Jwks(#[source] serde_json::Error),
    #[error(
        "key {0} is of a kind that is not used for tokens: expected ECDSA P-256 or P-384, Ed25519, or RSA"
    )]
    Kind(String),
    #[error("key cannot be used for verifying")]
    Key(#[source] jsonwebtoken::errors::Error),
    #[error("more than {KEYS_MAX} keys")]
    TooMany,
}

impl VerifyKey {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn accepts(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    pub(crate) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}

impl KeySet {
    /// Reads every `*.pem` (one public key each) and `*.json` / `*.jwks` (key sets) of a folder, in order of name.
    pub fn from_dir(dir: &Path) -> Result<Self, KeySetError> {
        let read = |source| KeySetError::Read {
            path: dir.to_owned(),
            source,
        };
        let entries = fs::read_dir(dir)
            .map_err(read)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(read)?;
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        let mut keys = Self::default();
        for path in paths {
            keys.add_file(&path).map_err(|reason| match reason {
                KeySetError::Read { .. } | KeySetError::TooLarge(_) => reason,
                reason => KeySetError::File {
                    path,
                    reason: Box::new(reason),
                },
            })?;
        }
        Ok(keys)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), KeySetError> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("pem" | "json" | "jwks")) {
            return Ok(());
        }
        let failed = |source| KeySetError::Read {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(failed)?.len() > FILE_SIZE_MAX {
            return Err(KeySetError::TooLarge(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        match extension {
            Some("pem") => self.add_public_pem(&text).map(drop),
            _ => self.add_jwks(&text),
        }
    }

    /// Adds a SubjectPublicKeyInfo in PEM; returns its id.
    pub fn add_public_pem(&mut self, pem: &str) -> Result<String, KeySetError> {
        let (_, block) = parse_x509_pem(pem.as_bytes())
            .ok()
            .ok_or(KeySetError::Pem)?;
        if block.label != "PUBLIC KEY" {
            return Err(KeySetError::Pem);
        }
        let (_, spki) = SubjectPublicKeyInfo::from_der(&block.contents)
            .ok()
            .ok_or(KeySetError::Pem)?;
        let bits: &[u8] = &spki.subject_public_key.data;
        let curve = spki
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok());
        let curve = curve.map(|oid| oid.to_id_string());
        let kind = spki.algorithm.algorithm.to_id_string();
        let (algorithms, decoding): (&'static [Algorithm], _) = match (&kind[..], curve.as_deref())
        {
            (OID_EC, Some(OID_P256)) => (&[Algorithm::ES256], DecodingKey::from_ec_der(bits)),
            (OID_EC, Some(OID_P384)) => (&[Algorithm::ES384], DecodingKey::from_ec_der(bits)),
            (OID_ED25519, _) => (&[Algorithm::EdDSA], DecodingKey::from_ed_der(bits)),
            (OID_RSA, _) => (RSA, DecodingKey::from_rsa_der(bits)),
            _ => return Err(KeySetError::Kind(kind)),
        };
        self.add(VerifyKey {
            id: key_id(&block.contents),
            algorithms,
            decoding,
        })
    }

    /// Adds all keys of a JSON Web Key Set (RFC 7517).
    pub fn add_jwks(&mut self, json: &str) -> Result<(), KeySetError> {
        let set: JwkSet = serde_json::from_str(json).map_err(KeySetError::Jwks)?;
        set.keys
            .iter()
            .try_for_each(|jwk| self.add_jwk(jwk).map(drop))
    }

    fn add_jwk(&mut self, jwk: &Jwk) -> Result<String, KeySetError> {
        let id = jwk.common.key_id.clone().unwrap_or_default();
        let algorithms: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                &[Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P384 => {
                &[Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            AlgorithmParameters::RSA(_) => RSA,
            _ => return Err(KeySetError::Kind(id)),
        };
        let decoding = DecodingKey::from_jwk(jwk).map_err(KeySetError::Key)?;
        self.add(VerifyKey {
            id,
            algorithms,
            decoding,
        })
    }

    fn add(&mut self, key: VerifyKey) -> Result<String, KeySetError> {
        if self.keys.len() >= KEYS_MAX {
            return Err(KeySetError::TooMany);
        }
        let id = key.id.clone();
        self.keys.push(Arc::new(key));
        Ok(id)
    }

    /// All keys of both sets.
    pub fn merge(mut self, other: Self) -> Result<Self, KeySetError> {
        self.keys.extend(other.keys);
        if self.keys.len() > KEYS_MAX {
            Err(KeySetError::TooMany)
        } else {
            Ok(self)
        }
    }

    /// The keys that a token with this key id may be signed by: the one of that id, or all where none has it (a key
    /// read from PEM has no id that its issuer knows).
    pub(crate) fn candidates<'a>(
        &'a self,
        id: Option<&'a str>,
    ) -> impl Iterator<Item = &'a VerifyKey> {
        let known = id.is_some_and(|id| self.keys.iter().any(|key| key.id == id));
        self.keys
            .iter()
            .map(|key| &**key)
            .filter(move |key| !known || Some(key.id()) == id)
    }
}

const RSA: &[Algorithm] = &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];
