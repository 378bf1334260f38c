//! The life of a request, in order:
//!
//! ```text
//!   accept ─ identify ─ normalise ─ authenticate ─ route ─ ask others ─ authorize ─ limit ─ filter
//!          ─┬─ pick endpoint ─ send ─ retry ─┐
//!           └──────────────◄─────────────────┘─ reply ─ record
//! ```
//!
//! Tokens are verified before the route is chosen, since routes may ask what they say; external authorizers are asked
//! before the waypoint's own policies, and may have the route chosen again.
//!
//! Each phase may end the request with a [`Refusal`]; what comes later sees only what the phases before it left. Long
//! phases have files of their own: `authenticate`, `external` (ask others), `limit`, `filter`, `target` (pick endpoint),
//! `forward` (send, retry).

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, Response, StatusCode, header, request::Parts};
use hyper::{Request as HttpRequest, body::Incoming};
use karst_policy::Connection;
use karst_routing::{
    request::{Request, Scheme, Seen},
    table::{Picked, Routes},
};
use karst_telemetry::metrics::http::{RequestFlag, RequestProtocol};
use tokio::time::Instant;

use super::{
    Conversation,
    answer::{Answer, Content},
    authenticate::{authenticate, hide, verify},
    body::ClientBody,
    external::{Asks, ask},
    filter::Filtered,
    forward::{Tries, forward, may_mirror, mirror, outgoing},
    limit::limit,
    record::Record,
    refusal::Refusal,
    revoke::{Admitted, Elsewhere, believes},
    target::{Target, asked_host, of_host, pick_backend},
    upgrade::{self, Asked},
};
use crate::{
    authorize,
    bounds::{Full, Place},
    services::Served,
};

/// Serves one request.
///
/// It begins before the future is made, which would else keep room for all that is only moved on.
pub(super) fn serve(
    conversation: &Rc<Conversation>,
    mut request: HttpRequest<Incoming>,
) -> impl Future<Output = Response<Answer>> {
    let asked = Asked::take(&mut request);
    let (mut parts, body) = request.into_parts();
    let mut record = Record::begin(conversation, &parts);
    record.trace(&mut parts.headers);
    // Handed over by reference: an argument would be kept twice for as long as the request lives.
    let mut arrived = Some((parts, body));
    async move {
        let outcome = live(conversation, &asked, &mut arrived, &mut record).await;
        reply(asked, record, outcome)
    }
}

/// What the endpoint answered, and until when its body may take.
struct Answered {
    response: Response<Content>,
    deadline: Option<Instant>,
}

