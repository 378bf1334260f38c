//! Sessions that stay with an endpoint: what the request carries, which endpoint that is, and what its client is told.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use karst_model::traffic::{SessionKind, SessionPersistence};
use karst_routing::session::Session;

use super::send::Outgoing;
use crate::services::Member;

/// The session of one request.
#[derive(Default)]
pub(super) struct Sticky<'a> {
    policy: Option<&'a SessionPersistence>,
    session: Option<Session>,
}

impl<'a> Sticky<'a> {
    /// What the request carries, where the policy asks for it.
    pub(super) fn of(policy: Option<&'a SessionPersistence>, outgoing: &Outgoing) -> Self {
        let Some(policy) = policy else {
            return Self::default();
        };
        let text = match policy.kind {
            SessionKind::Cookie { .. } => cookie(outgoing.headers(), &policy.name),
            SessionKind::Header => {
                let value = outgoing.headers().get(&*policy.name);
                value.and_then(|value| value.to_str().ok())
            }
        };
        let session = text.and_then(Session::read);
        Self {
            policy: Some(policy),
            session: session.filter(|session| session.is_valid(policy, now())),
        }
    }

    /// The number of the endpoint that the request should go to.
    pub(super) fn endpoint(&self) -> Option<u64> {
        self.session.map(|session| session.endpoint)
    }

    /// Tells the client where its session is, if that is news.
    pub(super) fn tell(&self, member: Option<&Member>, headers: &mut HeaderMap) {
        let (Some(policy), Some(member)) = (self.policy, member) else {
            return;
        };
        let after = Session::after(self.session, member.session(), policy, now());
        let Some(after) = after else { return };
        match policy.kind {
            SessionKind::Header => {
                let name = HeaderName::try_from(&*policy.name);
                if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(after.text())) {
                    headers.insert(name, value);
                }
            }
            SessionKind::Cookie { permanent } => {
                let mut text = format!("{}={}; Path=/; HttpOnly", policy.name, after.text());
                if let (true, Some(limit)) = (permanent, policy.absolute_timeout) {
                    let age = now().saturating_sub(after.began);
                    let left = limit.as_secs().saturating_sub(age).max(1);
                    text.push_str(&format!("; Max-Age={left}"));
                }
                if let Ok(value) = HeaderValue::try_from(text) {
                    headers.append(header::SET_COOKIE, value);
                }
            }
        }
    }
}

/// The value of a cookie of the request.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter();
    let crumbs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    let mut pairs = crumbs.filter_map(|crumb| crumb.trim().split_once('='));
    let found = pairs.find(|(of, _)| *of == name);
    found.map(|(_, value)| value.trim_matches('"'))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
