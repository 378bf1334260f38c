//! Access logs in the forms that Istio's providers ask for: Envoy's `%COMMANDS%` in a text or in a JSON object, and log
//! records of OTLP.
//!
//! What comes from a peer is escaped where it is put in, so that no line is forged and no terminal is told anything.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    net::SocketAddr,
};

use karst_model::telemetry::LogFormat;
use opentelemetry_proto::tonic::logs::v1::SeverityNumber;
use serde_json::{Map, Value as Json};

use crate::{export::Fields, trace::Context};

/// Istio's default line.
const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";
/// Longest value that is put into a line, in bytes.
const VALUE_BYTES_MAX: usize = 4096;
/// Headers whose values are never logged, whoever asks.
const SECRETS: [&str; 6] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "x-forwarded-client-cert",
];
/// What stands for a secret.
const REDACTED: &str = "[redacted]";

/// The value of a field of the program's own log.
#[derive(Clone, Copy, Debug)]
pub enum FieldValue<'v> {
    Text(&'v str),
    Number(u64),
    Address(SocketAddr),
    Milliseconds(u128),
    Microseconds(u128),
}

impl fmt::Display for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Milliseconds(time) => write!(f, "{time}ms"),
            Self::Microseconds(time) => write!(f, "{time}us"),
        }
    }
}

/// A connection or request that has ended.
pub trait Logged {
    /// As the program's own log has it.
    fn own(&self);
    /// The value of an Envoy command (`BYTES_SENT`), and of its argument in lower case. `None`: nothing is known.
    fn command(&self, name: &str, argument: &str) -> Option<Cow<'_, str>>;
    /// What expressions see.
    fn attributes(&self) -> Map<String, Json>;
    /// Tells every field with its name, in the order of the program's own log. Absent ones are left out.
    fn fields(&self, tell: &mut dyn FnMut(&'static str, FieldValue<'_>));
    /// What happened, in a few words.
    fn message(&self) -> &'static str;
    fn is_error(&self) -> bool;
    /// Nanoseconds since the epoch.
    fn ended(&self) -> u64;
    /// The trace that it belongs to.
    fn context(&self) -> Option<&Context>;
}

/// Whether the values of a header are never logged.
pub fn is_secret(header: &str) -> bool {
    SECRETS.contains(&header)
}

/// Writes a line, in a form that is not the program's own.
pub(crate) fn line(logged: &dyn Logged, format: &LogFormat) -> String {
    match format {
        LogFormat::Own | LogFormat::Istio => text(logged, ISTIO),
        LogFormat::Text(format) => text(logged, format.trim_end_matches('\n')),
        LogFormat::Json(fields) => {
            let object: Map<String, Json> = fields
                .iter()
                .map(|(key, format)| (key.to_string(), Json::from(plain(logged, format))))
                .collect();
            crate::logging::json_line(&Json::Object(object))
        }
    }
}

/// A text with its commands replaced; their values escaped.
pub(crate) fn text(logged: &dyn Logged, format: &str) -> String {
    filled(logged, format, |out, value| {
        let safe = crate::logging::escaped(value);
        out.push_str(&safe.replace('"', "\\\""));
    })
}

/// A text with its commands replaced; their values as they are.
pub(crate) fn plain(logged: &dyn Logged, format: &str) -> String {
    filled(logged, format, String::push_str)
}

fn filled(logged: &dyn Logged, format: &str, put: impl Fn(&mut String, &str)) -> String {
    let mut out = String::with_capacity(format.len() * 2);
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let Some((command, after)) = after.split_once('%') else {
            out.push('%');
            rest = after;
            continue;
        };
        if command.is_empty() {
            out.push('%');
        } else {
            let value = value(logged, command);
            let mut end = value.len().min(VALUE_BYTES_MAX);
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            put(&mut out, &value[..end]);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `NAME`, `NAME(argument)`, `NAME(first?second):length`. What is not known is `-`, as with Envoy.
fn value<'l>(logged: &'l dyn Logged, command: &str) -> Cow<'l, str> {
    let (name, argument) = match command.split_once('(') {
        None => (command, String::new()),
        Some((name, rest)) => {
            let argument = rest.rsplit_once(')').map_or(rest, |(argument, _)| argument);
            (name, argument.to_ascii_lowercase())
        }
    };
    if argument.is_empty() {
        return logged.command(name, "").unwrap_or(Cow::Borrowed("-"));
    }
    for one in argument.split('?') {
        if matches!(name, "REQ" | "RESP") && is_secret(one) {
            return Cow::Borrowed(REDACTED);
        }
        if let Some(found) = logged.command(name, one) {
            return found;
        }
    }
    Cow::Borrowed("-")
}

/// Bytes of a record as most are.
const RECORD_BYTES: usize = 1024;

