//! One request from its head to its response's last byte, as metrics and access log tell it. Every request ends in
//! exactly one [`Record::finish`].

use std::{
    error::Error,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts,
};
use karst_policy::token::TokenRules;
use karst_routing::request::Request;
use karst_telemetry::{
    error_chain::Chain,
    export::nanoseconds,
    format::Logged as _,
    hub::Recording,
    metrics::{
        http::{Handles, HttpLabels, RequestFlag, RequestProtocol},
        tcp::{Peer, Reporter, Security, ServiceLabels},
    },
    observed::{self, Edge, Requested, Traffic},
    request_log::RequestLine,
    span::{self, Hop},
    trace::{self, Parent},
};

use rand::Rng as _;

use super::{
    body::ClientBody,
    mirror::{self, MirrorCopy},
    refusal::{Refusal, grpc_status_of},
    revoke::Admitted,
    serve::Conversation,
};
use crate::{
    bounds::Place,
    services::{Endpoint, InFlight, Taken, Way},
};

/// Label sets of one connection whose counters are kept.
const KEPT_MAX: usize = 16;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest header value that is kept for logs, in bytes.
const HEADER_MAX: usize = 1024;

/// Counters that requests of this connection used lately.
pub(super) type KeptHandles = Vec<(Outcome, Handles, Option<Arc<Edge>>)>;

/// What tells the label sets of one connection apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    endpoint: Option<u64>,
    service: Option<Arc<ServiceLabels>>,
    status: u16,
    grpc_status: Option<u32>,
    flag: RequestFlag,
    protocol: RequestProtocol,
    /// Of what is recorded.
    generation: u64,
}

/// A request that is being served.
pub(crate) struct Record {
    conversation: Rc<Conversation>,
    pub(super) since: Instant,
    generation: u64,
    recording: Arc<Recording>,
    traced: Option<Traced>,
    /// Headers that a log, a filter or a tag asks for.
    headers: Vec<(Arc<str>, String)>,
    method: Method,
    uri: Uri,
    version: Version,
    shown: Shown,
    pub(super) protocol: RequestProtocol,
    pub(super) places: Option<[Place; 2]>,
    /// Its place among the requests of the endpoints' set.
    pub(super) admitted: Option<Taken>,
    pub(super) body: ClientBody,
    pub(super) in_flight: Option<InFlight>,
    pub(super) service: Option<Arc<ServiceLabels>>,
    pub(super) route: Option<Arc<str>>,
    pub(super) tries: u32,
    /// Changes of the service before policy decided.
    pub(super) changes: u64,
    /// The head that policy decided on, where it is not the one that goes out.
    pub(super) came: Option<Box<Request>>,
    /// What policy may revoke while the response flows.
    pub(super) admitted_by_policy: Option<Box<Admitted>>,
    /// Copies that are sent when the body is complete.
    pub(super) mirrors: Vec<MirrorCopy>,
    pub(super) response_bytes: u64,
    status: u16,
    grpc_status: Option<u32>,
    flag: RequestFlag,
    cause: String,
    finished: bool,
}

/// The span of a request, where somebody traces.
struct Traced {
    context: trace::Context,
    started: SystemTime,
    state: Option<HeaderValue>,
}

/// Headers that the access log shows.
struct Shown {
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    trace: Option<HeaderValue>,
}

