//! Join tokens as text: what a new node is given to find and trust its mesh, once.
//!
//! `karst1.<payload>.<seal>`, both base64url without padding. The payload is JSON: `r` SHA-256 of the root (hex),
//! `n` node, `e` expiry (Unix seconds), `i` a random id, and for a waypoint `a`, its account. The seal is an HMAC that only the controller can check
//! (`karst-ca`); the node reads the root's fingerprint, verifies the controller by it, and only then sends the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    bundle::{Fingerprint, hex},
    clock::unix_time,
};

const PREFIX: &str = "karst1";
/// Longer text is no token.
const LENGTH_MAX: usize = 2048;

/// The payload of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate that the controller's chain must hold.
    pub root: Fingerprint,
    /// The only node that may join with it.
    pub node: String,
    /// `<namespace>/<service account>` that the holder becomes; `None` for a node's agent.
    pub account: Option<String>,
    pub expires: SystemTime,
    /// Random; marks the token as used.
    pub id: String,
}

/// Text that is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    #[error(
        "join token does not start with {PREFIX}. and have three parts: copy it whole, as the controller printed it"
    )]
    Shape,
    #[error("join token is damaged: copy it whole, as the controller printed it")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    r: String,
    n: String,
    e: u64,
    i: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<String>,
}

impl JoinToken {
    /// Reads a token. Says nothing about whether the controller made it.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        Ok(Self::split(text)?.0)
    }

    /// The token, the text that is sealed, and the seal.
    pub fn split(text: &str) -> Result<(Self, &str, Vec<u8>), JoinTokenError> {
        let text = text.trim();
        if text.len() > LENGTH_MAX {
            return Err(JoinTokenError::Shape);
        }
        let (sealed, seal) = text.rsplit_once('.').ok_or(JoinTokenError::Shape)?;
        let (PREFIX, payload) = sealed.split_once('.').ok_or(JoinTokenError::Shape)? else {
            return Err(JoinTokenError::Shape);
        };
        let seal = URL_SAFE_NO_PAD
            .decode(seal)
            .ok()
            .ok_or(JoinTokenError::Damaged)?;
        let payload = URL_SAFE_NO_PAD
            .decode(payload)
            .ok()
            .ok_or(JoinTokenError::Damaged)?;
        let payload: Payload = serde_json::from_slice(&payload)
            .ok()
            .ok_or(JoinTokenError::Damaged)?;
        Ok((
            Self::from_payload(payload).ok_or(JoinTokenError::Damaged)?,
            sealed,
            seal,
        ))
    }

    fn from_payload(payload: Payload) -> Option<Self> {
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(payload.e))?;
        Some(Self {
            root: from_hex(&payload.r)?,
            node: payload.n,
            account: payload.a,
            expires,
            id: payload.i,
        })
    }

    /// `karst1.<payload>`: what the seal is computed over.
    pub fn sealed_text(&self) -> String {
        let payload = Payload {
            r: hex(&self.root),
            n: self.node.clone(),
            e: unix_time(self.expires).as_secs(),
            i: self.id.clone(),
            a: self.account.clone(),
        };
        let json = serde_json::to_vec(&payload).expect("strings and numbers always serialise");
        format!("{PREFIX}.{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// The whole token.
    pub fn with_seal(sealed_text: &str, seal: &[u8]) -> String {
        format!("{sealed_text}.{}", URL_SAFE_NO_PAD.encode(seal))
    }
}

fn from_hex(text: &str) -> Option<Fingerprint> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips() {
        let token = JoinToken {
            root: [7; 32],
            node: "node-a".into(),
            account: Some("shop/waypoint".into()),
            expires: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            id: "abc".into(),
        };
        let sealed = token.sealed_text();
        let text = JoinToken::with_seal(&sealed, b"seal");
        assert_eq!(
            JoinToken::split(&format!("{text}\n")).unwrap(),
            (token, &sealed[..], b"seal".to_vec())
        );
    }

    #[test]
    fn other_text_is_refused() {
        let long = "a".repeat(LENGTH_MAX + 1);
        for (text, error) in [
            ("", JoinTokenError::Shape),
            ("karst1.abc", JoinTokenError::Shape),
            ("karst2.e30.e30", JoinTokenError::Shape),
            (&long, JoinTokenError::Shape),
            ("karst1.e30.e30", JoinTokenError::Damaged),
            ("karst1.!.e30", JoinTokenError::Damaged),
        ] {
            assert_eq!(JoinToken::parse(text), Err(error), "{text}");
        }
    }
}
