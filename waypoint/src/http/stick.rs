//! What a request is hashed by, where its service wants requests of one key at one endpoint.

use std::fmt::Write as _;

use http::{HeaderValue, header};
use karst_model::traffic::{BalanceAlgorithm, HashCookie, HashKey};
use karst_routing::hash::hash_of;
use rand::RngExt as _;

use super::{Client, send::Outgoing};
use crate::services::Cluster;

/// The key of a request.
#[derive(Default)]
pub(super) struct Key {
    /// `None`: it has none, and goes to any endpoint.
    pub(super) hash: Option<u64>,
    /// For a client that had no cookie.
    pub(super) set_cookie: Option<HeaderValue>,
}

/// The key that the policy of the endpoints asks for.
pub(super) fn key_of(cluster: &Cluster, outgoing: &Outgoing, client: &Client) -> Key {
    let BalanceAlgorithm::ConsistentHash(consistent) = &cluster.policy.balance.algorithm else {
        return Key::default();
    };
    let found = |bytes: &[u8]| Key {
        hash: Some(hash_of(bytes)),
        set_cookie: None,
    };
    let headers = outgoing.headers();
    match &consistent.key {
        HashKey::Header(name) => {
            let mut values = headers.get_all(&**name).iter();
            let Some(first) = values.next() else {
                return Key::default();
            };
            let mut all = first.as_bytes().to_vec();
            for value in values {
                all.push(b',');
                all.extend(value.as_bytes());
            }
            found(&all)
        }
        HashKey::SourceIp => found(client.addr.ip().to_string().as_bytes()),
        HashKey::Query(name) => {
            let pairs = outgoing.query().split('&');
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let value = pairs.find(|(key, _)| *key == &**name);
            value.map_or_else(Key::default, |(_, value)| found(value.as_bytes()))
        }
        HashKey::Cookie(cookie) => {
            let crumbs = headers.get_all(header::COOKIE).iter();
            let mut crumbs = crumbs
                .filter_map(|line| line.to_str().ok())
                .flat_map(|line| line.split(';'))
                .filter_map(|crumb| crumb.trim().split_once('='));
            match crumbs.find(|(name, _)| *name == &*cookie.name) {
                Some((_, value)) => found(value.trim_matches('"').as_bytes()),
                None => given(cookie),
            }
        }
    }
}

/// A client without a cookie gets one, where it has a lifetime.
fn given(cookie: &HashCookie) -> Key {
    let Some(ttl) = cookie.ttl else {
        return Key::default();
    };
    let value = format!("{:016x}", rand::rng().random::<u64>());
    let mut text = format!("{}={value}", cookie.name);
    // Writing to a string cannot fail.
    if !ttl.is_zero() {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs().max(1));
    }
    if let Some(path) = &cookie.path {
        let _ = write!(text, "; Path={path}");
    }
    let mut http_only = false;
    for (name, value) in &cookie.attributes {
        http_only |= name.eq_ignore_ascii_case("HttpOnly");
        let _ = match value {
            Some(value) => write!(text, "; {name}={value}"),
            None => write!(text, "; {name}"),
        };
    }
    if !http_only {
        text.push_str("; HttpOnly");
    }
    Key {
        hash: Some(hash_of(value.as_bytes())),
        set_cookie: HeaderValue::try_from(text).ok(),
    }
}