impl Shown {
    fn new(headers: &HeaderMap) -> Self {
        Self {
            host: headers.get(header::HOST).cloned(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            request_id: headers.get("x-request-id").cloned(),
            trace: headers.get("traceparent").cloned(),
        }
    }
}

fn text(value: Option<&HeaderValue>) -> &str {
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The headers that the recording asks for.
fn captured(recording: &Recording, headers: &HeaderMap) -> Vec<(Arc<str>, String)> {
    let value = |name: &Arc<str>| {
        let text = headers.get(&**name)?.to_str().ok()?;
        // Text of a header is ASCII.
        let text = &text[..text.len().min(HEADER_MAX)];
        Some((name.clone(), text.to_owned()))
    };
    recording.headers.iter().filter_map(value).collect()
}

impl Record {
    pub(super) fn begin(conversation: &Rc<Conversation>, parts: &Parts) -> Box<Self> {
        let (generation, recording) = conversation.recording();
        let grpc = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Box::new(Self {
            conversation: conversation.clone(),
            since: Instant::now(),
            generation,
            traced: None,
            headers: captured(&recording, &parts.headers),
            recording,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            shown: Shown::new(&parts.headers),
            protocol: if grpc {
                RequestProtocol::Grpc
            } else {
                RequestProtocol::Http
            },
            places: None,
            admitted: None,
            body: ClientBody::Empty,
            in_flight: None,
            service: None,
            route: None,
            tries: 0,
            changes: 0,
            came: None,
            admitted_by_policy: None,
            mirrors: Vec::new(),
            response_bytes: 0,
            status: 0,
            grpc_status: None,
            flag: RequestFlag::None,
            cause: String::new(),
            finished: false,
        })
    }

    /// Shows no token that stands in the query.
    pub(super) fn hide(&mut self, rules: &TokenRules) {
        let query = self
            .uri
            .query()
            .and_then(|query| rules.without_tokens(query));
        let Some(query) = query else {
            return;
        };
        let mut uri = std::mem::take(&mut self.uri).into_parts();
        let path = uri.path_and_query.as_ref().map_or("/", |path| path.path());
        uri.path_and_query = format!("{path}?{query}").parse().ok();
        self.uri = Uri::from_parts(uri).unwrap_or_default();
    }

    /// Begins the span of this hop, and makes it the parent of the next.
    pub(super) fn trace(&mut self, headers: &mut HeaderMap) {
        let tracing = &self.recording.plan.tracing;
        if self.recording.spans.is_empty() {
            return;
        }
        let parent = self.shown.trace.as_ref();
        let parent = parent.and_then(|value| Parent::read(value.as_bytes()));
        let context = trace::Context::start(parent, tracing.sampling, || rand::rng().next_u64());
        // An unsampled trace goes on as it came: there is no span of ours to be a parent.
        let tells = context.sampled || context.parent.is_none();
        if tells
            && !tracing.propagation_disabled
            && let Ok(value) = HeaderValue::try_from(context.header())
        {
            headers.insert(TRACEPARENT, value);
            if parent.is_none() {
                // The state belongs to a trace that we could not read.
                headers.remove(TRACESTATE);
            }
        }
        if context.sampled && !tracing.disabled {
            self.traced = Some(Traced {
                context,
                started: SystemTime::now(),
                state: headers.get(TRACESTATE).cloned(),
            });
        }
    }

    /// What the client is about to get.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        if self.protocol == RequestProtocol::Grpc {
            self.grpc_status = grpc_status_of(headers);
        }
    }

    /// A fault makes it wait; what happens after that is told instead where there is more to tell.
    pub(super) fn delayed(&mut self) {
        self.flag = RequestFlag::DelayInjected;
    }

    /// The waypoint answers itself.
    pub(super) fn refused(&mut self, flag: RequestFlag, cause: &str) {
        self.flag = flag;
        cause.clone_into(&mut self.cause);
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.protocol == RequestProtocol::Grpc {
            self.grpc_status = grpc_status_of(trailers).or(self.grpc_status);
        }
    }

    /// The response breaks off.
    pub(super) fn broken(&mut self, flag: RequestFlag, error: &dyn Error) {
        self.flag = flag;
        self.cause = Chain(error).to_string();
    }

    /// Something is about to change the head that policy has decided on.
    pub(super) fn keep_head(&mut self, request: &Request) {
        self.came.get_or_insert_with(|| Box::new(request.clone()));
    }

    /// Ready when policy does not allow the request any more, which is the end of it.
    pub(super) fn poll_revoked(&mut self, cx: &Context<'_>) -> Poll<Refusal> {
        let Some(admitted) = &mut self.admitted_by_policy else {
            return Poll::Pending;
        };
        let revoked = admitted.poll_revoked(&self.conversation, cx);
        if let Poll::Ready(refusal) = &revoked {
            self.admitted_by_policy = None;
            self.refused(refusal.flag, &refusal.cause);
            self.body.cut();
        }
        revoked
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Whose request it is.
    pub(super) fn conversation(&self) -> Rc<Conversation> {
        self.conversation.clone()
    }

    /// The client did not wait for the end.
    pub(super) fn left(&mut self) {
        if self.flag == RequestFlag::None {
            self.flag = RequestFlag::DownstreamTermination;
            self.cause = "the client went away before the end of the response".to_owned();
        }
    }

    /// Counts and logs, once.
    pub(super) fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.places = None;
        self.admitted = None;
        mirror::send_all(
            &self.conversation,
            std::mem::take(&mut self.mirrors),
            &self.body,
        );
        let elapsed = self.since.elapsed();
        let request_bytes = self.body.bytes();
        let failed = !self.cause.is_empty() || self.flag != RequestFlag::None;
        let denied = failed && self.is_denied();
        let traffic = Traffic {
            requests: 1,
            denied: u64::from(denied),
            failed: u64::from(failed && !denied),
            request_bytes,
            response_bytes: self.response_bytes,
            ..Traffic::default()
        };
        let count = |handles: &Handles, edge: Option<&Arc<Edge>>| {
            handles.count(elapsed, request_bytes, self.response_bytes);
            if let Some(edge) = edge {
                edge.add(&traffic);
            }
        };
        if self.recording.plan.metrics.is_fixed() {
            self.count_kept(&count);
        } else {
            // A label depends on the request.
            count(&self.handles(elapsed), self.edge().as_ref());
        }
        if let Some(traced) = &self.traced {
            let hop = Hop {
                context: &traced.context,
                state: text(traced.state.as_ref()),
                start: nanoseconds(traced.started),
                end: nanoseconds(traced.started + elapsed),
            };
            self.with_line(elapsed, |line| span::record(&self.recording, line, &hop));
        }
        if failed {
            self.with_line(elapsed, |line| observed::request(line, line.denied));
        }
        if failed || self.recording.logs_anything() {
            self.with_line(elapsed, |line| self.recording.log(line));
        }
    }

