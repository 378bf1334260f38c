//! One try: the request to one endpoint, and its response or what went wrong.

use std::{
    error::Error,
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri, header,
    request::Parts,
    uri::{Authority, Scheme},
};
use hyper::client::conn::TrySendError;
use karst_routing::{
    deadline,
    filter::Mirror,
    retry::{Failure, Why},
};
use karst_runtime::supervise;
use karst_telemetry::{error_chain::Chain, metrics::http::RequestFlag};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Conversation, RequestBody, Version,
    answer::{Content, is_of_client},
    body::Gate,
    refusal::Refusal,
};
use crate::{
    error::ConnectError,
    services::{Cluster, Endpoint},
};

/// How long an endpoint may take to say 100 Continue before the body is sent all the same.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// A request as it goes out, for any number of tries.
#[derive(Clone)]
pub(crate) struct Outgoing {
    parts: Parts,
    version: Version,
}

/// A try without a response that the client should get.
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Decided already: try again after this.
    pub(super) pause: Option<Duration>,
    status: StatusCode,
    flag: RequestFlag,
    cause: String,
}

impl Failed {
    /// A response that is tried again.
    pub(super) fn status(pause: Duration) -> Self {
        Self {
            failure: Failure::Reset,
            pause: Some(pause),
            status: StatusCode::BAD_GATEWAY,
            flag: RequestFlag::None,
            cause: String::new(),
        }
    }

    /// A limit was reached before the endpoint was asked: no other try helps, and the endpoint is not to blame.
    pub(super) fn is_overflow(&self) -> bool {
        self.flag == RequestFlag::Overflow
    }

    /// The endpoint is to blame, or the way to it.
    pub(super) fn is_of_endpoint(&self) -> bool {
        !matches!(
            self.flag,
            RequestFlag::Overflow | RequestFlag::DownstreamTermination
        )
    }

    /// What went wrong.
    pub(super) fn cause(&self) -> &str {
        &self.cause
    }

    /// It is not tried again because as many retries as may be are under way.
    pub(super) fn out_of_budget(mut self) -> Refusal {
        self.cause
            .push_str(", and as many requests as may be are being tried again");
        Refusal::new(self.status, self.flag, self.cause)
    }

    pub(super) fn into_refusal(self, why: Why, tries: u32) -> Refusal {
        let flag = match why {
            Why::Exhausted if tries > 1 && self.flag == RequestFlag::None => {
                RequestFlag::RetryLimit
            }
            _ => self.flag,
        };
        Refusal::new(self.status, flag, self.cause)
    }
}

impl Outgoing {
    pub(super) fn new(mut parts: Parts, version: Version, from_http2: bool) -> Self {
        if version == Version::Http1 {
            parts.version = http::Version::HTTP_11;
            if from_http2 {
                join_cookies(&mut parts);
            }
        } else {
            parts.version = http::Version::HTTP_2;
            // The codec answers it when the body is read.
            parts.headers.remove(header::EXPECT);
        }
        Self { parts, version }
    }

    /// The same request for an endpoint that speaks another version.
    pub(super) fn speaking(&self, version: Version) -> Self {
        let mut parts = self.parts.clone();
        match (self.version, version) {
            (Version::Http1, Version::Http2) => {
                parts.uri = absolute(&parts).unwrap_or_default();
                parts.headers.remove(header::HOST);
            }
            (Version::Http2, Version::Http1) => {
                let host = parts.uri.authority().map(Authority::as_str);
                if let Some(Ok(host)) = host.map(HeaderValue::from_str) {
                    parts.headers.insert(header::HOST, host);
                }
                parts.uri = parts
                    .uri
                    .path_and_query()
                    .cloned()
                    .map(Uri::from)
                    .unwrap_or_default();
            }
            _ => {}
        }
        Self::new(parts, version, self.version == Version::Http2)
    }

    /// The head as it goes out, to be decided on again.
    pub(super) fn head(&self) -> Parts {
        self.parts.clone()
    }

    pub(super) fn headers(&self) -> &http::HeaderMap {
        &self.parts.headers
    }

