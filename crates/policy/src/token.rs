//! Tokens of a request's user: which are believed, and what they say.
//!
//! ```text
//!   model::RequestAuthentication ──TokenRules::new──► TokenRules ──authenticate(request, now)──► Token on the request
//!   (all that apply to a service)                        └─ tokens verified before, bounded        or Rejected: 401, 403
//! ```
//!
//! The semantics are Istio's. A request without a token passes without a principal. A rule accepts a request if it finds
//! tokens where it looks and all of them hold; one rule that accepts is enough; tokens that no rule accepts are refused.
//! Stricter than Envoy: duplicate names in a token's JSON, an extension that must be understood (`crit`), and shared
//! secrets (HS256 and its like) are refused. Nothing here reads a clock, and no error shows anything of a token.

mod cache;
mod find;
mod json;
mod jwt;
mod keys;

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderName, HeaderValue};
use karst_model::token::{ClaimHeader, RequestAuthentication, TokenKeys, TokenRule};
use karst_routing::{request::Request, token::Token};
use serde_json::Value;

pub use self::keys::{KeySet, KeysError};
use self::{
    cache::Cache,
    jwt::{Algorithm, Jwt},
};

/// Bytes of the longest token that is looked at. Header fields of a request have 96 KiB together.
pub const TOKEN_MAX: usize = 64 << 10;
/// Tokens of one request that are looked at.
pub const TOKENS_MAX: usize = 16;

/// Why a request's tokens are refused. Always the peer's fault, except [`Self::NoKeys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejected {
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Malformed,
    #[error("Jwt is longer than 64 KiB, or there are more than 16")]
    TooLarge,
    #[error("Jwt header is malformed, or asks for an extension that is not understood")]
    Header,
    #[error("Jwt has an algorithm that is not supported")]
    Algorithm,
    #[error("Jwt payload is malformed, or has a name twice")]
    Payload,
    #[error("Jwt issuer is not configured")]
    Issuer,
    #[error("Jwt is expired")]
    Expired,
    #[error("Jwt not yet valid")]
    NotYetValid,
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    #[error("Jwks of the issuer are not known")]
    NoKeys,
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    KeyUnknown,
    #[error("Jwt verification fails")]
    Signature,
}

impl Rejected {
    /// Of the answer: 403 where the token is good and meant for somebody else, else 401.
    pub fn status(self) -> u16 {
        match self {
            Self::Audience => 403,
            _ => 401,
        }
    }

    /// A fixed word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Header => "header",
            Self::Algorithm => "algorithm",
            Self::Payload => "payload",
            Self::Issuer => "issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
            Self::NoKeys => "no_keys",
            Self::KeyUnknown => "key_unknown",
            Self::Signature => "signature",
        }
    }
}

/// What was found out about a token that holds.
#[derive(Debug)]
pub(crate) struct Verified {
    token: Arc<Token>,
    /// In base64url, as the token has it.
    payload: Box<str>,
    expires: Option<u64>,
    not_before: Option<u64>,
}

/// All rules that apply to requests for one service at one waypoint. Immutable but for the tokens that it remembers: a
/// change of rules or keys makes a new one.
#[derive(Debug, Default)]
pub struct TokenRules {
    /// By issuer, so that the outcome does not depend on the order in which they came.
    rules: Vec<Rule>,
    /// What only a verified token may put there.
    reserved: Vec<HeaderName>,
    verified: Mutex<Cache>,
}

#[derive(Debug)]
struct Rule {
    written: TokenRule,
    audiences: Vec<Box<str>>,
    /// `None`: there are none to verify with.
    keys: Option<KeySet>,
    payload_header: Option<HeaderName>,
    claim_headers: Vec<(HeaderName, ClaimHeader)>,
}

impl TokenRules {
    /// Compiles the objects that apply.
    pub fn new<'a>(
        authentications: impl IntoIterator<Item = &'a Arc<RequestAuthentication>>,
    ) -> Self {
        let mut sorted: Vec<_> = authentications.into_iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let mut rules: Vec<Rule> = sorted
            .iter()
            .flat_map(|one| &one.rules)
            .map(Rule::new)
            .collect();
        rules.sort_by(|a, b| a.written.issuer.cmp(&b.written.issuer));
        let reserved = rules.iter().flat_map(Rule::headers).cloned().collect();
        Self {
            rules,
            reserved,
            verified: Mutex::default(),
        }
    }

    /// Whether nothing applies: tokens are left alone.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// A query with the values of parameters that may be tokens taken out, for logs; `None` if it has none.
    pub fn without_tokens(&self, query: &str) -> Option<String> {
        let sources = self.rules.iter().flat_map(|rule| &rule.written.sources);
        find::without_tokens(sources, query)
    }

    /// Looks for tokens, verifies them, and leaves on the request what they prove: its token, the headers that rules ask
    /// for, and no token that is not to be passed on. `now` in seconds since the epoch.
    pub fn authenticate(&self, request: &mut Request, now: u64) -> Result<(), Rejected> {
        for header in &self.reserved {
            request.headers_mut().remove(header);
        }
        let mut read: Vec<(String, Result<Jwt, Rejected>)> = Vec::new();
        let mut nearest: Option<Rejected> = None;
        for (index, rule) in self.rules.iter().enumerate() {
            let tokens = find::tokens(&rule.written.sources, request)?;
            match self.accepts(index, tokens, now, &mut read) {
                Ok(None) => {}
                Ok(Some(verified)) => {
                    rule.leave(request, &verified);
                    return Ok(());
                }
                Err(rejected) => nearest = Some(nearer(nearest, rejected)),
            }
        }
        nearest.map_or(Ok(()), Err)
    }

    /// The first of the tokens, if there are any and all hold.
    fn accepts(
        &self,
        index: usize,
        tokens: Vec<String>,
        now: u64,
        read: &mut Vec<(String, Result<Jwt, Rejected>)>,
    ) -> Result<Option<Arc<Verified>>, Rejected> {
        let mut first = None;
        for text in tokens {
            let verified = self.holds(index, text, now, read)?;
            first.get_or_insert(verified);
        }
        Ok(first)
    }

    fn holds(
        &self,
        index: usize,
        text: String,
        now: u64,
        read: &mut Vec<(String, Result<Jwt, Rejected>)>,
    ) -> Result<Arc<Verified>, Rejected> {
        let rule = &self.rules[index];
        let skew = rule.written.clock_skew.as_secs();
        if let Some(verified) = self.remembered(index, &text) {
            in_time(verified.not_before, verified.expires, now, skew)?;
            return Ok(verified);
        }
        // A token is taken apart once, however many rules look at it.
        let at = match read.iter().position(|(known, _)| *known == text) {
            Some(at) => at,
            None => {
                let jwt = Jwt::read(&text);
                read.push((text, jwt));
                read.len() - 1
            }
        };
        let (text, jwt) = &read[at];
        let jwt = jwt.as_ref().map_err(|rejected| *rejected)?;
        let verified = Arc::new(rule.verify(text, jwt, now, skew)?);
        self.remember(index, text, &verified);
        Ok(verified)
    }

    fn remembered(&self, rule: usize, text: &str) -> Option<Arc<Verified>> {
        let mut cache = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(rule, text)
    }

    fn remember(&self, rule: usize, text: &str, verified: &Arc<Verified>) {
        let mut cache = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put(rule, text, verified.clone());
    }
}