    /// Counts with the counters that the connection keeps.
    fn count_kept(&self, count: &impl Fn(&Handles, Option<&Arc<Edge>>)) {
        let outcome = self.outcome();
        let mut kept = self.conversation.handles.borrow_mut();
        if let Some((_, handles, edge)) = kept.iter().find(|(of, ..)| *of == outcome) {
            return count(handles, edge.as_ref());
        }
        let (handles, edge) = (self.handles(Duration::ZERO), self.edge());
        count(&handles, edge.as_ref());
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((outcome, handles, edge));
    }

    /// Who asks whom, for those who ask the controller.
    fn edge(&self) -> Option<Arc<Edge>> {
        let client = &self.conversation.client;
        observed::requests(&Requested {
            source: &client.labels,
            destination: self.endpoint().map(|endpoint| &*endpoint.labels),
            service: self.service.as_deref(),
            port: self.conversation.destination.port,
            mutual_tls: client.security() == Security::MutualTls,
        })
    }

    fn is_denied(&self) -> bool {
        self.cause.starts_with("RBAC:")
    }

    fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.in_flight.as_ref().map(InFlight::endpoint)
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            endpoint: self.endpoint().map(|endpoint| endpoint.id),
            service: self.service.clone(),
            status: self.status,
            grpc_status: self.grpc_status,
            flag: self.flag,
            protocol: self.protocol,
            generation: self.generation,
        }
    }

    fn handles(&self, elapsed: Duration) -> Handles {
        let client = &self.conversation.client;
        let labels = HttpLabels {
            reporter: Reporter::Waypoint,
            source: client.labels.clone(),
            destination: self
                .endpoint()
                .map_or_else(Arc::default, |endpoint| endpoint.labels.clone()),
            service: self.service.clone().unwrap_or_default(),
            protocol: self.protocol,
            response_code: self.status,
            grpc_status: self.grpc_status,
            flag: self.flag,
            security: client.security(),
        };
        let http = &self.conversation.worker.mesh.metrics.http;
        let attributes = || self.with_line(elapsed, |line| line.attributes());
        http.handles_for(&labels, &self.recording.plan.metrics, &attributes)
    }

    /// What there is to say of the request.
    fn with_line<T>(&self, duration: Duration, work: impl FnOnce(&RequestLine<'_>) -> T) -> T {
        let client = &self.conversation.client;
        let nobody = Peer::default();
        let no_service = ServiceLabels::default();
        let host = self.uri.authority().map(http::uri::Authority::as_str);
        let path = self.uri.path_and_query();
        work(&RequestLine {
            client: client.addr,
            source: &client.labels,
            destination: self.endpoint().map_or(&nobody, |endpoint| &endpoint.labels),
            service: self.service.as_deref().unwrap_or(&no_service),
            endpoint: self.endpoint().map(|endpoint| endpoint.addr),
            method: self.method.as_str(),
            path: path.map_or("", http::uri::PathAndQuery::as_str),
            authority: host.unwrap_or_else(|| text(self.shown.host.as_ref())),
            protocol: self.protocol,
            version: match self.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            status: self.status,
            grpc_status: self.grpc_status,
            flag: self.flag,
            route: self.route.as_deref().unwrap_or_default(),
            tries: self.tries,
            request_bytes: self.body.bytes(),
            response_bytes: self.response_bytes,
            duration,
            user_agent: text(self.shown.user_agent.as_ref()),
            request_id: text(self.shown.request_id.as_ref()),
            trace: text(self.shown.trace.as_ref()),
            cause: &self.cause,
            denied: self.is_denied(),
            waypoint: &self.conversation.worker.mesh.shown,
            tunnel: self
                .endpoint()
                .is_some_and(|endpoint| matches!(endpoint.way, Way::Tunnel(_))),
            headers: &self.headers,
            context: self.traced.as_ref().map(|traced| &traced.context),
        })
    }
}

impl Drop for Record {
    /// A client that goes away while nothing was answered drops the whole request.
    fn drop(&mut self) {
        if !self.finished {
            self.conversation.abandoned();
            self.left();
            self.finish();
        }
    }
}
