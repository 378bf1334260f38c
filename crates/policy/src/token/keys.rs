//! The keys that an issuer publishes (RFC 7517, RFC 7518 section 6, RFC 8037), ready to verify with.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use super::{Algorithm, Rejected};

/// Keys of one issuer that are tried. Each may cost a verification of a token that names none.
const KEYS_MAX: usize = 100;

/// Padding is wrong there and common.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::Rs256, &RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::Rs384, &RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, &RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::Ps256, &RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, &RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, &RSA_PSS_2048_8192_SHA512),
];

/// Why a text is no set of keys. The fault is the issuer's, or of whoever wrote the text into an object.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("no JWK set: {0}")]
    Form(String),
    #[error(
        "none of the {0} keys can verify tokens: expected RSA of 2048 bits or more, EC or Ed25519"
    )]
    NoneUsable(usize),
}

/// A JWK set.
pub struct KeySet {
    keys: Vec<Key>,
    skipped: usize,
}

struct Key {
    id: Option<Box<str>>,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.keys.iter().map(|key| key.id.as_deref());
        f.debug_list().entries(ids).finish()
    }
}

#[derive(Deserialize)]
struct Written {
    keys: Vec<WrittenKey>,
}

#[derive(Deserialize)]
struct WrittenKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWK set. Keys that are not for verifying, or of another kind, are left out.
    pub fn read(text: &str) -> Result<Self, KeysError> {
        let written: Written = serde_json::from_str(text).map_err(|error| {
            // The text may be anything that a server answered, so it is not shown.
            KeysError::Form(format!(
                "{:?} at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            ))
        })?;
        let total = written.keys.len();
        let usable = written.keys.iter().filter_map(WrittenKey::read);
        let keys: Vec<Key> = usable.take(KEYS_MAX).collect();
        if keys.is_empty() {
            return Err(KeysError::NoneUsable(total));
        }
        let skipped = total - keys.len();
        Ok(Self { keys, skipped })
    }

    /// How many keys can be used, and how many were left out.
    pub fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.skipped)
    }

    /// Whether a key of the set made the signature. A token that names a key is verified with that one, or with keys
    /// that have no name.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        key_id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Rejected> {
        let is_meant = |key: &&Key| match (key_id, &key.id) {
            (Some(wanted), Some(id)) => *wanted == **id,
            (None, _) | (_, None) => true,
        };
        let mut candidates = self
            .keys
            .iter()
            .filter(is_meant)
            .flat_map(|key| &key.verifiers)
            .filter(|(of, _)| *of == algorithm)
            .peekable();
        if candidates.peek().is_none() {
            return Err(Rejected::KeyUnknown);
        }
        let made =
            |(_, key): &(Algorithm, ParsedPublicKey)| key.verify_sig(message, signature).is_ok();
        match candidates.any(made) {
            true => Ok(()),
            false => Err(Rejected::Signature),
        }
    }
}

impl WrittenKey {
    fn read(&self) -> Option<Key> {
        let is_for = |wanted: &str, given: &String| given == wanted;
        let signs = self.r#use.as_ref().is_none_or(|one| is_for("sig", one));
        let verifies = self
            .key_ops
            .as_ref()
            .is_none_or(|all| all.iter().any(|one| is_for("verify", one)));
        if !signs || !verifies {
            return None;
        }
        let mut verifiers = match self.kty.as_str() {
            "RSA" => self.rsa()?,
            "EC" => vec![self.elliptic()?],
            "OKP" => vec![self.edwards()?],
            _ => return None,
        };
        if let Some(name) = &self.alg {
            let only = Algorithm::named(name)?;
            verifiers.retain(|(of, _)| *of == only);
        }
        (!verifiers.is_empty()).then(|| Key {
            id: self.kid.as_deref().map(Into::into),
            verifiers,
        })
    }

    fn rsa(&self) -> Option<Vec<(Algorithm, ParsedPublicKey)>> {
        let number = |text: &Option<String>| {
            let bytes = BASE64.decode(text.as_ref()?).ok()?;
            let leading = bytes.iter().take_while(|byte| **byte == 0).count();
            Some(bytes[leading..].to_vec())
        };
        let (n, e) = (number(&self.n)?, number(&self.e)?);
        // Bits 2048 to 8192, which the verification asks for too.
        if !(256..=1024).contains(&n.len()) || n[0] & 0x80 == 0 && n.len() == 256 {
            return None;
        }
        let components = RsaPublicKeyComponents { n, e };
        let parsed = RSA.iter().map(|(algorithm, parameters)| {
            Some((
                *algorithm,
                components.to_parsed_public_key(parameters).ok()?,
            ))
        });
        parsed.collect()
    }

    fn elliptic(&self) -> Option<(Algorithm, ParsedPublicKey)> {
        let (algorithm, verification, length): (_, &'static dyn VerificationAlgorithm, usize) =
            match self.crv.as_deref()? {
                "P-256" => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
                "P-384" => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
                "P-521" => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
                _ => return None,
            };
        let coordinate = |text: &Option<String>| {
            let bytes = BASE64.decode(text.as_ref()?).ok()?;
            let missing = length.checked_sub(bytes.len())?;
            Some([vec![0; missing], bytes].concat())
        };
        let point = [vec![4], coordinate(&self.x)?, coordinate(&self.y)?].concat();
        Some((algorithm, parsed(verification, &point)?))
    }

    fn edwards(&self) -> Option<(Algorithm, ParsedPublicKey)> {
        if self.crv.as_deref() != Some("Ed25519") {
            return None;
        }
        let point = BASE64.decode(self.x.as_ref()?).ok()?;
        Some((Algorithm::EdDsa, parsed(&ED25519, &point)?))
    }
}

fn parsed(algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]) -> Option<ParsedPublicKey> {
    ParsedPublicKey::new(algorithm, bytes).ok()
}
