//! A token in its compact form, taken apart and not yet believed (RFC 7515, section 7.1).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{Rejected, TOKEN_MAX, json};

/// How a token is signed. There is no `none`, and nothing with a shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// What a token says of itself.
#[derive(Debug)]
pub(super) struct Jwt {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<Box<str>>,
    pub(super) claims: Map<String, Value>,
    pub(super) signature: Box<[u8]>,
    pub(super) expires: Option<u64>,
    pub(super) not_before: Option<u64>,
    /// Where the first and the second dot are.
    dots: (usize, usize),
}

impl Jwt {
    pub(super) fn read(text: &str) -> Result<Self, Rejected> {
        if text.len() > TOKEN_MAX {
            return Err(Rejected::TooLarge);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Rejected::Malformed);
        };
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let head = bytes(header).and_then(|bytes| json::object(&bytes));
        let head = head.ok_or(Rejected::Header)?;
        let (algorithm, key_id) = read_header(&head)?;
        let claims = bytes(payload).and_then(|bytes| json::object(&bytes));
        let claims = claims.ok_or(Rejected::Payload)?;
        let signature = bytes(signature).ok_or(Rejected::Malformed)?;
        is_readable(&claims)?;
        Ok(Self {
            algorithm,
            key_id,
            signature: signature.into(),
            expires: time(&claims, "exp")?,
            not_before: time(&claims, "nbf")?,
            claims,
            dots: (header.len(), header.len() + 1 + payload.len()),
        })
    }

    /// The bytes that the signature is of.
    pub(super) fn signed<'a>(&self, text: &'a str) -> &'a [u8] {
        &text.as_bytes()[..self.dots.1]
    }

    /// The payload in base64url.
    pub(super) fn payload<'a>(&self, text: &'a str) -> &'a str {
        &text[self.dots.0 + 1..self.dots.1]
    }
}

fn read_header(head: &Map<String, Value>) -> Result<(Algorithm, Option<Box<str>>), Rejected> {
    // An extension that must be understood, and is not (RFC 7515, section 4.1.11).
    if head.contains_key("crit") {
        return Err(Rejected::Header);
    }
    let algorithm = head
        .get("alg")
        .and_then(Value::as_str)
        .ok_or(Rejected::Header)?;
    let key_id = match head.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.as_str().into()),
        Some(_) => return Err(Rejected::Header),
    };
    let algorithm = Algorithm::named(algorithm).ok_or(Rejected::Algorithm)?;
    Ok((algorithm, key_id))
}

/// Whether the registered claims have the types that they must have.
fn is_readable(claims: &Map<String, Value>) -> Result<(), Rejected> {
    let is_text = |name| claims.get(name).is_none_or(Value::is_string);
    let audience = match claims.get("aud") {
        None | Some(Value::String(_)) => true,
        Some(Value::Array(list)) => list.iter().all(Value::is_string),
        Some(_) => false,
    };
    match is_text("iss") && is_text("sub") && audience {
        true => Ok(()),
        false => Err(Rejected::Payload),
    }
}

/// Seconds since the epoch; parts of a second are dropped.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Rejected> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let whole = value.as_u64().or_else(|| {
        let seconds = value.as_f64()?;
        (0.0..9e15).contains(&seconds).then_some(seconds as u64)
    });
    whole.map(Some).ok_or(Rejected::Payload)
}
