//! Rate limits: the phase that counts a request, and the headers that tell its client.
//!
//! `RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers: every rule that counted the
//! request is a member of both lists. Of the headers that came before, one rule can speak: the one with the least left.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{self, HeaderName},
};
use karst_policy::{Connection, request::Asked};
use karst_routing::{
    request::{Request, remote_ip},
    table::Picked,
};
use karst_telemetry::metrics::http::RequestFlag;

use super::{Conversation, refusal::Refusal};
use crate::{
    rate_limits::{Checked, Counted},
    services::Served,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What the client of a request that passed is told with its response.
#[derive(Default)]
pub(super) struct Told(Option<Box<HeaderMap>>);

impl Told {
    /// Ours stand beside those of the endpoint, which speaks of limits of its own.
    pub(super) fn put(self, headers: &mut HeaderMap) {
        let Some(told) = self.0 else { return };
        let mut last = None;
        for (name, value) in *told {
            last = name.or(last);
            if let Some(name) = last.clone() {
                headers.append(name, value);
            }
        }
    }
}

/// Counts the request; the refusal names the rule that is used up.
pub(super) fn limit(
    conversation: &Conversation,
    served: Option<&Served>,
    client: &Connection,
    request: &Request,
    picked: Option<Picked<'_>>,
) -> Result<Told, Refusal> {
    let mesh = &conversation.worker.mesh;
    let own;
    let limited = match served {
        Some(served) => &served.limits,
        None => {
            own = mesh.services.own_limits();
            &**own
        }
    };
    if limited.is_empty() {
        return Ok(Told::default());
    }
    let asked = Asked {
        request,
        connection: client,
        remote_ip: remote_ip(
            request.headers(),
            client.source_ip,
            mesh.config.trusted_proxies,
        ),
        sni: None,
    };
    let checked = limited.check(&asked, picked.map(|picked| &picked.rule.route.key));
    let metrics = &mesh.metrics;
    metrics.limit_keys_shared.inc_by(checked.shared as u64);
    for counted in &checked.shadowed {
        metrics.requests_over_shadow_limits.inc();
        tracing::info!(target: "access", limit = %counted.limit.key, rule = &*counted.rule.name, "a rate limit in shadow mode would refuse this");
    }
    match &checked.refused {
        Some(refused) => {
            metrics.requests_limited.inc();
            Err(refusal(refused))
        }
        None => Ok(told(&checked)),
    }
}

fn refusal(counted: &Counted<'_>) -> Refusal {
    let Counted { limit, rule, taken } = counted;
    let status = StatusCode::from_u16(limit.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let cause = format!(
        "rate limit {} rule {}: {} requests per {:?} are used up",
        limit.key, rule.name, rule.requests, rule.period
    );
    let mut headers = headers(std::slice::from_ref(counted)).unwrap_or_default();
    let after = HeaderValue::from(seconds(taken.retry_after).max(1));
    headers.insert(header::RETRY_AFTER, after);
    Refusal {
        headers: Some(Box::new(headers)),
        ..Refusal::new(status, RequestFlag::RateLimited, cause)
    }
}

fn told(checked: &Checked<'_>) -> Told {
    Told(headers(&checked.counted).map(Box::new))
}

/// `None`: no rule tells anything.
fn headers(all: &[Counted<'_>]) -> Option<HeaderMap> {
    let draft = || all.iter().filter(|one| one.styles().0);
    let legacy = all.iter().filter(|one| one.styles().1);
    let tightest = legacy.min_by_key(|one| one.taken.remaining);
    let mut headers = HeaderMap::new();
    let mut set = |name, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    let list = |item: fn(&Counted<'_>) -> String| draft().map(item).collect::<Vec<_>>().join(", ");
    if draft().next().is_some() {
        set(RATE_LIMIT_POLICY, list(policy_item));
        set(RATE_LIMIT, list(state_item));
    }
    if let Some(one) = tightest {
        set(LIMIT, one.rule.requests.to_string());
        set(REMAINING, one.taken.remaining.to_string());
        set(RESET, seconds(one.taken.reset).to_string());
    }
    (!headers.is_empty()).then_some(headers)
}

/// `"name";q=100;w=60`.
fn policy_item(one: &Counted<'_>) -> String {
    let rule = one.rule;
    format!(
        "\"{}\";q={};w={}",
        rule.name,
        rule.requests,
        seconds(rule.period).max(1)
    )
}

/// `"name";r=50;t=30`.
fn state_item(one: &Counted<'_>) -> String {
    format!(
        "\"{}\";r={};t={}",
        one.rule.name,
        one.taken.remaining,
        seconds(one.taken.reset)
    )
}

/// Whole seconds, upwards: whoever waits so long has waited enough.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