    pub(super) fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }

    /// The same for a mirror, which may tell copies by their host.
    pub(super) fn for_mirror(&self, mirror: &Mirror) -> Self {
        let mut copy = self.clone();
        let authority = copy.parts.uri.authority().map(Authority::as_str);
        let host = copy.parts.headers.get(header::HOST);
        let sent = authority.or_else(|| host.and_then(|host| host.to_str().ok()));
        let Some(host) = sent.and_then(|sent| mirror.host_of_copy(sent)) else {
            return copy;
        };
        if copy.parts.headers.contains_key(header::HOST)
            && let Ok(value) = HeaderValue::from_str(&host)
        {
            copy.parts.headers.insert(header::HOST, value);
        }
        if authority.is_some()
            && let Ok(authority) = Authority::try_from(host)
        {
            let mut uri = copy.parts.uri.clone().into_parts();
            uri.authority = Some(authority);
            copy.parts.uri = Uri::from_parts(uri).unwrap_or_default();
        }
        copy
    }

    /// A gate for the body, where the client waits for 100 Continue and the endpoint can say it.
    pub(super) fn gate(&self) -> Option<Arc<Gate>> {
        let waits = self
            .parts
            .headers
            .get(header::EXPECT)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        (waits && self.version == Version::Http1).then(Arc::default)
    }

    /// Sends it to `endpoint`, waiting for the head of the response until `until`.
    pub(super) async fn send(
        &self,
        conversation: &Conversation,
        (endpoint, cluster): (&Arc<Endpoint>, Option<&Arc<Cluster>>),
        (body, gate): (RequestBody, Option<Arc<Gate>>),
        until: Option<Instant>,
    ) -> Result<Response<Content>, Failed> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut exchange =
            pin!(self.exchange(conversation, (endpoint, cluster), (body, gate), left));
        let mut late = until.map(|until| Box::pin(sleep_until(until)));
        poll_fn(|cx| match exchange.as_mut().poll(cx) {
            Poll::Pending => match &mut late {
                Some(late) => late.as_mut().poll(cx).map(|()| Err(timed_out(endpoint))),
                None => Poll::Pending,
            },
            ended => ended,
        })
        .await
    }

    async fn exchange(
        &self,
        conversation: &Conversation,
        to: (&Arc<Endpoint>, Option<&Arc<Cluster>>),
        (body, gate): (RequestBody, Option<Arc<Gate>>),
        left: Option<Duration>,
    ) -> Result<Response<Content>, Failed> {
        let upstreams = &conversation.worker.upstreams;
        let baggage = conversation.worker.mesh.baggage.clone();
        let key = &conversation.client.key;
        let mut request = Request::from_parts(self.parts.clone(), body);
        if let Some(left) = left {
            deadline::put(request.headers_mut(), left);
        }
        let _waits = gate.map(|gate| Waits::new(&mut request, gate));
        match self.version {
            Version::Http1 => {
                let connection = upstreams
                    .http1(to, key, baggage)
                    .await
                    .map_err(|error| not_connected(&error))?;
                let reused = connection.reused;
                let idempotent = self.parts.method.is_idempotent();
                let response = connection
                    .exchange(request)
                    .await
                    .map_err(|error| broken(&error, reused && idempotent))?;
                Ok(response.map(|exchange| Content::Http1(Box::new(exchange))))
            }
            Version::Http2 => {
                let connection = upstreams
                    .http2(to, key, baggage)
                    .await
                    .map_err(|error| not_connected(&error))?;
                let (response, load) = connection
                    .exchange(request)
                    .await
                    .map_err(|error| broken(&error, false))?;
                Ok(response.map(|incoming| Content::Http2(incoming, load)))
            }
        }
    }
}

/// A client waits to be told to send its body: opens the gate when the endpoint says so, or says nothing for a while.
struct Waits(JoinHandle<()>);

impl Waits {
    fn new(request: &mut Request<RequestBody>, gate: Arc<Gate>) -> Self {
        let told = gate.clone();
        hyper::ext::on_informational(request, move |interim| {
            if interim.status() == StatusCode::CONTINUE {
                told.open();
            }
        });
        Self(supervise::spawn_local_connection(
            "patience for 100 Continue",
            async move {
                sleep(CONTINUE_PATIENCE).await;
                gate.open();
            },
        ))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The URI with scheme and authority, from a path and the Host header.
fn absolute(parts: &Parts) -> Option<Uri> {
    let host = parts.headers.get(header::HOST)?;
    let mut uri = parts.uri.clone().into_parts();
    uri.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    uri.scheme = Some(Scheme::HTTP);
    Uri::from_parts(uri).ok()
}

/// HTTP/2 may split cookies over fields, HTTP/1 may not (RFC 9113, section 8.2.3).
fn join_cookies(parts: &mut Parts) {
    if parts.headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    let crumbs: Vec<&[u8]> = parts
        .headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        parts.headers.insert(header::COOKIE, joined);
    }
}

fn timed_out(endpoint: &Endpoint) -> Failed {
    Failed {
        failure: Failure::Timeout,
        pause: None,
        status: StatusCode::GATEWAY_TIMEOUT,
        flag: RequestFlag::UpstreamTimeout,
        cause: format!(
            "the endpoint at {} did not answer within the time of the request",
            endpoint.addr
        ),
    }
}

fn not_connected(error: &ConnectError) -> Failed {
    let full = matches!(error, ConnectError::Full { .. });
    Failed {
        failure: Failure::NotSent,
        pause: None,
        status: StatusCode::SERVICE_UNAVAILABLE,
        flag: if full {
            RequestFlag::Overflow
        } else {
            RequestFlag::UpstreamFailure
        },
        cause: Chain(error).to_string(),
    }
}

/// `again`: a request that ended with the connection may be sent again, since the connection was an old one and the
/// request is idempotent (RFC 9110, section 9.2.2).
fn broken(error: &TrySendError<Request<RequestBody>>, again: bool) -> Failed {
    let unsent = error.message().is_some();
    let error = error.error();
    let (status, flag) = if is_of_client(error) {
        (StatusCode::BAD_REQUEST, RequestFlag::DownstreamTermination)
    } else if error.is_parse() {
        (StatusCode::BAD_GATEWAY, RequestFlag::UpstreamProtocol)
    } else if is_reset(error) {
        (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::UpstreamReset)
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            RequestFlag::UpstreamTermination,
        )
    };
    let gone = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    let not_sent = unsent || is_unprocessed(error) || (again && (gone || is_io(error)));
    Failed {
        failure: if not_sent {
            Failure::NotSent
        } else {
            Failure::Reset
        },
        pause: None,
        status,
        flag,
        cause: format!("the endpoint did not answer: {}", Chain(error)),
    }
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

fn is_reset(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(h2::Error::is_reset)
}

fn is_io(error: &hyper::Error) -> bool {
    error
        .source()
        .is_some_and(|source| source.is::<std::io::Error>())
}

/// The endpoint says that it did nothing with the request (RFC 9113, sections 6.8 and 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR))
    })
}
