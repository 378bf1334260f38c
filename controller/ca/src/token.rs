//! Tokens of nodes: a join token works once and gives a node token, which is renewed while the node lives.
//!
//! A join token is sealed by an HMAC key in the state folder; its use is written there before the node token is given
//! out, so that it holds over a restart. A node token is a JWT (ES256) of the shape that Kubernetes gives to bound
//! service account tokens, so that one [`crate::Authenticator`] reads both.

mod used;

use std::{
    fmt,
    path::Path,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use karst_identity::{
    JoinToken, JoinTokenError,
    bundle::{Fingerprint, hex},
    private_file::{self, PrivateFileError},
};
use zeroize::Zeroizing;

use self::used::UsedTokens;
use crate::{
    authenticate::{Caller, Claims, KeySet, KeySetError},
    root::random_bytes,
};

/// The audience of node tokens, Istio's.
pub const AUDIENCE: &str = "istio-ca";
/// The issuer of node tokens.
pub const ISSUER: &str = "karst";
/// Longest life of a join token: the set of used ones forgets no sooner.
pub const JOIN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Life of a node token. Agents renew at half of it.
pub const NODE_TTL: Duration = Duration::from_secs(24 * 3600);

const JOIN_KEY_FILE: &str = "join-token.key";
const NODE_KEY_FILE: &str = "node-token.key.pem";
/// A node name is a DNS subdomain (RFC 1123), as in Kubernetes.
const NODE_NAME_MAX: usize = 253;

/// A service account that tokens speak for: that of agents, or a waypoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAccount {
    pub namespace: String,
    pub service_account: String,
}

impl Default for AgentAccount {
    fn default() -> Self {
        Self {
            namespace: "karst-system".to_owned(),
            service_account: "karst-agent".to_owned(),
        }
    }
}

impl fmt::Display for AgentAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

impl FromStr for AgentAccount {
    type Err = IssueError;

    /// Of `<namespace>/<service account>`.
    fn from_str(text: &str) -> Result<Self, IssueError> {
        let is_name = |name: &str| check_node(name).is_ok();
        match text.split_once('/') {
            Some((namespace, account)) if is_name(namespace) && is_name(account) => Ok(Self {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
            }),
            _ => Err(IssueError::Account(text.to_owned())),
        }
    }
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(
        "{0:?} is no node name: expected lower-case letters, digits, '-' and '.', at most {NODE_NAME_MAX}"
    )]
    Node(String),
    #[error("{0:?} is no service account: expected <namespace>/<name>")]
    Account(String),
    #[error("a join token may live for {JOIN_TTL_MAX:?} at most, {0:?} was asked for")]
    Life(Duration),
    #[error("caller holds no node token of ours: only those are renewed")]
    NotOurs,
    #[error(
        "signing a token failed in the crypto library: this is a bug in Karst, or the token key is damaged"
    )]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Why a node may not join. The text is for our log; the caller hears [`JoinError::public`].
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Token(#[from] JoinTokenError),
    #[error(
        "join token was not made by this mesh: make one with `karst-controller token` on this controller"
    )]
    Seal,
    #[error("join token for node {node} expired: make a new one")]
    Expired { node: String },
    #[error(
        "join token for node {node} was used before: make a new one, and find out who used it if it was not you"
    )]
    Used { node: String },
    #[error("join token is for node {node}, the caller says that it is {caller}")]
    OtherNode { node: String, caller: String },
    #[error(
        "{0} used join tokens are remembered, no more are taken until some expire: shorten their life"
    )]
    Full(usize),
    #[error("use of a join token could not be written down, so it was not accepted")]
    Remember(#[from] PrivateFileError),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl JoinError {
    /// What the caller may hear: enough to fix an honest mistake, nothing about our state.
    pub fn public(&self) -> &'static str {
        match self {
            Self::Token(_) => "join token is damaged: copy it whole",
            Self::Full(_) | Self::Remember(_) | Self::Issue(_) => {
                "joining is not possible now: see the controller's log"
            }
            _ => "join token not accepted: make a new one for this node",
        }
    }
}

