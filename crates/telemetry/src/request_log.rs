//! One access-log line per request, beside [`crate::access_log`], which has one per connection; the same target
//! (`access`), the same names for the same things.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value as Json, json};
use tracing::{info, warn};

use crate::{
    export::nanoseconds,
    format::{FieldValue, Logged},
    metrics::{
        http::{RequestFlag, RequestProtocol},
        tcp::{Peer, ServiceLabels},
    },
    trace::Context,
};

/// Everything that the line of one request says. Empty text is left out.
#[derive(Clone, Debug)]
pub struct RequestLine<'a> {
    pub client: SocketAddr,
    pub source: &'a Peer,
    pub destination: &'a Peer,
    pub service: &'a ServiceLabels,
    /// The endpoint that the last try went to.
    pub endpoint: Option<SocketAddr>,
    pub method: &'a str,
    /// As the client sent it, query included.
    pub path: &'a str,
    pub authority: &'a str,
    pub protocol: RequestProtocol,
    /// HTTP version of the client's side: `HTTP/1.1`.
    pub version: &'static str,
    /// 0: no response was sent.
    pub status: u16,
    pub grpc_status: Option<u32>,
    pub flag: RequestFlag,
    /// Route and rule that matched.
    pub route: &'a str,
    /// Tries, the first one included.
    pub tries: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub duration: Duration,
    pub user_agent: &'a str,
    pub request_id: &'a str,
    pub trace: &'a str,
    /// Why the waypoint answered itself, or what broke.
    pub cause: &'a str,
    /// A policy refused it.
    pub denied: bool,
    /// `<namespace>/<gateway>` of the waypoint.
    pub waypoint: &'a str,
    /// The endpoint was reached by HBONE.
    pub tunnel: bool,
    /// Headers that somebody asks for, in lower case.
    pub headers: &'a [(Arc<str>, String)],
    /// The span of this hop, where somebody traces.
    pub context: Option<&'a Context>,
}

/// Names of the fields of a line, in order.
pub const FIELDS: [(&str, &str); 28] = [
    ("src.addr", "address and port of the client"),
    ("src.workload", "its workload"),
    ("src.namespace", "its namespace"),
    ("src.identity", "its SPIFFE ID"),
    ("dst.addr", "endpoint of the last try"),
    ("dst.service", "host name of the service"),
    ("dst.workload", "workload of the endpoint"),
    ("dst.namespace", "its namespace"),
    ("dst.identity", "its SPIFFE ID"),
    ("direction", "`waypoint`"),
    ("protocol", "`http` or `grpc`"),
    ("version", "HTTP version of the client's side"),
    ("method", "method"),
    ("authority", "host that the client asked for"),
    ("path", "path with its query, as the client sent it"),
    ("status", "of the response; 0: none was sent"),
    ("grpc_status", "of gRPC"),
    ("response_flags", "see below"),
    ("route", "route and rule that matched"),
    ("tries", "tries, the first one included"),
    ("bytes_recv", "body of the request, bytes"),
    ("bytes_sent", "body of the response, bytes"),
    ("duration", "microseconds, with `us`"),
    ("user_agent", "`User-Agent`"),
    ("request_id", "`x-request-id`"),
    ("traceparent", "as the client sent it"),
    ("cause", "why the waypoint answered itself, or what broke"),
    (
        "trace_id",
        "of logs sent by OTLP, as the record's own field",
    ),
];

fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Whether lines of requests that went well are wanted at all.
pub fn is_wanted() -> bool {
    tracing::enabled!(target: "access", tracing::Level::INFO)
}

/// Emits the event with the fields that every line has, in order, then those given.
macro_rules! line {
    ($emit:ident, $line:expr, $duration:expr $(, $field:ident = $value:expr)*) => {{
        let line = $line;
        $emit!(
            target: "access",
            {
            src.addr = %line.client,
            src.workload = known(&line.source.workload),
            src.namespace = known(&line.source.namespace),
            src.identity = known(&line.source.principal),
            dst.addr = line.endpoint.map(tracing::field::display),
            dst.service = known(&line.service.host),
            dst.workload = known(&line.destination.workload),
            dst.namespace = known(&line.destination.namespace),
            dst.identity = known(&line.destination.principal),
            direction = "waypoint",
            protocol = line.protocol.as_str(),
            version = line.version,
            method = line.method,
            authority = known(line.authority),
            path = line.path,
            status = line.status,
            grpc_status = line.grpc_status,
            response_flags = line.flag.as_str(),
            route = known(line.route),
            tries = line.tries,
            bytes_recv = line.request_bytes,
            bytes_sent = line.response_bytes,
            duration = $duration,
            user_agent = known(line.user_agent),
            request_id = known(line.request_id),
            traceparent = known(line.trace),
            $($field = $value,)*
            },
            "request complete"
        )
    }};
}

impl RequestLine<'_> {
    /// INFO, or WARN where the waypoint or the endpoint did not do what was asked.
    pub fn emit(&self) {
        let duration = format!("{}us", self.duration.as_micros());
        if self.flag == RequestFlag::None && self.cause.is_empty() {
            line!(info, self, duration);
        } else {
            line!(warn, self, duration, cause = known(self.cause));
        }
    }
}

