//! Who calls: a bearer token becomes a [`Caller`], by configured public keys here, by TokenReview in a cluster.

mod keys;

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, Validation};
use karst_identity::clock::{Clock, rfc3339};
use serde::{Deserialize, Serialize};

pub use self::keys::{KeySet, KeySetError};
use crate::token::{AUDIENCE, AgentAccount, ISSUER};

/// Longer tokens are not read.
pub const TOKEN_SIZE_MAX: usize = 16 * 1024;
/// How far a caller's clock, or ours, may be off.
const LEEWAY: Duration = Duration::from_secs(300);

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node that the token is bound to.
    pub node: String,
    pub namespace: String,
    pub service_account: String,
    /// The pod that the token is bound to; nodes that joined by token have none.
    pub pod_uid: Option<String>,
    /// Which key vouched for it; empty where no key did (TokenReview).
    pub key_id: String,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} on node {}",
            self.namespace, self.service_account, self.node
        )
    }
}

/// Why a bearer token names nobody. The text is for our log; callers hear only "not authenticated".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no bearer token was sent")]
    Missing,
    #[error("bearer token has {0} bytes, at most {TOKEN_SIZE_MAX} are read")]
    TooLarge(usize),
    #[error("bearer token is no JWT: {0}")]
    Malformed(String),
    #[error("bearer token is signed with {0:?}, which no configured key uses")]
    Algorithm(Algorithm),
    #[error(
        "bearer token is signed by no configured key (it names {0:?}): add the issuer's public key, or join the node again"
    )]
    UnknownKey(Option<String>),
    #[error("bearer token is for {0:?}, expected {AUDIENCE:?}")]
    Audience(Vec<String>),
    #[error("bearer token expired at {}: the caller must renew it in time, or its clock or ours is wrong", rfc3339(UNIX_EPOCH + Duration::from_secs(*.0)))]
    Expired(u64),
    #[error("bearer token is valid only from {}: the issuer's clock or ours is wrong", rfc3339(UNIX_EPOCH + Duration::from_secs(*.0)))]
    NotYetValid(u64),
    #[error("bearer token is not bound to a node and a service account")]
    Unbound,
    #[error("the API server does not accept the bearer token: {0}")]
    Rejected(String),
    #[error("the authority that reviews tokens cannot be reached: {0}")]
    Unavailable(String),
}

/// Turns a bearer token into a caller.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `bearer`: the token alone, without `Bearer `.
    async fn authenticate(&self, bearer: &str) -> Result<Caller, AuthError>;
}

/// The claims of a bound service account token, as Kubernetes writes them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audience,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(default)]
    iat: u64,
    #[serde(rename = "kubernetes.io", default)]
    bound: Bound,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default)]
    node: Option<Object>,
    #[serde(default)]
    pod: Option<Object>,
    #[serde(default)]
    serviceaccount: Option<Object>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Object {
    name: String,
    #[serde(default)]
    uid: String,
}

impl Claims {
    pub(crate) fn for_node(
        node: &str,
        account: &AgentAccount,
        now: SystemTime,
        ttl: Duration,
    ) -> Self {
        let object = |name: &str| {
            Some(Object {
                name: name.to_owned(),
                uid: String::new(),
            })
        };
        Self {
            iss: ISSUER.to_owned(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                account.namespace, account.service_account
            ),
            aud: Audience::Many(vec![AUDIENCE.to_owned()]),
            exp: seconds(now + ttl),
            nbf: seconds(now),
            iat: seconds(now),
            bound: Bound {
                namespace: account.namespace.clone(),
                node: object(node),
                pod: None,
                serviceaccount: object(&account.service_account),
            },
        }
    }

    fn audience(&self) -> Vec<String> {
        match &self.aud {
            Audience::One(one) => vec![one.clone()],
            Audience::Many(many) => many.clone(),
        }
    }

    fn check(&self, now: SystemTime) -> Result<(), AuthError> {
        if !self.audience().iter().any(|audience| audience == AUDIENCE) {
            return Err(AuthError::Audience(self.audience()));
        }
        if seconds(now) > self.exp.saturating_add(LEEWAY.as_secs()) {
            return Err(AuthError::Expired(self.exp));
        }
        if seconds(now + LEEWAY) < self.nbf {
            return Err(AuthError::NotYetValid(self.nbf));
        }
        Ok(())
    }

    fn caller(self, key_id: String) -> Result<Caller, AuthError> {
        let name = |object: Option<Object>| {
            object
                .map(|object| object.name)
                .filter(|name| !name.is_empty())
        };
        let pod_uid = self
            .bound
            .pod
            .map(|pod| pod.uid)
            .filter(|uid| !uid.is_empty());
        match (name(self.bound.node), name(self.bound.serviceaccount)) {
            (Some(node), Some(service_account)) if !self.bound.namespace.is_empty() => Ok(Caller {
                node,
                namespace: self.bound.namespace,
                service_account,
                pod_uid,
                key_id,
            }),
            _ => Err(AuthError::Unbound),
        }
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Believes tokens signed by configured public keys: for files, the lab and VMs.
pub struct KeySetAuthenticator {
    keys: KeySet,
    clock: Clock,
}

impl KeySetAuthenticator {
    pub fn new(keys: KeySet, clock: Clock) -> Self {
        Self { keys, clock }
    }

    fn verify(&self, bearer: &str) -> Result<Caller, AuthError> {
        if bearer.is_empty() {
            return Err(AuthError::Missing);
        }
        if bearer.len() > TOKEN_SIZE_MAX {
            return Err(AuthError::TooLarge(bearer.len()));
        }
        let malformed =
            |error: jsonwebtoken::errors::Error| AuthError::Malformed(error.to_string());
        let header = jsonwebtoken::decode_header(bearer).map_err(malformed)?;
        let mut candidates = self.keys.candidates(header.kid.as_deref()).peekable();
        if candidates.peek().is_none() {
            return Err(AuthError::UnknownKey(header.kid.clone()));
        }
        let mut algorithm_used = false;
        for key in candidates.filter(|key| key.accepts(header.alg)) {
            algorithm_used = true;
            if let Ok(token) =
                jsonwebtoken::decode::<Claims>(bearer, key.decoding(), &signature_only(header.alg))
            {
                token.claims.check(self.clock.now())?;
                return token.claims.caller(key.id().to_owned());
            }
        }
        Err(if algorithm_used {
            AuthError::UnknownKey(header.kid.clone())
        } else {
            AuthError::Algorithm(header.alg)
        })
    }
}

/// Times and audience are checked by us, with our clock and our texts.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

#[async_trait]
impl Authenticator for KeySetAuthenticator {
    async fn authenticate(&self, bearer: &str) -> Result<Caller, AuthError> {
        self.verify(bearer)
    }
}

#[cfg(test)]
mod tests;
