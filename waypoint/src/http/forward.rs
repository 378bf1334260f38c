//! Sending a request to an endpoint, and again to another where that is safe.

use std::rc::Rc;

use http::{HeaderMap, Response, StatusCode, header};
use karst_model::{
    protocol::AppProtocol,
    route::{RetryPolicy, Timeouts},
    traffic::{Http2Upgrade, SessionPersistence},
};
use karst_policy::Connection;
use karst_routing::{
    deadline,
    filter::Mirror,
    request::{Form, Request, strip_hop_by_hop},
    retry::{self, Attempt, Body, Failure, Retry},
    table::HttpRoute,
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use super::{
    Conversation, Version,
    answer::Content,
    body::ClientBody,
    judge::{self, may_try_again},
    mirror::{self, MirrorCopy},
    record::Record,
    refusal::{Refusal, grpc_status_of},
    send::{Failed, Outgoing},
    session::Sticky,
    stick::{Key, key_of},
    target::{Target, pick_endpoint, service_port, subset_of},
    upgrade::Asked,
};
use crate::{
    authorize,
    services::{Ask, Member, Taken},
};

/// How often a request may be tried, and for how long.
pub(super) struct Tries<'a> {
    policy: Option<&'a RetryPolicy>,
    timeouts: Timeouts,
    session: Option<&'a SessionPersistence>,
    /// When the whole request must be over, from now on.
    pub(super) deadline: Option<Instant>,
    /// The caller has set it, not the route.
    deadline_is_callers: bool,
}

impl<'a> Tries<'a> {
    /// `asked`: the headers in which a caller says how long it waits itself.
    pub(super) fn of(rule: Option<&'a HttpRoute>, asked: &HeaderMap) -> Self {
        let timeouts = rule.map(|rule| rule.timeouts).unwrap_or_default();
        let whole = deadline::shorter(timeouts.request, deadline::of(asked));
        let deadline_is_callers = whole != timeouts.request;
        Self {
            policy: rule.and_then(|rule| rule.retry.as_ref()),
            session: rule.and_then(|rule| rule.session.as_ref()),
            timeouts,
            deadline: whole.map(|limit| Instant::now() + limit),
            deadline_is_callers,
        }
    }

    /// Whether a status may be reason for another try, so that the body is worth keeping.
    pub(super) fn may_repeat(&self) -> bool {
        self.policy.is_some()
    }

    /// Whether somebody has written down what is tried again.
    pub(super) fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    /// The caller itself did not want to wait any longer: that says nothing about an endpoint.
    pub(super) fn caller_gave_up(&self) -> bool {
        self.deadline_is_callers && self.is_over()
    }

    fn may_retry(&self, record: &Record, failure: Failure) -> Retry {
        if self.policy.is_none() && matches!(failure, Failure::Status(_) | Failure::Grpc(_)) {
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
            remaining: self
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now())),
        };
        retry::decide(self.policy, &attempt, rand::rng().random())
    }
}

/// Sends the request until an endpoint has answered or no further try is allowed.
pub(super) async fn forward(
    conversation: &Rc<Conversation>,
    target: &Target<'_>,
    outgoing: &Outgoing,
    tries: &Tries<'_>,
    record: &mut Record,
) -> Result<Response<Content>, Refusal> {
    let cluster = target.cluster()?;
    record.admitted = judge::admit(cluster)?;
    let mut key = match cluster {
        Some(cluster) => key_of(cluster, outgoing, &conversation.client),
        None => Key::default(),
    };
    let session = tries.session.or_else(|| {
        let policy = cluster.map(|cluster| &cluster.policy);
        policy.and_then(|policy| policy.session.as_ref())
    });
    let session = Sticky::of(session, outgoing);
    let mut avoid = Vec::new();
    // The place of a try that is not the first.
    let mut again: Option<Taken> = None;
    loop {
        record.tries += 1;
        let ask = Ask {
            avoid: &avoid,
            elsewhere: !avoid.is_empty()
                && tries.policy.is_some_and(|policy| policy.remote_localities),
            hash: key.hash,
            dialled: conversation.destination.dialled,
            session: session.endpoint(),
        };
        let (endpoint, member) = pick_endpoint(target, cluster, &ask)?;
        record.in_flight = Some(endpoint.start());
        let began = cluster
            .is_some_and(|cluster| cluster.is_timed())
            .then(Instant::now);
        let limit = tries.timeouts.backend_request;
        let this_try = limit.map(|limit| Instant::now() + limit);
        let until = tries.deadline.into_iter().chain(this_try).min();
        let gate = outgoing.gate();
        let body = record.body.next_try(gate.clone());
        let sent = outgoing
            .send(conversation, (&endpoint, cluster), (body, gate), until)
            .await;
        judge::observe((cluster, member.as_ref()), began, tries, &sent);
        drop(again.take());
        let failed = match sent {
            Ok(response) => match tries.may_retry(record, status_of(&response)) {
                Retry::After(pause) => match Box::pin(may_try_again(cluster, tries)).await {
                    Some(taken) => {
                        again = taken;
                        Failed::status(pause)
                    }
                    None => return Ok(answered(response, &mut key, &session, member.as_ref())),
                },
                Retry::Stop(_) => {
                    return Ok(answered(response, &mut key, &session, member.as_ref()));
                }
            },
            Err(failed) => failed,
        };
        let pause = match failed.pause {
            Some(pause) => pause,
            None if failed.is_overflow() => {
                return Err(failed.into_refusal(retry::Why::NotRetriable, record.tries));
            }
            None => match tries.may_retry(record, failed.failure) {
                Retry::After(pause) => {
                    match Box::pin(may_try_again(cluster, tries)).await {
                        Some(taken) => again = taken,
                        None => return Err(failed.out_of_budget()),
                    }
                    pause
                }
                Retry::Stop(why) => return Err(failed.into_refusal(why, record.tries)),
            },
        };
        conversation.worker.mesh.metrics.retries.inc();
        if tries
            .policy
            .is_none_or(|policy| policy.avoid_previous || policy.remote_localities)
        {
            avoid.push(endpoint.id);
        }
        if !pause.is_zero() {
            Box::pin(sleep(pause)).await;
        }
    }
}

