//! External authorizers: whoever policies with action CUSTOM name is asked about a request before DENY and ALLOW
//! policies are.
//!
//! ```text
//!   CUSTOM rules that match ─► each provider once ─► question (grpc, http) ─► its service, by the waypoint's own upstream
//!                                                        allow: headers change, go on     deny: its answer for the client
//!                                                        no answer, garbage, late: on, or the status for errors
//! ```

mod answer;
mod grpc;
mod http;

use std::{future::poll_fn, pin::Pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use ::http::{HeaderMap, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use hyper::body::Body as _;
use karst_model::{
    external::{AuthorizerProtocol, ExternalAuthorizer},
    protocol::AppProtocol,
};
use karst_policy::{Connection, RuleRef};
use karst_routing::request::Request;
use karst_telemetry::metrics::http::RequestFlag;
use tokio::time::{Instant, timeout_at};

pub(super) use self::answer::Told;
use self::answer::Verdict;
use super::{
    Conversation, RequestBody, Version,
    answer::{Answer, Content},
    record::Record,
    refusal::Refusal,
    send::Outgoing,
};
use crate::services::Ask;

/// Bytes of an authorizer's answer that are read.
const ANSWER_MAX: usize = 256 << 10;
/// How long a client may take to send the part of its body that authorizers see.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// Whom to ask about a request, and for which rule.
pub(crate) type Asks = Vec<(Arc<ExternalAuthorizer>, RuleRef)>;

/// Why nobody has answered in a way that means something. The authorizer's fault, or its configuration's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the service {0} is not known")]
    NoService(String),
    #[error("there is no endpoint: {0}")]
    NoEndpoint(String),
    #[error("no connection or answer: {0}")]
    Exchange(String),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer is longer than 256 KiB")]
    TooLong,
    #[error("the answer broke off")]
    BrokenOff,
    #[error("the answer is none: {0}")]
    Garbage(String),
}

/// The part of a request's body that authorizers see.
pub(super) struct SeenBody {
    pub(super) bytes: Bytes,
    /// There is more of it.
    pub(super) is_partial: bool,
}

/// Asks all of them, one after another; every one must allow.
pub(super) async fn ask(
    conversation: &Rc<Conversation>,
    asks: Asks,
    client: &Connection,
    request: &mut Request,
    record: &mut Record,
) -> Result<Told, Refusal> {
    let mut told = Told::default();
    for (authorizer, rule) in asks {
        let metrics = &conversation.worker.mesh.metrics;
        let body = match &authorizer.body {
            Some(wanted) => Some(seen_body(record, wanted.max_bytes, wanted.allow_partial).await?),
            None => None,
        };
        let question = Question {
            authorizer: &authorizer,
            client,
            request,
            body: body.as_ref(),
            dialled: conversation.destination.port,
        };
        match question.put(conversation).await {
            Ok(Verdict::Allow(changes)) => {
                let dropped = changes.apply(request, &mut told);
                if dropped > 0 {
                    metrics.external_headers_refused.inc_by(dropped);
                    tracing::debug!(provider = %authorizer.name, dropped, "an external authorizer may not set these headers");
                }
                told.reroute |= authorizer.clear_route_cache;
            }
            Ok(Verdict::Deny(denied)) => {
                metrics.external_denied.inc();
                let cause = format!(
                    "denied by external authorizer {}, asked by {rule}",
                    authorizer.name
                );
                return Err(denied.into_refusal(cause));
            }
            Err(why) => {
                metrics.external_failed.inc();
                let cause = format!(
                    "external authorizer {}, asked by {rule}: {why}",
                    authorizer.name
                );
                if !authorizer.fail_open {
                    let status = StatusCode::from_u16(authorizer.status_on_error);
                    let status = status.unwrap_or(StatusCode::FORBIDDEN);
                    return Err(Refusal::new(status, RequestFlag::Unauthorized, cause));
                }
                tracing::debug!(cause, "a request goes on, as the provider fails open");
            }
        }
    }
    Ok(told)
}

/// Waits for as much of the body as authorizers see.
async fn seen_body(record: &Record, max: u32, allow_partial: bool) -> Result<SeenBody, Refusal> {
    let deadline = Instant::now() + BODY_PATIENCE;
    let peeked = timeout_at(deadline, record.body.peek(max as usize)).await;
    let (bytes, ended) = match peeked {
        Ok(Ok(peeked)) => peeked,
        Ok(Err(error)) => {
            let mut refusal =
                Refusal::bad_request(format!("the request's body broke off: {error}"));
            refusal.flag = RequestFlag::DownstreamTermination;
            return Err(refusal);
        }
        Err(_late) => {
            let cause = "the client did not send the body that an external authorizer is to see";
            let flag = RequestFlag::DownstreamProtocol;
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, flag, cause));
        }
    };
    let is_partial = !ended || bytes.len() > max as usize;
    if is_partial && !allow_partial {
        let cause = format!(
            "the body is longer than the {max} bytes that an external authorizer is to see"
        );
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            RequestFlag::Unauthorized,
            cause,
        ));
    }
    Ok(SeenBody {
        bytes: bytes.slice(..bytes.len().min(max as usize)),
        is_partial,
    })
}

