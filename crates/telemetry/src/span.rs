//! The span of one hop: what a waypoint did with a request, by OpenTelemetry's semantic conventions of HTTP, and by our own
//! names (`karst.`) where these have none.

use std::borrow::Cow;

use karst_model::telemetry::TagValue;
use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode};

use crate::{
    export::Fields,
    format::{self, Logged as _},
    hub::Recording,
    metrics::http::{RequestFlag, RequestProtocol},
    request_log::RequestLine,
    trace::Context,
};

/// Attributes that a span may have, with what each says, for the reference.
pub const ATTRIBUTES: [(&str, &str); 28] = [
    (
        "http.request.method",
        "method; `_OTHER` for one that HTTP does not define",
    ),
    ("url.scheme", "`http`"),
    ("url.path", "path without the query"),
    ("server.address", "host that the client asked for"),
    ("client.address", "address of the client's pod"),
    ("user_agent.original", "`User-Agent`"),
    ("network.protocol.version", "`1.0`, `1.1`, `2`"),
    (
        "http.response.status_code",
        "absent if nothing was answered",
    ),
    ("rpc.system", "`grpc`"),
    ("rpc.grpc.status_code", "of gRPC"),
    ("http.request.body.size", "bytes"),
    ("http.response.body.size", "bytes"),
    (
        "network.peer.address",
        "endpoint of the last try, with its port",
    ),
    ("error.type", "response flag, or the status from 500 on"),
    ("karst.source.workload", "client's workload"),
    ("karst.source.namespace", "its namespace"),
    ("karst.source.principal", "its SPIFFE ID, proved by TLS"),
    ("karst.destination.workload", "workload of the endpoint"),
    ("karst.destination.namespace", "its namespace"),
    ("karst.destination.principal", "its SPIFFE ID"),
    (
        "karst.destination.service",
        "service that was asked for or routed to",
    ),
    ("karst.route", "route and rule that matched"),
    ("karst.tries", "tries, the first one included"),
    ("karst.policy.outcome", "`allowed` or `denied`"),
    ("karst.waypoint", "`<namespace>/<gateway>`"),
    (
        "karst.tunnel",
        "`hbone` or `none`: how the endpoint was reached",
    ),
    ("response_flags", "as in metrics and access log"),
    ("request_id", "`x-request-id`"),
];

/// Longest text of an attribute, in bytes.
const TEXT_MAX: usize = 1024;
/// Bytes of a span as most are.
const SPAN_BYTES: usize = 1536;
/// Field of `Span`.
const SPAN_ATTRIBUTES: u32 = 9;
const METHODS: [&str; 9] = [
    "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE",
];

/// What a span says beyond the access log's line.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    pub context: &'a Context,
    /// `tracestate`, as it came.
    pub state: &'a str,
    /// Nanoseconds since the epoch.
    pub start: u64,
    pub end: u64,
}

/// Sends the span of a request to every collector of spans.
pub fn record(recording: &Recording, line: &RequestLine<'_>, hop: &Hop<'_>) {
    let Some((last, others)) = recording.spans.split_last() else {
        return;
    };
    let span = of(recording, line, hop);
    others.iter().for_each(|one| one.push_span(span.clone()));
    last.push_span(span);
}