fn status_of(response: &Response<Content>) -> Failure {
    // A gRPC server that did not take the request up says so at once.
    let grpc = grpc_status_of(response.headers()).and_then(|status| u8::try_from(status).ok());
    match grpc {
        Some(status) if status != 0 && response.status() == StatusCode::OK => Failure::Grpc(status),
        _ => Failure::Status(response.status().as_u16()),
    }
}

/// A client that had no cookie gets the one that its request was hashed by.
fn answered(
    mut response: Response<Content>,
    key: &mut Key,
    session: &Sticky<'_>,
    member: Option<&Member>,
) -> Response<Content> {
    session.tell(member, response.headers_mut());
    if let Some(cookie) = key.set_cookie.take() {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// The head as the endpoint gets it.
pub(super) fn outgoing(
    asked: &Asked,
    target: &Target<'_>,
    mut request: Request,
) -> Result<Outgoing, Refusal> {
    let cluster = target.cluster().ok().flatten();
    let upgrade = cluster.map_or(Http2Upgrade::Default, |cluster| {
        cluster.policy.connections.upgrade
    });
    let client_speaks_http2 = request.version() == http::Version::HTTP_2;
    let version = match target.app_protocol() {
        _ if asked.is_http1_upgrade() => Version::Http1,
        AppProtocol::Http2 | AppProtocol::Grpc => Version::Http2,
        _ if upgrade == Http2Upgrade::Upgrade => Version::Http2,
        _ if upgrade == Http2Upgrade::Never => Version::Http1,
        // As Istio has it: who declares HTTP speaks HTTP/1.1. Only a server of HTTP/2 can answer gRPC, whatever is declared.
        AppProtocol::Http11 if !is_grpc(request.headers()) => Version::Http1,
        _ if client_speaks_http2 => Version::Http2,
        _ => Version::Http1,
    };
    if request.authority().is_empty()
        && let Target::Port { service, .. } = target
    {
        // HTTP/1.0 without a host.
        request
            .set_authority(&service.host)
            .map_err(|error| Refusal::internal(error.to_string()))?;
    }
    strip_hop_by_hop(request.headers_mut(), asked.keep());
    let form = match version {
        Version::Http1 => Form::Origin,
        Version::Http2 => Form::Absolute,
    };
    let mut parts = request
        .into_parts(form)
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    asked.translate(&mut parts, version);
    Ok(Outgoing::new(parts, version, client_speaks_http2))
}

/// gRPC, and not what browsers speak in its place, which needs no HTTP/2.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(|kind| kind.as_bytes());
    let after = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    after.is_some_and(|after| !after.starts_with(b"-web"))
}

/// A copy is a request like any other to the service that gets it.
pub(super) fn may_mirror(
    conversation: &Conversation,
    mirror: &Mirror,
    client: &Connection,
    request: &Request,
) -> bool {
    let mesh = &conversation.worker.mesh;
    let allowed = service_port(conversation, &mirror.backend).and_then(|found| {
        let (slot, port) = (&found.slot, found.number);
        if !authorize::external_for_backend(mesh, slot, port, client, request).is_empty() {
            return Err("nobody is asked about a copy".to_owned());
        }
        authorize::request_for_backend(mesh, slot, port, client, request)
            .map_err(|authorize::Denied(why)| why)
    });
    if let Err(why) = &allowed {
        tracing::debug!(why, "a request is not mirrored");
        mesh.metrics.mirrors_dropped.inc();
    }
    allowed.is_ok()
}

/// Copies for other backends: at once, or with a body when it is complete.
pub(super) fn mirror(
    conversation: &Rc<Conversation>,
    mirrors: &[&Mirror],
    outgoing: &Outgoing,
    record: &mut Record,
) {
    let mut copies = Vec::new();
    for mirror in mirrors {
        match service_port(conversation, &mirror.backend) {
            Ok(found) => {
                let subset = subset_of(&mirror.backend).cloned();
                copies.push(MirrorCopy::new(
                    &outgoing.for_mirror(mirror),
                    found.port,
                    subset,
                ));
            }
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