async fn live(
    conversation: &Rc<Conversation>,
    asked: &Asked,
    arrived: &mut Option<(Parts, Incoming)>,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let (parts, body) = arrived
        .take()
        .ok_or_else(|| Refusal::internal("a request was taken twice".to_owned()))?;
    record.changes = conversation.ongoing.changes();
    let served = conversation
        .destination
        .slot
        .as_ref()
        .map(|slot| slot.load().clone());
    let served = served.as_deref();
    record.service = served.map(|served| served.labels.clone());
    hide(conversation, served, record);
    record.places = accept(conversation)?;
    let client = identify(conversation);
    let mut request = normalise(conversation, parts)?;
    record.body = ClientBody::new(body);
    if !matches!(asked, Asked::Nothing) || believes(conversation, served) {
        record.keep_head(&request);
    }
    authenticate(conversation, served, &mut request, Duration::ZERO)?;
    let mut picked = route(conversation, served, &mut request)?;
    record.route = picked.map(|picked| picked.rule.label.clone());
    let mut told = None;
    let asks = external(conversation, served, &client, &request);
    if !asks.is_empty() {
        record.keep_head(&request);
        let asked = ask(conversation, asks, &client, &mut request, record);
        let answered = Box::pin(asked).await?;
        if answered.reroute {
            picked = route(conversation, served, &mut request)?;
            record.route = picked.map(|picked| picked.rule.label.clone());
        }
        told = Some(Box::new(answered));
    }
    authorize(conversation, served, &client, &request)?;
    let counted = limit(conversation, served, &client, &request, picked)?;
    let mut filtered = Filtered::default();
    if let Some(picked) = picked {
        if !picked.rule.filters.is_empty() {
            record.keep_head(&request);
        }
        let applied = filtered.apply(&picked.rule.filters, &mut request, picked);
        if let Some(wait) = filtered.delay.take() {
            record.delayed();
            Box::pin(tokio::time::sleep(wait)).await;
        }
        applied?;
    }
    let backend = pick_backend(conversation, served, picked)?;
    record.service = backend.labels(served).or_else(|| record.service.take());
    if let (Some(picked), Some(filters)) = (picked, backend.filters()) {
        if !filters.is_empty() {
            record.keep_head(&request);
        }
        filtered.apply(filters, &mut request, picked)?;
    }
    let elsewhere = Elsewhere::of(conversation, served, &backend, &request);
    let asks = authenticate_backend(conversation, &backend, &client, &mut request)?;
    if !asks.is_empty() {
        let asked = ask(conversation, asks, &client, &mut request, record);
        told = Some(Box::new(Box::pin(asked).await?.after(told)));
    }
    authorize_backend(conversation, &backend, &client, &request)?;
    let backend = match asked_host(conversation, &backend) {
        // Rare, and it may wait for the resolver.
        Some(_) => Box::pin(of_host(conversation, backend, request.host())).await?,
        None => backend,
    };

    filtered
        .mirrors
        .retain(|mirror| may_mirror(conversation, mirror, &client, &request));

    let tries = Tries::of(picked.map(|picked| &**picked.rule), request.headers());
    if tries.may_repeat() || !filtered.mirrors.is_empty() {
        record.body.keep();
    }
    // Apart, as the future has room for the request already.
    let outgoing = Rc::new(outgoing(asked, &backend, request)?);
    mirror(conversation, &filtered.mirrors, &outgoing, record);
    let head = (record.came.take(), outgoing.clone());
    let at = (record.since, record.changes);
    let mut admitted = Admitted::new(conversation, head, elsewhere, at);
    let answered = {
        let mut forwarded = pin!(forward(conversation, &backend, &outgoing, &tries, record));
        poll_fn(|cx| match admitted.poll_revoked(conversation, cx) {
            Poll::Ready(refusal) => Poll::Ready(Err(refusal)),
            Poll::Pending => forwarded.as_mut().poll(cx),
        })
        .await
    };
    let mut response = answered?;
    record.admitted_by_policy = Some(admitted);
    if asked.is_misunderstood(&response) {
        let cause = "the endpoint answered, but did not switch to the protocol that was asked for";
        let flag = RequestFlag::UpstreamProtocol;
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, flag, cause));
    }
    filtered.finish(response.headers_mut(), asked);
    counted.put(response.headers_mut());
    if let Some(told) = told {
        told.put(response.headers_mut());
    }
    if record.is_head() {
        // Some servers send a body all the same.
        *response.body_mut() = Content::Fixed(None);
    }
    let deadline = tries.deadline;
    Ok(Answered { response, deadline })
}

// --- accept

/// A place among the requests in flight.
fn accept(conversation: &Conversation) -> Result<Option<[Place; 2]>, Refusal> {
    let mesh = &conversation.worker.mesh;
    let Some(slot) = &conversation.destination.slot else {
        return Ok(None);
    };
    match mesh.bounds.request(&slot.in_flight) {
        Ok(places) => Ok(Some(places)),
        Err(full) => {
            mesh.metrics.requests_shed.inc();
            let (flag, cause) = match full {
                Full::All => (
                    RequestFlag::Overload,
                    "this waypoint has too many requests in flight",
                ),
                Full::Memory => (
                    RequestFlag::Overload,
                    "this waypoint has nearly used up its memory",
                ),
                Full::Service => (
                    RequestFlag::Overflow,
                    "this service has too many requests in flight in this waypoint",
                ),
            };
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, flag, cause))
        }
    }
}

// --- identify

/// Who asks, as policies see it.
pub(super) fn identify(conversation: &Conversation) -> Connection {
    authorize::connection_of(&conversation.client, &conversation.destination)
}

// --- normalise

/// One reading of the request, for everything that follows.
pub(super) fn normalise(conversation: &Conversation, parts: Parts) -> Result<Request, Refusal> {
    let seen = Seen {
        scheme: Scheme::Http,
        port: conversation.destination.port,
    };
    let counted = |refusal| {
        conversation.worker.mesh.metrics.malformed.inc();
        refusal
    };
    framing(&parts.headers).map_err(counted)?;
    Request::new(parts, seen).map_err(|refusal| counted(Refusal::bad_request(refusal.to_string())))
}

/// The length of a body is said once, and in a way that we understand (RFC 9112, sections 6.1 and 6.3).
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(coding) = headers.get(header::TRANSFER_ENCODING) else {
        return Ok(());
    };
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Refusal::bad_request(
            "the request has both Transfer-Encoding and Content-Length".to_owned(),
        ));
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    if codings > 1 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            RequestFlag::DownstreamProtocol,
            "the request has a transfer coding other than chunked",
        ));
    }
    Ok(())
}

// --- route