fn bounded(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The fields of `Span`.
fn of(recording: &Recording, line: &RequestLine<'_>, hop: &Hop<'_>) -> Fields {
    let method = match METHODS.contains(&line.method) {
        true => line.method,
        false => "_OTHER",
    };
    let mut span = Fields::with_capacity(SPAN_BYTES);
    span.bytes(1, &hop.context.trace);
    span.bytes(2, &hop.context.span);
    span.text(3, bounded(hop.state));
    if let Some(parent) = &hop.context.parent {
        span.bytes(4, parent);
    }
    match line.route.is_empty() {
        true => span.text(5, method),
        false => span.text(5, &format!("{method} {}", bounded(line.route))),
    }
    span.number(6, SpanKind::Server as u64);
    span.fixed64(7, hop.start);
    span.fixed64(8, hop.end);
    let error = error_type(line);
    texts(&mut span, line, method);
    attribute(
        &mut span,
        "error.type",
        error.as_deref().unwrap_or_default(),
    );
    for (name, value) in &recording.plan.tracing.tags {
        attribute(&mut span, name, &tag(value, line));
    }
    numbers(&mut span, line);
    if !line.cause.is_empty() {
        span.message(11, &exception(hop.end, line.cause));
    }
    if let Some(message) = error {
        let mut status = Fields::default();
        status.text(2, &message);
        status.number(3, StatusCode::Error as u64);
        span.message(15, &status);
    }
    span.fixed32(16, hop.context.sampled.into());
    span
}

/// An attribute of text. Absent ones are left out.
fn attribute(span: &mut Fields, key: &str, value: &str) {
    if !value.is_empty() {
        span.text_attribute(SPAN_ATTRIBUTES, key, bounded(value));
    }
}

fn texts(span: &mut Fields, line: &RequestLine<'_>, method: &str) {
    let mut text = |key: &str, value: &str| attribute(span, key, value);
    let path = line.path.split('?').next().unwrap_or_default();
    let version = line.version.trim_start_matches("HTTP/");
    let (source, destination) = (line.source, line.destination);
    text("http.request.method", method);
    text("url.scheme", "http");
    text("url.path", path);
    text("server.address", line.authority);
    text("client.address", &line.client.ip().to_string());
    text("user_agent.original", line.user_agent);
    text("network.protocol.version", version);
    if let Some(endpoint) = line.endpoint {
        text("network.peer.address", &endpoint.to_string());
        text("karst.tunnel", if line.tunnel { "hbone" } else { "none" });
    }
    text("karst.source.workload", &source.workload);
    text("karst.source.namespace", &source.namespace);
    text("karst.source.principal", &source.principal);
    text("karst.destination.workload", &destination.workload);
    text("karst.destination.namespace", &destination.namespace);
    text("karst.destination.principal", &destination.principal);
    text("karst.destination.service", &line.service.host);
    text("karst.route", line.route);
    text(
        "karst.policy.outcome",
        if line.denied { "denied" } else { "allowed" },
    );
    text("karst.waypoint", line.waypoint);
    text("response_flags", line.flag.as_str());
    text("request_id", line.request_id);
}

fn numbers(span: &mut Fields, line: &RequestLine<'_>) {
    let mut number = |key: &str, value: i64| span.number_attribute(SPAN_ATTRIBUTES, key, value);
    let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    if line.status > 0 {
        number("http.response.status_code", line.status.into());
    }
    number("http.request.body.size", size(line.request_bytes));
    number("http.response.body.size", size(line.response_bytes));
    number("karst.tries", line.tries.into());
    if line.protocol == RequestProtocol::Grpc {
        if let Some(status) = line.grpc_status {
            number("rpc.grpc.status_code", status.into());
        }
        attribute(span, "rpc.system", "grpc");
    }
}

/// What went wrong, as an `Event`.
fn exception(time: u64, cause: &str) -> Fields {
    let mut event = Fields::default();
    event.fixed64(1, time);
    event.text(2, "exception");
    event.text_attribute(3, "exception.message", bounded(cause));
    event
}

/// A server's span fails from status 500 on, not where the client asked wrongly.
fn error_type(line: &RequestLine<'_>) -> Option<String> {
    match (line.flag, line.status) {
        (RequestFlag::None, 0..=499) => None,
        (RequestFlag::None, status) => Some(status.to_string()),
        (flag, _) => Some(flag.as_str().to_owned()),
    }
}

fn tag<'l>(value: &'l TagValue, line: &'l RequestLine<'_>) -> Cow<'l, str> {
    match value {
        TagValue::Literal(text) => Cow::Borrowed(text),
        TagValue::Header { name, default } => {
            let found = line.command("REQ", name);
            found.unwrap_or(Cow::Borrowed(default))
        }
        TagValue::Environment { name, default } => match std::env::var(&**name) {
            Ok(text) => Cow::Owned(text),
            Err(_unset) => Cow::Borrowed(default),
        },
        TagValue::Formatter(text) => Cow::Owned(format::plain(line, text)),
    }
}
