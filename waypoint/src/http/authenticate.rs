//! Who the user of a request is: its tokens are verified, and what they prove stays on the request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use karst_policy::token::{Rejected, TokenRules};
use karst_routing::request::Request;
use karst_telemetry::metrics::http::RequestFlag;

use super::{Conversation, record::Record, refusal::Refusal};
use crate::{mesh::Mesh, services::Served};

/// Verifies the tokens of a request by the rules of its service, and where a workload was named by those of each of its
/// services; by those of the waypoint alone where it has none. `age`: how long ago the request came, which is when its tokens
/// had to be valid.
pub(super) fn authenticate(
    conversation: &Conversation,
    served: Option<&Served>,
    request: &mut Request,
    age: Duration,
) -> Result<(), Refusal> {
    let mesh = &conversation.worker.mesh;
    match served {
        Some(served) => verify(mesh, &served.tokens, request, age)?,
        None => verify(mesh, &mesh.services.own_tokens(), request, age)?,
    }
    for (slot, _) in &conversation.destination.also {
        verify(mesh, &slot.load().tokens, request, age)?;
    }
    Ok(())
}

/// Keeps tokens in the query out of the access log.
pub(super) fn hide(conversation: &Conversation, served: Option<&Served>, record: &mut Record) {
    let mesh = &conversation.worker.mesh;
    match served {
        Some(served) => record.hide(&served.tokens),
        None => record.hide(&mesh.services.own_tokens()),
    }
}

/// The same by the rules of another service, to which a route leads.
pub(super) fn verify(
    mesh: &Mesh,
    rules: &TokenRules,
    request: &mut Request,
    age: Duration,
) -> Result<(), Refusal> {
    if rules.is_empty() {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.saturating_sub(age).as_secs());
    rules.authenticate(request, now).map_err(|rejected| {
        mesh.metrics.token_rejected(rejected.label());
        refusal(rejected, request)
    })
}

fn refusal(rejected: Rejected, request: &Request) -> Refusal {
    let status = StatusCode::from_u16(rejected.status()).unwrap_or(StatusCode::UNAUTHORIZED);
    let mut refusal = Refusal::new(status, RequestFlag::Unauthorized, rejected.to_string());
    if status == StatusCode::UNAUTHORIZED {
        // Quotes and what is not text are not in a normalised host.
        let challenge = format!(
            "Bearer realm=\"{}://{}{}\", error=\"invalid_token\"",
            request.scheme().as_str(),
            request.host(),
            request.path().replace(['"', '\\'], "")
        );
        let mut headers = HeaderMap::new();
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        refusal.headers = Some(Box::new(headers));
    }
    refusal
}
