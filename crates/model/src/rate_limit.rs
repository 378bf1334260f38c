//! Rate limits, as a waypoint counts them: our own RateLimit policy.
//!
//! A limit is a token bucket per key: `burst` requests may come at once, and `requests` per `period` come back. Every rule
//! that matches a request takes one from its bucket; a request passes if all of them have one left, and takes none if not.
//! The arithmetic is `karst-routing`, the matching `karst-policy`; here are only the words.
//!
//! Each waypoint process counts by itself ([`LimitScope::Process`]). A limit over all of them would be another scope with
//! the same rules: what is asked for a token is the only thing that differs.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    name::{PolicyKey, ServiceKey},
    route::RouteKey,
    waypoint_policy::RequestMatch,
};

/// One policy and what it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    pub key: PolicyKey,
    /// OR: the policy applies to requests for any of them. All share the counts of the policy.
    pub targets: Vec<LimitTarget>,
    pub enforcement: Enforcement,
    pub scope: LimitScope,
    /// Of the answer to a request that is refused, 400 to 599.
    pub status: u16,
    pub headers: LimitHeaders,
    pub rules: Vec<LimitRule>,
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitTarget {
    /// A Service or ServiceEntry: requests for it.
    Service(ServiceKey),
    /// A waypoint: all requests that pass it.
    Gateway { namespace: Arc<str>, name: Arc<str> },
    /// Requests that a rule of this route takes.
    Route(RouteKey),
}

/// What happens above a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Enforcement {
    /// The request is refused.
    #[default]
    Enforce,
    /// It is counted and logged, and passes.
    Shadow,
}

/// Who counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitScope {
    /// All threads of one waypoint process, exactly. Replicas count by themselves.
    #[default]
    Process,
}

/// How clients are told about limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitHeaders {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    #[default]
    Draft,
    /// `x-ratelimit-limit`, `x-ratelimit-remaining`, `x-ratelimit-reset`.
    Legacy,
    Both,
    /// Not at all, but for `retry-after` on a refusal.
    None,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRule {
    /// Unique in its policy: for headers, metrics and logs.
    pub name: Arc<str>,
    /// OR; empty: every request.
    pub matches: Vec<RequestMatch>,
    /// Above zero.
    pub requests: u32,
    /// Above zero.
    pub period: Duration,
    /// Above zero.
    pub burst: u32,
    /// All of them together tell clients apart; empty: one count for everybody.
    pub keys: Vec<LimitKey>,
}

/// What tells clients apart. Requests without it count together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LimitKey {
    /// The client's SPIFFE ID.
    Identity,
    /// The namespace of that.
    Namespace,
    /// The client's address, as trusted proxies tell it.
    Address,
    /// All values of this header, in lower case, as one.
    Header(Arc<str>),
    /// A claim of the verified token, by the names of nested ones.
    Claim(Vec<Arc<str>>),
}
