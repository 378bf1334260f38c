//! The life of a request, in order:
//!
//! ```text
//!   accept ─ identify ─ normalise ─ route ─ authenticate ─ authorize ─ limit ─ filter
//!          ─┬─ pick endpoint ─ send ─ retry ─┐
//!           └──────────────◄─────────────────┘─ reply ─ record
//! ```
//!
//! Each phase is a function here; each may end the request with a [`Refusal`]. What comes later sees only what the
//! phases before it left.

use std::{rc::Rc, sync::Arc};

use http::{HeaderMap, Response, StatusCode, header, request::Parts};
use hyper::{Request as HttpRequest, body::Incoming};
use karst_model::{protocol::AppProtocol, route::Backend};
use karst_policy::Connection;
use karst_routing::{
    filter::{CorsOutcome, Filter, HeaderChanges, Mirror, cors::put_into},
    request::{Form, Request, Scheme, Seen, strip_hop_by_hop},
    retry::{self, Attempt, Body, Failure, Retry},
    table::{HttpRoute, Picked, RouteBackend, Routes},
};
use karst_telemetry::metrics::{
    http::{RequestFlag, RequestProtocol},
    tcp::ServiceLabels,
};
use rand::{Rng as _, RngExt as _};
use tokio::time::{Instant, sleep};

use super::{
    Conversation, Version,
    answer::{Answer, Content},
    body::ClientBody,
    mirror::{self, MirrorCopy},
    record::Record,
    refusal::Refusal,
    send::{Failed, Outgoing},
    upgrade::{self, Asked},
};
use crate::{
    authorize,
    bounds::{Full, Place},
    services::{Endpoint, Port, Served, Slot},
};