/// The rule that takes the request; `None`: the service has no routes, or the client named a workload.
fn route<'a>(
    conversation: &Conversation,
    served: Option<&'a Served>,
    request: &mut Request,
) -> Result<Option<Picked<'a>>, Refusal> {
    let destination = &conversation.destination;
    let Some(served) = served.filter(|_| destination.pinned.is_none()) else {
        return Ok(None);
    };
    let Some(port) = served.ports.get(&destination.port) else {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            RequestFlag::NoCluster,
            format!("the service has no port {} any more", destination.port),
        ));
    };
    let no_route = |cause| Refusal::new(StatusCode::NOT_FOUND, RequestFlag::NoRoute, cause);
    match port.table.routes(conversation.client.namespace()) {
        Routes::None => Ok(None),
        Routes::Http(table) => {
            if table.asks_sender() {
                let mesh = &conversation.worker.mesh;
                request.set_sender(Arc::new(conversation.client.sender(mesh)));
            }
            match table.pick(request) {
                Some(picked) => Ok(Some(picked)),
                None => Err(no_route(
                    "no rule of the service's routes takes this request",
                )),
            }
        }
        Routes::Tls(_) | Routes::Tcp(_) | Routes::OrderedTcp(_) => Err(no_route(
            "the service's routes are for connections, and this is an HTTP request",
        )),
    }
}

// --- authorize

pub(super) fn denied(authorize::Denied(why): authorize::Denied) -> Refusal {
    Refusal::denied(&why)
}

/// Whom to ask about the request.
fn external(
    conversation: &Conversation,
    served: Option<&Served>,
    client: &Connection,
    request: &Request,
) -> Asks {
    let mesh = &conversation.worker.mesh;
    authorize::external(mesh, &conversation.destination, served, client, request)
}

/// What another service that a route leads to asks of the request's tokens, and whom it has asked.
fn authenticate_backend(
    conversation: &Conversation,
    target: &Target<'_>,
    client: &Connection,
    request: &mut Request,
) -> Result<Asks, Refusal> {
    let mesh = &conversation.worker.mesh;
    match target {
        Target::Port {
            other: Some((slot, port)),
            ..
        } => {
            verify(mesh, &slot.load().tokens, request, Duration::ZERO)?;
            Ok(authorize::external_for_backend(
                mesh, slot, *port, client, request,
            ))
        }
        Target::Port { other: None, .. } | Target::Pinned { .. } => Ok(Asks::new()),
    }
}

/// The policies of the service and of the waypoint.
pub(super) fn authorize(
    conversation: &Conversation,
    served: Option<&Served>,
    client: &Connection,
    request: &Request,
) -> Result<(), Refusal> {
    let mesh = &conversation.worker.mesh;
    let destination = &conversation.destination;
    authorize::request(mesh, destination, served, client, request).map_err(denied)
}

/// The policies of another service that a route leads to, on the request as that service gets it.
fn authorize_backend(
    conversation: &Conversation,
    target: &Target<'_>,
    client: &Connection,
    request: &Request,
) -> Result<(), Refusal> {
    let mesh = &conversation.worker.mesh;
    match target {
        Target::Port {
            other: Some((slot, port)),
            ..
        } => authorize::request_for_backend(mesh, slot, *port, client, request).map_err(denied),
        Target::Port { other: None, .. } | Target::Pinned { .. } => Ok(()),
    }
}

// --- reply, record

/// The response, whose last byte ends the record.
fn reply(
    asked: Asked,
    mut record: Box<Record>,
    outcome: Result<Answered, Refusal>,
) -> Response<Answer> {
    let (mut response, deadline) = match outcome {
        Ok(Answered { response, deadline }) => (response, deadline),
        Err(refusal) => {
            record.body.cut();
            record.refused(refusal.flag, &refusal.cause);
            let grpc = record.protocol == RequestProtocol::Grpc && !refusal.wanted;
            let response = if grpc {
                refusal.into_grpc()
            } else {
                refusal.into_response()
            };
            (response, None)
        }
    };
    record.answered(response.status(), response.headers());
    *response.version_mut() = http::Version::HTTP_11;
    if upgrade::is_upgrade(&asked, &response) {
        return upgrade::join(asked, record, response);
    }
    response.map(|content| Answer::new(content, Some(record), deadline))
}

/// A request that the codec could not read; it has answered already.
pub(super) fn malformed(conversation: &Rc<Conversation>, error: &hyper::Error) {
    conversation.worker.mesh.metrics.malformed.inc();
    let (mut parts, ()) = HttpRequest::new(()).into_parts();
    parts.method = http::Method::from_bytes(b"-").unwrap_or_default();
    let mut record = Record::begin(conversation, &parts);
    let status = if error.is_parse_too_large() {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    } else {
        StatusCode::BAD_REQUEST
    };
    record.answered(status, &HeaderMap::new());
    record.broken(RequestFlag::DownstreamProtocol, error);
    record.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// It is moved when a request begins.
    #[test]
    fn a_request_in_flight_is_small() {
        let of_serve = size(|a: &'static Rc<Conversation>, b: HttpRequest<Incoming>| serve(a, b));
        assert!(of_serve <= 4096, "{of_serve}");
    }
}
