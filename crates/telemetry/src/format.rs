//! Access logs in the forms that Istio's providers ask for: Envoy's `%COMMANDS%` in a text or in a JSON object, and log
//! records of OTLP.
//!
//! What comes from a peer is escaped where it is put in, so that no line is forged and no terminal is told anything.

use std::borrow::Cow;

use karst_model::telemetry::LogFormat;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, any_value::Value},
    logs::v1::{LogRecord, SeverityNumber},
};
use serde_json::{Map, Value as Json};

use crate::{export::text_attribute, trace::Context};

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

/// A connection or request that has ended.
pub trait Logged {
    /// As the program's own log has it.
    fn own(&self);
    /// The value of an Envoy command (`BYTES_SENT`), and of its argument in lower case. `None`: nothing is known.
    fn command(&self, name: &str, argument: &str) -> Option<Cow<'_, str>>;
    /// What expressions see.
    fn attributes(&self) -> Map<String, Json>;
    /// Every field with its name, in the order of the program's own log. Absent ones are left out.
    fn fields(&self) -> Vec<(&'static str, Cow<'_, str>)>;
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

/// A log record of OTLP.
pub(crate) fn record(logged: &dyn Logged) -> LogRecord {
    let severity = match logged.is_error() {
        true => SeverityNumber::Error,
        false => SeverityNumber::Info,
    };
    let context = logged.context();
    let attributes = logged.fields();
    LogRecord {
        time_unix_nano: logged.ended(),
        observed_time_unix_nano: logged.ended(),
        severity_number: severity.into(),
        severity_text: if logged.is_error() { "ERROR" } else { "INFO" }.to_owned(),
        body: Some(AnyValue {
            value: Some(Value::StringValue(logged.message().to_owned())),
        }),
        attributes: attributes
            .iter()
            .map(|(key, value)| text_attribute(key, value))
            .collect(),
        trace_id: context.map(|c| c.trace.to_vec()).unwrap_or_default(),
        span_id: context.map(|c| c.span.to_vec()).unwrap_or_default(),
        flags: context.map_or(0, |c| c.sampled.into()),
        ..LogRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
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
    fn secrets_are_in_no_form_of_a_log() {
        let format: Arc<str> = "%REQ(AUTHORIZATION)% %REQ(X-A?Cookie)%".into();
        with_line("/", "", |logged| {
            let text = line(logged, &LogFormat::Text(format));
            assert_eq!(text, "[redacted] [redacted]");
            let everywhere = format!("{:?} {}", record(logged), line(logged, &LogFormat::Istio));
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