/// Serves one request.
pub(super) async fn serve(
    conversation: &Rc<Conversation>,
    mut request: HttpRequest<Incoming>,
) -> Response<Answer> {
    let asked = Asked::take(&mut request);
    let (parts, body) = request.into_parts();
    let mut record = Record::begin(conversation, &parts);
    if !matches!(asked, Asked::Nothing) {
        record.original = Some(Box::new(parts.clone()));
    }
    // Handed over by reference: an argument would be kept twice for as long as the request lives.
    let mut arrived = Some((parts, body));
    let outcome = live(conversation, &asked, &mut arrived, &mut record).await;
    reply(asked, record, outcome)
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
        .ok_or_else(|| internal("a request was taken twice".to_owned()))?;
    let served = conversation
        .destination
        .slot
        .as_ref()
        .map(|slot| slot.load().clone());
    let served = served.as_deref();
    record.service = served.map(|served| served.labels.clone());
    record.places = accept(conversation)?;
    let client = identify(conversation);
    let mut request = normalise(conversation, parts)?;
    let picked = route(conversation, served, &request)?;
    record.route = picked.map(|picked| named(picked.rule));
    authenticate(&request)?;
    authorize(conversation, served, &client, &request)?;
    limit(conversation)?;
    let mut filtered = Filtered::default();
    if let Some(picked) = picked {
        filtered.apply(&picked.rule.filters, &mut request, picked)?;
    }
    let backend = pick_backend(conversation, served, picked)?;
    record.service = backend.labels(served).or_else(|| record.service.take());
    if let (Some(picked), Some(filters)) = (picked, backend.filters()) {
        filtered.apply(filters, &mut request, picked)?;
    }
    authorize_backend(conversation, &backend, &client, &request)?;

    filtered
        .mirrors
        .retain(|mirror| may_mirror(conversation, mirror, &client, &request));

    let policy = picked.and_then(|picked| picked.rule.retry.as_ref());
    let keep = policy.is_some() || !filtered.mirrors.is_empty();
    record.body = ClientBody::new(body, keep);
    let outgoing = outgoing(asked, &backend, request)?;
    mirror(conversation, &filtered.mirrors, &outgoing, record);

    let timeouts = picked
        .map(|picked| picked.rule.timeouts)
        .unwrap_or_default();
    let deadline = timeouts.request.map(|limit| Instant::now() + limit);
    let mut avoid = Vec::new();
    loop {
        record.tries += 1;
        let endpoint = pick_endpoint(&backend, &avoid)?;
        record.in_flight = Some(endpoint.start());
        let this_try = timeouts.backend_request.map(|limit| Instant::now() + limit);
        let until = deadline.into_iter().chain(this_try).min();
        let gate = outgoing.gate();
        let body = record.body.next_try(gate.clone());
        let sent = outgoing
            .send(conversation, &endpoint, (body, gate), until)
            .await;
        let failed = match sent {
            Ok(mut response) => {
                let status = Failure::Status(response.status().as_u16());
                match may_retry(policy, record, status, deadline) {
                    Retry::After(pause) => Failed::status(pause),
                    Retry::Stop(_) => {
                        filtered.finish(response.headers_mut(), asked);
                        if record.is_head() {
                            // Some servers send a body all the same.
                            *response.body_mut() = Content::Fixed(None);
                        }
                        return Ok(Answered { response, deadline });
                    }
                }
            }
            Err(failed) => failed,
        };
        let pause = match failed.pause {
            Some(pause) => pause,
            None => match may_retry(policy, record, failed.failure, deadline) {
                Retry::After(pause) => pause,
                Retry::Stop(why) => return Err(failed.into_refusal(why, record.tries)),
            },
        };
        conversation.worker.mesh.metrics.retries.inc();
        avoid.push(endpoint.id);
        if !pause.is_zero() {
            Box::pin(sleep(pause)).await;
        }
    }
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
fn identify(conversation: &Conversation) -> Connection {
    authorize::connection_of(&conversation.client, &conversation.destination)
}

// --- normalise

fn bad_request(cause: String) -> Refusal {
    Refusal::new(
        StatusCode::BAD_REQUEST,
        RequestFlag::DownstreamProtocol,
        cause,
    )
}

/// One reading of the request, for everything that follows.
fn normalise(conversation: &Conversation, parts: Parts) -> Result<Request, Refusal> {
    let seen = Seen {
        scheme: Scheme::Http,
        port: conversation.destination.port,
    };
    let counted = |refusal| {
        conversation.worker.mesh.metrics.malformed.inc();
        refusal
    };
    framing(&parts.headers).map_err(counted)?;
    Request::new(parts, seen).map_err(|refusal| counted(bad_request(refusal.to_string())))
}

/// The length of a body is said once, and in a way that we understand (RFC 9112, sections 6.1 and 6.3).
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(coding) = headers.get(header::TRANSFER_ENCODING) else {
        return Ok(());
    };
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(bad_request(
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
    request: &Request,
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
        Routes::Http(table) => match table.pick(request) {
            Some(picked) => Ok(Some(picked)),
            None => Err(no_route(
                "no rule of the service's routes takes this request",
            )),
        },
        Routes::Tls(_) | Routes::Tcp(_) => Err(no_route(
            "the service's routes are for connections, and this is an HTTP request",
        )),
    }
}

/// A rule as the access log names it.
fn named(rule: &HttpRoute) -> Arc<str> {
    match &rule.name {
        Some(name) => format!("{}/{name}", rule.route.key).into(),
        None => format!("{}/{}", rule.route.key, rule.index).into(),
    }
}

// --- authenticate

/// Tokens of the request's user: RequestAuthentication comes here.
fn authenticate(_request: &Request) -> Result<(), Refusal> {
    Ok(())
}

// --- authorize

fn denied(authorize::Denied(why): authorize::Denied) -> Refusal {
    let cause = format!("RBAC: access denied: {why}");
    Refusal::new(StatusCode::FORBIDDEN, RequestFlag::None, cause)
}

/// The policies of the service and of the waypoint.
fn authorize(
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

// --- limit

/// Rates per client and service come here; what is in flight was bounded at the door.
fn limit(_conversation: &Conversation) -> Result<(), Refusal> {
    Ok(())
}

// --- filter

/// What the filters leave for later.
#[derive(Default)]
struct Filtered<'a> {
    response: Vec<&'a HeaderChanges>,
    mirrors: Vec<&'a Mirror>,
    cors: Option<HeaderMap>,
}

impl<'a> Filtered<'a> {
    /// Applies filters in their order; one that answers ends the request.
    fn apply(
        &mut self,
        filters: &'a [Filter],
        request: &mut Request,
        picked: Picked<'a>,
    ) -> Result<(), Refusal> {
        for filter in filters {
            let unwritable = |error: karst_routing::request::Unwritable| {
                bad_request(format!("the route cannot be applied: {error}"))
            };
            match filter {
                Filter::RequestHeaders(changes) => changes.apply_to_request(request),
                Filter::ResponseHeaders(changes) => self.response.push(changes),
                Filter::Rewrite(rewrite) => {
                    rewrite.apply(request, picked.matched).map_err(unwritable)?;
                }
                Filter::Mirror(mirror) => {
                    if mirror.takes(rand::rng().next_u64()) {
                        self.mirrors.push(mirror);
                    }
                }
                Filter::Cors(cors) => match cors.handle(request) {
                    CorsOutcome::NotCors => {}
                    CorsOutcome::Actual(headers) => self.cors = Some(headers),
                    CorsOutcome::Preflight(status, headers) => {
                        return Err(self.answer(status, headers, ""));
                    }
                },
                Filter::Redirect(redirect) => {
                    let (status, location) = redirect
                        .answer(request, picked.matched)
                        .map_err(unwritable)?;
                    let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
                    return Err(self.answer(status, headers, ""));
                }
                Filter::Direct(direct) => {
                    let status = StatusCode::from_u16(direct.status)
                        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    let answer = self.answer(status, HeaderMap::new(), &direct.body);
                    return Err(Refusal {
                        cause: direct.reason.to_string().into(),
                        ..answer
                    });
                }
            }
        }
        Ok(())
    }

    fn answer(&self, status: StatusCode, mut headers: HeaderMap, body: &str) -> Refusal {
        for changes in &self.response {
            changes.apply(&mut headers);
        }
        Refusal::wanted(status, headers, body.to_owned().into())
    }

    /// Changes the head of an endpoint's response.
    fn finish(&mut self, headers: &mut HeaderMap, asked: &Asked) {
        strip_hop_by_hop(headers, asked.keep());
        if let Some(cors) = self.cors.take() {
            put_into(headers, &cors);
        }
        for changes in &self.response {
            changes.apply(headers);
        }
    }
}

// --- pick endpoint

/// Where a request goes, before one of its endpoints is chosen.
enum Target<'a> {
    /// The client named the workload.
    Pinned {
        endpoint: &'a Arc<Endpoint>,
        port: Option<Arc<Port>>,
    },
    Port {
        service: Arc<ServiceLabels>,
        port: Arc<Port>,
        backend: Option<&'a RouteBackend>,
        /// The service and its port, where they are not those that the client named.
        other: Option<(Arc<Slot>, u16)>,
    },
}