impl Rule {
    fn new(written: &TokenRule) -> Self {
        let name = |text: &Arc<str>| HeaderName::from_bytes(text.as_bytes()).ok();
        let keys = match &written.keys {
            TokenKeys::Published(text) => KeySet::read(text).ok(),
            TokenKeys::Missing(_) => None,
        };
        let claims = written.claim_headers.iter();
        Self {
            audiences: written
                .audiences
                .iter()
                .map(|one| bare(one).into())
                .collect(),
            keys,
            payload_header: written.payload_header.as_ref().and_then(name),
            claim_headers: claims
                .filter_map(|claim| Some((name(&claim.header)?, claim.clone())))
                .collect(),
            written: written.clone(),
        }
    }

    fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = self.claim_headers.iter().map(|(name, _)| name);
        self.payload_header.iter().chain(claims)
    }

    fn verify(&self, text: &str, jwt: &Jwt, now: u64, skew: u64) -> Result<Verified, Rejected> {
        if jwt.claims.get("iss").and_then(Value::as_str) != Some(&*self.written.issuer) {
            return Err(Rejected::Issuer);
        }
        in_time(jwt.not_before, jwt.expires, now, skew)?;
        let token = Token::new(jwt.claims.clone(), &self.written.space_delimited);
        let meant = |audience: &str| self.audiences.iter().any(|one| **one == *bare(audience));
        if !self.audiences.is_empty() && !token.audiences().any(meant) {
            return Err(Rejected::Audience);
        }
        let keys = self.keys.as_ref().ok_or(Rejected::NoKeys)?;
        keys.verify(
            jwt.algorithm,
            jwt.key_id.as_deref(),
            jwt.signed(text),
            &jwt.signature,
        )?;
        Ok(Verified {
            token: Arc::new(token),
            payload: jwt.payload(text).into(),
            expires: jwt.expires,
            not_before: jwt.not_before,
        })
    }

    /// What the backend gets to see.
    fn leave(&self, request: &mut Request, verified: &Verified) {
        if !self.written.forward {
            find::remove(&self.written.sources, request);
        }
        if let Some(header) = &self.payload_header
            && let Ok(payload) = HeaderValue::from_str(&verified.payload)
        {
            request.headers_mut().insert(header, payload);
        }
        for (header, claim) in &self.claim_headers {
            let value = match verified.token.claim(&claim.claim) {
                Some(Value::String(text)) => HeaderValue::from_str(text).ok(),
                Some(Value::Number(number)) => HeaderValue::from_str(&number.to_string()).ok(),
                Some(Value::Bool(truth)) => Some(HeaderValue::from_static(match truth {
                    true => "true",
                    false => "false",
                })),
                Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => None,
            };
            if let Some(value) = value {
                request.headers_mut().insert(header, value);
            }
        }
        request.set_token(verified.token.clone());
    }
}

fn in_time(
    not_before: Option<u64>,
    expires: Option<u64>,
    now: u64,
    skew: u64,
) -> Result<(), Rejected> {
    if not_before.is_some_and(|from| now.saturating_add(skew) < from) {
        return Err(Rejected::NotYetValid);
    }
    if expires.is_some_and(|until| now > until.saturating_add(skew)) {
        return Err(Rejected::Expired);
    }
    Ok(())
}

/// An audience as audiences are compared: without scheme and final slash.
fn bare(audience: &str) -> &str {
    let rest = audience
        .strip_prefix("https://")
        .or_else(|| audience.strip_prefix("http://"))
        .unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// Of two rules' reasons the one of the rule that the token was nearer to: another issuer's rule says nothing.
fn nearer(one: Option<Rejected>, other: Rejected) -> Rejected {
    match one {
        None | Some(Rejected::Issuer) => other,
        Some(one) => one,
    }
}
