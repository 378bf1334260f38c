//! Tokens of a request's user: a RequestAuthentication in the form that a waypoint evaluates.
//!
//! A request without a token passes without a principal; one with a token that no rule verifies is answered with 401.
//! Who may do what without a principal is for authorization to say ([`crate::waypoint_policy`]). The evaluation is
//! `karst-policy`; the keys come from the controller, as waypoints fetch nothing.
//!
//! Source of the semantics: Istio's reference of RequestAuthentication; RFC 7519 (JWT), RFC 7517 (JWK).

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{name::PolicyKey, waypoint_policy::PolicyTarget};

/// How far the clock of whoever issued a token may differ from ours.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// One object and what it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAuthentication {
    pub key: PolicyKey,
    /// OR: it applies to requests for any of them.
    pub targets: Vec<PolicyTarget>,
    pub rules: Vec<TokenRule>,
}

/// One issuer whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRule {
    /// Must equal the token's `iss`.
    pub issuer: Arc<str>,
    /// One of them must be among the token's `aud`; none: any audience.
    pub audiences: Vec<Arc<str>>,
    pub keys: TokenKeys,
    /// Where a token may stand. The lowering writes the default of the API out, so an empty list finds none.
    pub sources: Vec<TokenSource>,
    /// Whether the backend gets the token as well.
    pub forward: bool,
    /// Header that the backend finds the token's payload in, in base64url without padding. In lower case.
    pub payload_header: Option<Arc<str>>,
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims whose text is a list, with spaces between, beside `scope` and `permission`, which always are.
    pub space_delimited: Vec<Arc<str>>,
    pub clock_skew: Duration,
}

/// Keys that an issuer signs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKeys {
    /// A JWK set, as the issuer publishes it.
    Published(Arc<str>),
    /// There are none, and why: no token of this issuer can be verified.
    Missing(Arc<str>),
}

/// A place in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TokenSource {
    Header {
        /// In lower case.
        name: Arc<str>,
        /// What stands before the token, `Bearer ` for example; may be empty.
        prefix: Arc<str>,
    },
    /// A parameter of the query.
    Param(Arc<str>),
    Cookie(Arc<str>),
}

/// A claim that the backend finds in a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimHeader {
    /// In lower case.
    pub header: Arc<str>,
    /// Names from the outermost to the innermost.
    pub claim: Vec<Arc<str>>,
}