/// A log record of OTLP: `LogRecord`.
pub(crate) fn record(logged: &dyn Logged) -> Fields {
    const ATTRIBUTES: u32 = 6;
    let (severity, name) = match logged.is_error() {
        true => (SeverityNumber::Error, "ERROR"),
        false => (SeverityNumber::Info, "INFO"),
    };
    let ended = logged.ended();
    let mut record = Fields::with_capacity(RECORD_BYTES);
    record.fixed64(1, ended);
    record.number(2, severity as u64);
    record.text(3, name);
    record.any_text(5, logged.message());
    let mut shown = String::with_capacity(64);
    logged.fields(&mut |name, value| match value {
        FieldValue::Text(text) => record.text_attribute(ATTRIBUTES, name, text),
        other => {
            shown.clear();
            // A String takes everything.
            let _ = write!(shown, "{other}");
            record.text_attribute(ATTRIBUTES, name, &shown);
        }
    });
    if let Some(context) = logged.context() {
        record.fixed32(8, context.sampled.into());
        record.bytes(9, &context.trace);
        record.bytes(10, &context.span);
    }
    // When it was observed.
    record.fixed64(11, ended);
    record
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use opentelemetry_proto::tonic::{common::v1::any_value::Value, logs::v1::LogRecord};

    use super::*;
    use crate::{
        export::read,
        metrics::{
            http::{RequestFlag, RequestProtocol},
            tcp::{Peer, ServiceLabels},
        },
        request_log::RequestLine,
    };

    const TOKEN: &str = "Bearer eyJhbGciOi";

    fn with_line<T>(path: &str, agent: &str, work: impl FnOnce(&RequestLine<'_>) -> T) -> T {
        let headers: [(Arc<str>, String); 3] = [
            ("x-user".into(), "ann".to_owned()),
            ("authorization".into(), TOKEN.to_owned()),
            ("cookie".into(), TOKEN.to_owned()),
        ];
        work(&RequestLine {
            client: "10.0.0.1:4000".parse().unwrap(),
            source: &Peer::default(),
            destination: &Peer::default(),
            service: &ServiceLabels {
                host: "cart.shop.svc.cluster.local".into(),
                ..ServiceLabels::default()
            },
            endpoint: Some("10.0.0.2:8080".parse().unwrap()),
            method: "GET",
            path,
            authority: "cart",
            protocol: RequestProtocol::Http,
            version: "HTTP/1.1",
            status: 503,
            grpc_status: None,
            flag: RequestFlag::UpstreamFailure,
            route: "HTTPRoute/shop/cart/0",
            tries: 2,
            request_bytes: 3,
            response_bytes: 4,
            duration: Duration::from_millis(12),
            user_agent: agent,
            request_id: "",
            trace: "",
            cause: "connection refused",
            denied: false,
            waypoint: "shop/w",
            tunnel: true,
            headers: &headers,
            context: None,
        })
    }

    #[test]
    fn istios_default_line_is_istios() {
        let line = with_line("/a?b=1", "curl", |logged| line(logged, &LogFormat::Istio));
        let (time, rest) = line.split_once("] ").unwrap();
        assert!(time.starts_with("[20") && time.ends_with('Z'), "{line}");
        assert_eq!(
            rest,
            "\"GET /a?b=1 HTTP/1.1\" 503 UF connection_refused - \"-\" 3 4 12 - \"-\" \"curl\" \"-\" \"cart\" \
             \"10.0.0.2:8080\" cart.shop.svc.cluster.local - - 10.0.0.1:4000 - HTTPRoute/shop/cart/0"
        );
    }

    #[test]
    fn commands_are_put_in_and_nothing_is_forged() {
        let hostile = "/x\" 200 -\n[2026] \"GET /forged\u{1b}[2J";
        let format: Arc<str> =
            "%REQ(X-NONE?X-USER)% 100%% %REQ(:PATH)% %NOTHING% %BYTES_SENT".into();
        let text = with_line(hostile, "", |logged| line(logged, &LogFormat::Text(format)));
        assert_eq!(
            text,
            "ann 100% /x\\\" 200 -\\n[2026] \\\"GET /forged\\u{1b}[2J - %BYTES_SENT"
        );
        let fields = vec![("path".into(), "%REQ(:PATH)%".into())];
        let json = with_line(hostile, "", |logged| line(logged, &LogFormat::Json(fields)));
        assert_eq!(json.lines().count(), 1);
        let value: Json = serde_json::from_str(&json).unwrap();
        assert_eq!(value["path"], hostile);
    }

    #[test]
    fn a_record_of_otlp_has_every_field_that_is_known_in_order() {
        let record: LogRecord = with_line("/a", "", |logged| read(&record(logged)));
        let text = |value: Option<Value>| match value {
            Some(Value::StringValue(text)) => text,
            other => panic!("{other:?}"),
        };
        let attributes: Vec<String> = record
            .attributes
            .into_iter()
            .map(|one| format!("{}={}", one.key, text(one.value.unwrap().value)))
            .collect();
        let expected = [
            "src.addr=10.0.0.1:4000",
            "dst.addr=10.0.0.2:8080",
            "dst.service=cart.shop.svc.cluster.local",
            "direction=waypoint",
            "protocol=http",
            "version=HTTP/1.1",
            "method=GET",
            "authority=cart",
            "path=/a",
            "status=503",
            "response_flags=UF",
            "route=HTTPRoute/shop/cart/0",
            "tries=2",
            "bytes_recv=3",
            "bytes_sent=4",
            "duration=12000us",
            "cause=connection refused",
        ];
        assert_eq!(attributes, expected);
        assert_eq!(text(record.body.unwrap().value), "request complete");
        assert_eq!(record.severity_number, SeverityNumber::Error as i32);
        assert_eq!(record.severity_text, "ERROR");
        assert!(record.time_unix_nano > 0);
        assert_eq!(record.time_unix_nano, record.observed_time_unix_nano);
    }

    #[test]
    fn secrets_are_in_no_form_of_a_log() {
        let format: Arc<str> = "%REQ(AUTHORIZATION)% %REQ(X-A?Cookie)%".into();
        with_line("/", "", |logged| {
            let text = line(logged, &LogFormat::Text(format));
            assert_eq!(text, "[redacted] [redacted]");
            let record: LogRecord = read(&record(logged));
            let everywhere = format!("{record:?} {}", line(logged, &LogFormat::Istio));
            assert!(!everywhere.contains(TOKEN), "{everywhere}");
        });
        let own = crate::logging::captured(crate::logging::Format::Json, "info", |_| {
            with_line("/", "", |logged| logged.own());
        });
        assert!(
            own.contains("request complete") && !own.contains(TOKEN),
            "{own}"
        );
    }
}
