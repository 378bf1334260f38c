//! One request from its head to its response's last byte, as metrics and access log tell it. Every request ends in
//! exactly one [`Record::finish`].

use std::{error::Error, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};
use karst_telemetry::{
    error_chain::Chain,
    metrics::{
        http::{Handles, HttpLabels, RequestFlag, RequestProtocol},
        tcp::{Peer, Reporter, ServiceLabels},
    },
    request_log::{self, RequestLine},
};

use super::{
    body::ClientBody,
    mirror::{self, MirrorCopy},
    refusal::grpc_status_of,
    serve::Conversation,
};
use crate::{
    bounds::Place,
    services::{Endpoint, InFlight, Taken},
};

/// Label sets of one connection whose counters are kept.
const KEPT_MAX: usize = 16;

/// Counters that requests of this connection used lately.
pub(super) type KeptHandles = Vec<(Outcome, Handles)>;

/// What tells the label sets of one connection apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    endpoint: Option<u64>,
    service: Option<Arc<ServiceLabels>>,
    status: u16,
    grpc_status: Option<u32>,
    flag: RequestFlag,
    protocol: RequestProtocol,
}

/// A request that is being served.
pub(crate) struct Record {
    conversation: Rc<Conversation>,
    since: Instant,
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
    /// The head as it came, of a request that may go on after its response.
    pub(super) original: Option<Box<Parts>>,
    /// Copies that are sent when the body is complete.
    pub(super) mirrors: Vec<MirrorCopy>,
    pub(super) response_bytes: u64,
    status: u16,
    grpc_status: Option<u32>,
    flag: RequestFlag,
    cause: String,
    finished: bool,
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

impl Record {
    pub(super) fn begin(conversation: &Rc<Conversation>, parts: &Parts) -> Box<Self> {
        let grpc = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Box::new(Self {
            conversation: conversation.clone(),
            since: Instant::now(),
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
            original: None,
            mirrors: Vec::new(),
            response_bytes: 0,
            status: 0,
            grpc_status: None,
            flag: RequestFlag::None,
            cause: String::new(),
            finished: false,
        })
    }

    /// What the client is about to get.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        if self.protocol == RequestProtocol::Grpc {
            self.grpc_status = grpc_status_of(headers);
        }
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
        let count = |handles: &Handles| {
            handles.count(
                elapsed.as_secs_f64() * 1e3,
                request_bytes,
                self.response_bytes,
            );
        };
        let outcome = self.outcome();
        let mut kept = self.conversation.handles.borrow_mut();
        if let Some((_, handles)) = kept.iter().find(|(of, _)| *of == outcome) {
            count(handles);
        } else {
            let handles = self.handles();
            count(&handles);
            if kept.len() >= KEPT_MAX {
                kept.remove(0);
            }
            kept.push((outcome, handles));
        }
        drop(kept);
        if !self.cause.is_empty() || self.flag != RequestFlag::None || request_log::is_wanted() {
            self.log(elapsed);
        }
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
        }
    }

    fn handles(&self) -> Handles {
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
        self.conversation.worker.mesh.metrics.http.handles(&labels)
    }

    fn log(&self, duration: std::time::Duration) {
        let client = &self.conversation.client;
        let nobody = Peer::default();
        let no_service = ServiceLabels::default();
        let host = self.uri.authority().map(http::uri::Authority::as_str);
        let path = self.uri.path_and_query();
        RequestLine {
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
        }
        .emit();
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
