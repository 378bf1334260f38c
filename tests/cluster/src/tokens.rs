//! An issuer of tokens: keys that it makes, tokens that it signs, and what it publishes.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// One key of ES256, and its name.
pub struct Key {
    pair: EcdsaKeyPair,
    name: String,
}

impl Key {
    pub fn new(name: &str) -> Self {
        Self {
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            name: name.to_owned(),
        }
    }

    /// A token with these claims, which say themselves when it ends.
    pub fn sign(&self, claims: &Value) -> String {
        let head = json!({"alg": "ES256", "kid": self.name, "typ": "JWT"});
        let text = [head.to_string(), claims.to_string()]
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .join(".");
        let signed = self.pair.sign(&SystemRandom::new(), text.as_bytes());
        let signed = signed.expect("the key signs");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed))
    }

    fn public(&self) -> Value {
        // 4, x, y.
        let point = self.pair.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.name,
            "x": part(&point[1..33]), "y": part(&point[33..65]),
        })
    }
}

/// What an issuer publishes of its keys.
pub fn key_set(keys: &[&Key]) -> String {
    let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
    json!({ "keys": keys }).to_string()
}