impl<'a> Target<'a> {
    fn labels(&self, served: Option<&Served>) -> Option<Arc<ServiceLabels>> {
        match self {
            Self::Pinned { .. } => served.map(|served| served.labels.clone()),
            Self::Port { service, .. } => Some(service.clone()),
        }
    }

    fn filters(&self) -> Option<&'a [Filter]> {
        match self {
            Self::Pinned { .. } => None,
            Self::Port { backend, .. } => backend.map(|backend| &*backend.filters),
        }
    }

    fn app_protocol(&self) -> AppProtocol {
        match self {
            Self::Pinned { port, .. } => port.as_ref().map(|port| port.app_protocol),
            Self::Port { port, .. } => Some(port.app_protocol),
        }
        .unwrap_or_default()
    }
}

fn internal(cause: String) -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        RequestFlag::NoCluster,
        cause,
    )
}

/// The rule's backend that this request falls to, or the service itself.
fn pick_backend<'a>(
    conversation: &'a Conversation,
    served: Option<&Served>,
    picked: Option<Picked<'a>>,
) -> Result<Target<'a>, Refusal> {
    let destination = &conversation.destination;
    let own_port = served.and_then(|served| served.ports.get(&destination.port).cloned());
    if let Some(endpoint) = &destination.pinned {
        return Ok(Target::Pinned {
            endpoint,
            port: own_port,
        });
    }
    let Some(picked) = picked else {
        let found = served.map(|served| served.labels.clone()).zip(own_port);
        let (service, port) = found.ok_or_else(|| internal("the service is gone".to_owned()))?;
        return Ok(Target::Port {
            service,
            port,
            backend: None,
            other: None,
        });
    };
    let index = picked.rule.weights.pick(rand::rng().next_u64());
    let backend = index.and_then(|index| picked.rule.backends.get(index));
    let backend = backend
        .ok_or_else(|| internal("the rule has no backend with a weight above zero".to_owned()))?;
    let found = service_port(conversation, &backend.backend).map_err(internal)?;
    let own = destination.slot.as_ref().map(|slot| &slot.key);
    let is_other = own != Some(&found.slot.key);
    Ok(Target::Port {
        service: found.labels,
        port: found.port,
        backend: Some(backend),
        other: is_other.then_some((found.slot, found.number)),
    })
}

/// The port that a backend of a route names.
struct Found {
    slot: Arc<Slot>,
    labels: Arc<ServiceLabels>,
    port: Arc<Port>,
    number: u16,
}

/// The error says why there is none.
fn service_port(conversation: &Conversation, backend: &Backend) -> Result<Found, String> {
    match backend {
        Backend::Invalid(why) => Err(why.to_string()),
        Backend::Service { service, port } => {
            let slot = conversation.worker.mesh.services.get(service);
            let slot = slot.ok_or_else(|| format!("backend service {service} does not exist"))?;
            let served = slot.load();
            let found = served.ports.get(port).cloned();
            let found =
                found.ok_or_else(|| format!("backend service {service} has no port {port}"))?;
            Ok(Found {
                labels: served.labels.clone(),
                port: found,
                number: *port,
                slot: slot.clone(),
            })
        }
    }
}