impl Logged for RequestLine<'_> {
    fn own(&self) {
        self.emit();
    }

    fn command(&self, name: &str, argument: &str) -> Option<Cow<'_, str>> {
        let borrowed = |text| known(text).map(Cow::Borrowed);
        let owned = |text: String| Some(Cow::Owned(text));
        match (name, argument) {
            ("REQ", ":method") => borrowed(self.method),
            ("REQ", ":path") => borrowed(self.path),
            ("REQ", ":authority" | "host") => borrowed(self.authority),
            ("REQ", "user-agent") => borrowed(self.user_agent),
            ("REQ", "x-request-id") => borrowed(self.request_id),
            ("REQ", "traceparent") => borrowed(self.trace),
            ("REQ", header) => self.header(header).map(Cow::Borrowed),
            ("START_TIME", _) => owned(crate::logging::time(SystemTime::now() - self.duration)),
            ("PROTOCOL", _) => Some(Cow::Borrowed(self.version)),
            ("RESPONSE_CODE", _) => owned(self.status.to_string()),
            ("RESPONSE_FLAGS", _) => Some(Cow::Borrowed(self.flag.as_str())),
            ("RESPONSE_CODE_DETAILS", _) => match self.cause.is_empty() {
                true => Some(Cow::Borrowed("via_upstream")),
                false => owned(self.cause.replace(' ', "_")),
            },
            ("GRPC_STATUS" | "GRPC_STATUS_NUMBER", _) => self
                .grpc_status
                .and_then(|status| owned(status.to_string())),
            ("BYTES_RECEIVED", _) => owned(self.request_bytes.to_string()),
            ("BYTES_SENT", _) => owned(self.response_bytes.to_string()),
            ("DURATION", _) => owned(self.duration.as_millis().to_string()),
            ("UPSTREAM_HOST", _) => self.endpoint.and_then(|addr| owned(addr.to_string())),
            ("UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW", _) => borrowed(&self.service.host),
            ("UPSTREAM_REQUEST_ATTEMPT_COUNT", _) => owned(self.tries.to_string()),
            ("DOWNSTREAM_REMOTE_ADDRESS", _) => owned(self.client.to_string()),
            ("DOWNSTREAM_PEER_URI_SAN", _) => borrowed(&self.source.principal),
            ("UPSTREAM_PEER_URI_SAN", _) => borrowed(&self.destination.principal),
            ("ROUTE_NAME", _) => borrowed(self.route),
            ("TRACE_ID", _) => self
                .context
                .and_then(|context| owned(crate::trace::hex(&context.trace))),
            _ => None,
        }
    }

    fn attributes(&self) -> Map<String, Json> {
        let path = self.path.split('?').next().unwrap_or_default();
        let mut headers: Map<String, Json> = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), Json::from(value.as_str())))
            .collect();
        headers.insert("user-agent".to_owned(), self.user_agent.into());
        headers.insert("x-request-id".to_owned(), self.request_id.into());
        let peer = |peer: &Peer, addr: Option<SocketAddr>| {
            json!({
                "address": addr.map(|addr| addr.ip().to_string()),
                "port": addr.map(|addr| addr.port()),
                "workload": *peer.workload,
                "namespace": *peer.namespace,
                "principal": *peer.principal,
            })
        };
        let mut destination = peer(self.destination, self.endpoint);
        destination["service"] = (*self.service.host).into();
        let all = json!({
            "request": {
                "method": self.method,
                "path": self.path,
                "url_path": path,
                "host": self.authority,
                "protocol": self.version,
                "headers": headers,
                "size": self.request_bytes,
                "total_size": self.request_bytes,
                "duration_ms": u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
                "useragent": self.user_agent,
                "id": self.request_id,
            },
            "response": {
                "code": self.status,
                "flags": self.flag.as_str(),
                "grpc_status": self.grpc_status,
                "size": self.response_bytes,
                "total_size": self.response_bytes,
                "code_details": self.cause,
            },
            "connection": {
                "mtls": !self.source.principal.is_empty(),
                "uri_san_peer_certificate": *self.source.principal,
            },
            "source": peer(self.source, Some(self.client)),
            "destination": destination,
            "upstream": {"address": self.endpoint.map(|addr| addr.to_string()), "tries": self.tries},
            "route": {"name": self.route},
        });
        match all {
            Json::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn fields(&self, tell: &mut dyn FnMut(&'static str, FieldValue<'_>)) {
        use FieldValue::{Address, Microseconds, Number, Text};
        let text = |text| known(text).map(Text);
        let values: [Option<FieldValue<'_>>; 27] = [
            Some(Address(self.client)),
            text(&self.source.workload),
            text(&self.source.namespace),
            text(&self.source.principal),
            self.endpoint.map(Address),
            text(&self.service.host),
            text(&self.destination.workload),
            text(&self.destination.namespace),
            text(&self.destination.principal),
            Some(Text("waypoint")),
            Some(Text(self.protocol.as_str())),
            Some(Text(self.version)),
            Some(Text(self.method)),
            text(self.authority),
            Some(Text(self.path)),
            Some(Number(self.status.into())),
            self.grpc_status.map(|status| Number(status.into())),
            Some(Text(self.flag.as_str())),
            text(self.route),
            Some(Number(self.tries.into())),
            Some(Number(self.request_bytes)),
            Some(Number(self.response_bytes)),
            Some(Microseconds(self.duration.as_micros())),
            text(self.user_agent),
            text(self.request_id),
            text(self.trace),
            text(self.cause),
        ];
        for (&(name, _), value) in FIELDS.iter().zip(values) {
            if let Some(value) = value {
                tell(name, value);
            }
        }
    }

    fn message(&self) -> &'static str {
        "request complete"
    }

    fn is_error(&self) -> bool {
        self.flag != RequestFlag::None || !self.cause.is_empty()
    }

    fn ended(&self) -> u64 {
        nanoseconds(SystemTime::now())
    }

    fn context(&self) -> Option<&Context> {
        self.context
    }
}

impl RequestLine<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(other, _)| **other == *name);
        found.next().map(|(_, value)| value.as_str())
    }
}