/// Keys of the CA that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error(
        "{0} in the state folder is damaged: restore it, or remove it so that all nodes join again"
    )]
    Key(&'static str),
    #[error(transparent)]
    Verify(#[from] KeySetError),
    #[error(transparent)]
    Used(#[from] used::UsedError),
}

/// Makes and redeems the tokens of nodes.
pub struct Tokens {
    join_key: hmac::Key,
    node_key: EncodingKey,
    node_keys: KeySet,
    key_id: String,
    account: AgentAccount,
    used: Mutex<UsedTokens>,
}

impl Tokens {
    /// Reads the keys in the CA's state folder, or makes them.
    pub fn load_or_create(state_dir: &Path, account: AgentAccount) -> Result<Self, TokenKeyError> {
        private_file::prepare_dir(state_dir)?;
        let secret: [u8; 32] = random_bytes();
        let secret = Zeroizing::new(private_file::create_once(
            &state_dir.join(JOIN_KEY_FILE),
            &secret,
        )?);
        if secret.len() != 32 {
            return Err(TokenKeyError::Key(JOIN_KEY_FILE));
        }
        let pair = node_key(state_dir)?;
        let public = Zeroizing::new(pair.serialize_pem());
        let node_key = EncodingKey::from_ec_pem(public.as_bytes())
            .ok()
            .ok_or(TokenKeyError::Key(NODE_KEY_FILE))?;
        let mut node_keys = KeySet::default();
        let key_id = node_keys.add_public_pem(&pair.public_key_pem())?;
        Ok(Self {
            join_key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            node_key,
            node_keys,
            key_id,
            account,
            used: Mutex::new(UsedTokens::load(state_dir)?),
        })
    }

    /// The public key of node tokens, for [`crate::KeySetAuthenticator`].
    pub fn node_keys(&self) -> KeySet {
        self.node_keys.clone()
    }

    /// A join token: the agent of `node` may join once within `ttl`, and trusts the root with this fingerprint.
    pub fn issue_join(
        &self,
        node: &str,
        root: Fingerprint,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, IssueError> {
        self.issue_join_as(None, node, root, ttl, now)
    }

    /// The same for a waypoint, which becomes `account`; without one, for an agent.
    pub fn issue_join_as(
        &self,
        account: Option<&AgentAccount>,
        node: &str,
        root: Fingerprint,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, IssueError> {
        check_node(node)?;
        if ttl > JOIN_TTL_MAX {
            return Err(IssueError::Life(ttl));
        }
        let id = URL_SAFE_NO_PAD.encode(random_bytes::<16>());
        let sealed = JoinToken {
            root,
            node: node.to_owned(),
            account: account.map(ToString::to_string),
            expires: now + ttl,
            id,
        }
        .sealed_text();
        let seal = hmac::sign(&self.join_key, sealed.as_bytes());
        Ok(JoinToken::with_seal(&sealed, seal.as_ref()))
    }

    /// Takes a join token, once, from the node that it is for, and gives a node token.
    pub fn redeem_join(
        &self,
        token: &str,
        node: &str,
        now: SystemTime,
    ) -> Result<String, JoinError> {
        let (token, sealed, seal) = JoinToken::split(token)?;
        hmac::verify(&self.join_key, sealed.as_bytes(), &seal)
            .ok()
            .ok_or(JoinError::Seal)?;
        if token.node != node {
            return Err(JoinError::OtherNode {
                node: token.node,
                caller: node.to_owned(),
            });
        }
        if now > token.expires {
            return Err(JoinError::Expired { node: token.node });
        }
        let account = match &token.account {
            Some(account) => account.parse()?,
            None => self.account.clone(),
        };
        let node_token = self.issue_node(node, &account, now)?;
        self.used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spend(&token, now)?;
        Ok(node_token)
    }

    /// A token for the caller's node and account, from a valid one of ours.
    pub fn renew_node(&self, caller: &Caller, now: SystemTime) -> Result<String, IssueError> {
        if caller.key_id != self.key_id {
            return Err(IssueError::NotOurs);
        }
        let account = AgentAccount {
            namespace: caller.namespace.clone(),
            service_account: caller.service_account.clone(),
        };
        self.issue_node(&caller.node, &account, now)
    }

    fn issue_node(
        &self,
        node: &str,
        account: &AgentAccount,
        now: SystemTime,
    ) -> Result<String, IssueError> {
        check_node(node)?;
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let claims = Claims::for_node(node, account, now, NODE_TTL);
        jsonwebtoken::encode(&header, &claims, &self.node_key).map_err(IssueError::Sign)
    }
}

fn node_key(state_dir: &Path) -> Result<rcgen::KeyPair, TokenKeyError> {
    let damaged = || TokenKeyError::Key(NODE_KEY_FILE);
    let fresh = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .ok()
        .ok_or_else(damaged)?;
    let fresh = Zeroizing::new(fresh.serialize_pem());
    let pem = Zeroizing::new(private_file::create_once(
        &state_dir.join(NODE_KEY_FILE),
        fresh.as_bytes(),
    )?);
    let pem = std::str::from_utf8(&pem).ok().ok_or_else(damaged)?;
    rcgen::KeyPair::from_pem(pem).ok().ok_or_else(damaged)
}

fn check_node(node: &str) -> Result<(), IssueError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if node.is_empty() || node.len() > NODE_NAME_MAX || !node.bytes().all(allowed) {
        return Err(IssueError::Node(node.to_owned()));
    }
    Ok(())
}

/// A short name of a public key: the first 16 digits of the SHA-256 of its DER.
pub(crate) fn key_id(public_der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public_der);
    hex(&digest.as_ref()[..8])
}

#[cfg(test)]
mod tests;