fn pick_endpoint(target: &Target<'_>, avoid: &[u64]) -> Result<Arc<Endpoint>, Refusal> {
    match target {
        Target::Pinned { endpoint, .. } => Ok(Arc::clone(endpoint)),
        Target::Port { port, .. } => port.choose(avoid, &mut rand::rng()).map_err(|error| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                RequestFlag::NoHealthyUpstream,
                error.to_string(),
            )
        }),
    }
}

// --- send

/// The head as the endpoint gets it.
fn outgoing(asked: &Asked, target: &Target<'_>, mut request: Request) -> Result<Outgoing, Refusal> {
    let client_speaks_http2 = request.version() == http::Version::HTTP_2;
    let version = match target.app_protocol() {
        _ if asked.is_http1_upgrade() => Version::Http1,
        AppProtocol::Http2 | AppProtocol::Grpc => Version::Http2,
        _ if client_speaks_http2 => Version::Http2,
        _ => Version::Http1,
    };
    if request.authority().is_empty()
        && let Target::Port { service, .. } = target
    {
        // HTTP/1.0 without a host.
        request
            .set_authority(&service.host)
            .map_err(|error| internal(error.to_string()))?;
    }
    strip_hop_by_hop(request.headers_mut(), asked.keep());
    let form = match version {
        Version::Http1 => Form::Origin,
        Version::Http2 => Form::Absolute,
    };
    let parts = request
        .into_parts(form)
        .map_err(|error| bad_request(error.to_string()))?;
    Ok(Outgoing::new(parts, version, client_speaks_http2))
}

/// A copy is a request like any other to the service that gets it.
fn may_mirror(
    conversation: &Conversation,
    mirror: &Mirror,
    client: &Connection,
    request: &Request,
) -> bool {
    let mesh = &conversation.worker.mesh;
    let allowed = service_port(conversation, &mirror.backend).and_then(|found| {
        authorize::request_for_backend(mesh, &found.slot, found.number, client, request)
            .map_err(|authorize::Denied(why)| why)
    });
    if let Err(why) = &allowed {
        tracing::debug!(why, "a request is not mirrored");
        mesh.metrics.mirrors_dropped.inc();
    }
    allowed.is_ok()
}

/// Copies for other backends: at once, or with a body when it is complete.
fn mirror(
    conversation: &Rc<Conversation>,
    mirrors: &[&Mirror],
    outgoing: &Outgoing,
    record: &mut Record,
) {
    let mut copies = Vec::new();
    for mirror in mirrors {
        match service_port(conversation, &mirror.backend) {
            Ok(found) => copies.push(MirrorCopy::new(outgoing, found.port)),
            Err(why) => {
                tracing::debug!(why, "a mirror's backend cannot be used");
                conversation.worker.mesh.metrics.mirrors_dropped.inc();
            }
        }
    }
    match record.body {
        ClientBody::Empty => mirror::send_all(conversation, copies, &record.body),
        ClientBody::Source(_) => record.mirrors = copies,
    }
}

// --- retry

fn may_retry(
    policy: Option<&karst_model::route::RetryPolicy>,
    record: &Record,
    failure: Failure,
    deadline: Option<Instant>,
) -> Retry {
    if policy.is_none() && matches!(failure, Failure::Status(_)) {
        return Retry::Stop(retry::Why::NotRetriable);
    }
    let attempt = Attempt {
        number: record.tries,
        failure,
        body: if record.body.is_replayable() {
            Body::Replayable
        } else {
            Body::Gone
        },
        remaining: deadline.map(|at| at.saturating_duration_since(Instant::now())),
    };
    retry::decide(policy, &attempt, rand::rng().random())
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

/// Completes when policy does not allow a request any more that goes on after its response.
pub(super) async fn revoked(conversation: &Conversation, original: &Parts) -> Refusal {
    let slot = conversation.destination.slot.as_ref();
    let Some(mut changes) = slot.map(|slot| slot.changes()) else {
        return std::future::pending().await;
    };
    while changes.changed().await.is_ok() {
        let served = slot.map(|slot| slot.load().clone());
        let client = identify(conversation);
        let again = normalise(conversation, original.clone())
            .and_then(|request| authorize(conversation, served.as_deref(), &client, &request));
        if let Err(refusal) = again {
            return refusal;
        }
    }
    std::future::pending().await
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