/// One question about one request.
pub(super) struct Question<'a> {
    pub(super) authorizer: &'a ExternalAuthorizer,
    pub(super) client: &'a Connection,
    pub(super) request: &'a Request,
    pub(super) body: Option<&'a SeenBody>,
    /// The service's port that the client dialled.
    pub(super) dialled: u16,
}

impl Question<'_> {
    async fn put(&self, conversation: &Rc<Conversation>) -> Result<Verdict, Unanswered> {
        let authorizer = self.authorizer;
        let deadline = Instant::now() + authorizer.timeout;
        match timeout_at(deadline, self.exchange(conversation, deadline)).await {
            Ok(answered) => answered,
            Err(_late) => Err(Unanswered::Late(authorizer.timeout)),
        }
    }

    async fn exchange(
        &self,
        conversation: &Rc<Conversation>,
        deadline: Instant,
    ) -> Result<Verdict, Unanswered> {
        let authorizer = self.authorizer;
        let slot = conversation.worker.mesh.services.get(&authorizer.service);
        let unknown =
            || Unanswered::NoService(format!("{}:{}", authorizer.service, authorizer.port));
        let served = slot.ok_or_else(unknown)?.load().clone();
        let port = served
            .ports
            .get(&authorizer.port)
            .cloned()
            .ok_or_else(unknown)?;
        let no_endpoint = |error: &dyn std::fmt::Display| Unanswered::NoEndpoint(error.to_string());
        let cluster = port.cluster(None).map_err(|error| no_endpoint(&error))?;
        let member = cluster.choose(&Ask::default(), &mut rand::rng());
        let member = member.map_err(|error| no_endpoint(&error))?;
        let (outgoing, body) = match &authorizer.protocol {
            AuthorizerProtocol::Grpc => grpc::question(self),
            AuthorizerProtocol::Http(http) => {
                let version = match port.app_protocol {
                    AppProtocol::Http2 | AppProtocol::Grpc => Version::Http2,
                    _ => Version::Http1,
                };
                http::question(self, http, version)
            }
        }
        .map_err(|error| Unanswered::Exchange(error.to_string()))?;
        let to = (&member.endpoint, Some(cluster));
        let sent = outgoing
            .send(conversation, to, (body, None), Some(deadline))
            .await;
        let response = sent.map_err(|failed| Unanswered::Exchange(failed.cause().to_owned()))?;
        let (head, body, trailers) = read(response).await?;
        match &authorizer.protocol {
            AuthorizerProtocol::Grpc => grpc::verdict(&head, body, trailers.as_ref()),
            AuthorizerProtocol::Http(http) => http::verdict(http, &head, body),
        }
    }
}

/// A question on its way.
type Put = (Outgoing, RequestBody);

async fn read(
    response: Response<Content>,
) -> Result<(::http::response::Parts, Bytes, Option<HeaderMap>), Unanswered> {
    let (head, content) = response.into_parts();
    let mut answer = Answer::new(content, None, None);
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut answer).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending => Poll::Pending,
        })
        .await;
        let Some(frame) = frame else {
            return Ok((head, bytes.freeze(), trailers));
        };
        let frame = frame.map_err(|_broken| Unanswered::BrokenOff)?;
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_MAX => return Err(Unanswered::TooLong),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
}
