//! `extensionProviders` and `defaultProviders` of the mesh configuration.
//!
//! Source: Istio reference, "MeshConfig.ExtensionProvider".

use std::fmt;

use serde_json::{Map, Value};

/// Most headers of one provider.
const HEADERS_MAX: usize = 32;
/// Longest value of a header, in bytes.
const HEADER_BYTES_MAX: usize = 8192;
/// Headers that an export has by itself.
const OWN_HEADERS: [&str; 8] = [
    "connection",
    "content-length",
    "content-type",
    "grpc-timeout",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// How long one export may take where nobody says, milliseconds.
const TIMEOUT_MS: u32 = 10_000;

/// A provider under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtensionProvider {
    pub name: String,
    pub spec: ProviderSpec,
}

/// What a provider is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderSpec {
    /// `opentelemetry`, and `envoyOtelAls`, which is the same for logs alone.
    Opentelemetry(Otlp),
    Prometheus,
    /// `envoyFileAccessLog`.
    AccessLogFile(LogForm),
    /// `envoyExtAuthzHttp` and `envoyExtAuthzGrpc`, as written.
    ExtAuthzHttp(Value),
    ExtAuthzGrpc(Value),
}

/// An OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// `name.namespace.svc.cluster.local`, or `namespace/hostname`.
    pub service: String,
    pub port: u16,
    /// Path of HTTP; `None`: gRPC.
    pub http_path: Option<String>,
    pub timeout_ms: u32,
    /// `http.headers`, or `grpc.initialMetadata`: names in small letters.
    pub headers: Vec<(String, HeaderValue)>,
}

/// Where the value of a header stands.
#[derive(Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// As written; may be a secret.
    Text(String),
    /// `envName`: in this variable of the controller's environment.
    Environment(String),
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(not shown)"),
            Self::Environment(name) => write!(f, "${name}"),
        }
    }
}

/// The form of lines of `envoyFileAccessLog`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// Istio's default.
    Istio,
    Text(String),
    /// Key and text, in the order of the keys.
    Json(Vec<(String, String)>),
}

/// Names of the providers that hold where no Telemetry says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultProviders {
    pub tracing: Vec<String>,
    pub metrics: Vec<String>,
    pub access_logging: Vec<String>,
}

/// A complaint: field below the value that was read, and what is wrong.
pub(super) type Complaints = Vec<(String, String)>;

/// Reads `extensionProviders`. One that cannot be used is left out and told.
pub(super) fn read(value: &Value) -> (Vec<ExtensionProvider>, Complaints) {
    let mut complaints = Complaints::new();
    let Some(list) = value.as_array() else {
        return (
            Vec::new(),
            vec![(String::new(), "expected a list".to_owned())],
        );
    };
    let mut providers: Vec<ExtensionProvider> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let mut complain = |field: &str, message: String| {
            complaints.push((format!("[{index}]{field}"), message));
        };
        let name = entry.get("name").and_then(Value::as_str).unwrap_or("");
        if name.is_empty() {
            complain(".name", "missing: nothing can refer to it".to_owned());
            continue;
        }
        if providers.iter().any(|other| other.name == name) {
            complain(".name", format!("{name:?} is there twice: the first holds"));
            continue;
        }
        match one(entry, &mut complain) {
            Ok(spec) => providers.push(ExtensionProvider {
                name: name.to_owned(),
                spec,
            }),
            Err((field, message)) => complain(&field, message),
        }
    }
    (providers, complaints)
}

fn one(
    entry: &Value,
    complain: &mut impl FnMut(&str, String),
) -> Result<ProviderSpec, (String, String)> {
    let empty = Map::new();
    let fields = entry.as_object().unwrap_or(&empty);
    let mut kinds = fields.iter().filter(|(key, _)| *key != "name");
    let Some((kind, spec)) = kinds.next() else {
        return Err((
            String::new(),
            "says no kind, such as opentelemetry".to_owned(),
        ));
    };
    if kinds.next().is_some() {
        return Err((String::new(), "says more than one kind".to_owned()));
    }
    let below = |(field, message): (&str, String)| (format!(".{kind}.{field}"), message);
    match kind.as_str() {
        "opentelemetry" | "envoyOtelAls" => {
            for (field, _) in spec.as_object().unwrap_or(&empty) {
                if !matches!(field.as_str(), "service" | "port" | "http" | "grpc") {
                    complain(
                        &format!(".{kind}.{field}"),
                        "not honoured yet: sent as without it".to_owned(),
                    );
                }
            }
            otlp(spec).map(ProviderSpec::Opentelemetry).map_err(below)
        }
        "prometheus" => Ok(ProviderSpec::Prometheus),
        "envoyFileAccessLog" => log_form(spec)
            .map(ProviderSpec::AccessLogFile)
            .map_err(below),
        "envoyExtAuthzHttp" => Ok(ProviderSpec::ExtAuthzHttp(spec.clone())),
        "envoyExtAuthzGrpc" => Ok(ProviderSpec::ExtAuthzGrpc(spec.clone())),
        "zipkin" | "lightstep" | "datadog" | "stackdriver" | "skywalking" | "opencensus"
        | "envoyHttpAls" | "envoyTcpAls" | "sds" => Err((
            format!(".{kind}"),
            "not honoured yet: use opentelemetry; nothing is sent there".to_owned(),
        )),
        other => Err((
            format!(".{other}"),
            "unknown kind: nothing reads it".to_owned(),
        )),
    }
}

fn otlp(spec: &Value) -> Result<Otlp, (&'static str, String)> {
    let service = spec.get("service").and_then(Value::as_str).unwrap_or("");
    if service.is_empty() {
        return Err(("service", "missing".to_owned()));
    }
    let port = spec.get("port").and_then(Value::as_u64).unwrap_or(0);
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| ("port", format!("{port} is no port")))?;
    let http = spec.get("http").filter(|http| !http.is_null());
    let timeout = http
        .or_else(|| spec.get("grpc"))
        .and_then(|protocol| protocol.get("timeout"));
    let timeout_ms = match timeout.and_then(Value::as_str) {
        None => TIMEOUT_MS,
        Some(text) => milliseconds(text)
            .ok_or_else(|| ("timeout", format!("{text:?} is no duration such as 5s")))?,
    };
    let grpc = spec.get("grpc").filter(|_grpc| http.is_none());
    let headers = match (http, grpc) {
        (Some(http), _) => headers(http.get("headers")).map_err(|why| ("http.headers", why))?,
        (None, Some(grpc)) => {
            headers(grpc.get("initialMetadata")).map_err(|why| ("grpc.initialMetadata", why))?
        }
        (None, None) => Vec::new(),
    };
    let path = |http: &Value| {
        let path = http.get("path").and_then(Value::as_str).unwrap_or("");
        match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        }
    };
    Ok(Otlp {
        service: service.to_owned(),
        port,
        http_path: http.map(path),
        timeout_ms,
        headers,
    })
}

/// A list of `{name, value}` or `{name, envName}`. What is wrong is told by place and name, never with a value.
fn headers(list: Option<&Value>) -> Result<Vec<(String, HeaderValue)>, String> {
    let Some(list) = list.filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let list = list
        .as_array()
        .ok_or("expected a list of {name, value}: nothing is sent there")?;
    if list.len() > HEADERS_MAX {
        return Err(format!("more than {HEADERS_MAX}: nothing is sent there"));
    }
    let mut headers = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let wrong = |why: &str| format!("[{index}] {why}: nothing is sent there");
        headers.push(header(entry).map_err(|why| wrong(&why))?);
    }
    Ok(headers)
}

fn header(entry: &Value) -> Result<(String, HeaderValue), String> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str);
    let name = text("name").unwrap_or("").to_ascii_lowercase();
    let of_names = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(of_names) {
        return Err("has no name that a header can have".to_owned());
    }
    if OWN_HEADERS.contains(&&*name) || name.ends_with("-bin") {
        return Err(format!("{name} cannot be set"));
    }
    let value = match (text("value"), text("envName")) {
        (Some(text), None) if is_header_value(text) => HeaderValue::Text(text.to_owned()),
        (Some(_), None) => return Err(format!("{name} has a value that no header can have")),
        (None, Some(variable)) if !variable.is_empty() => {
            HeaderValue::Environment(variable.to_owned())
        }
        _ => return Err(format!("{name} needs either value or envName")),
    };
    Ok((name, value))
}

/// Whether a header can have this value: visible ASCII and blanks.
pub fn is_header_value(text: &str) -> bool {
    text.len() <= HEADER_BYTES_MAX && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

fn log_form(spec: &Value) -> Result<LogForm, (&'static str, String)> {
    let path = spec
        .get("path")
        .and_then(Value::as_str)
        .unwrap_or("/dev/stdout");
    if !matches!(path, "/dev/stdout" | "/dev/stderr") {
        return Err((
            "path",
            format!("{path} is no place to log to: use /dev/stdout"),
        ));
    }
    let format = spec.get("logFormat").filter(|format| !format.is_null());
    let Some(format) = format else {
        return Ok(LogForm::Istio);
    };
    if let Some(text) = format.get("text").and_then(Value::as_str) {
        return Ok(LogForm::Text(text.to_owned()));
    }
    let labels = format.get("labels").and_then(Value::as_object);
    let Some(labels) = labels else {
        return Err(("logFormat", "expected text or labels".to_owned()));
    };
    let mut fields = Vec::new();
    for (key, value) in labels {
        let Some(text) = value.as_str() else {
            return Err(("logFormat.labels", format!("{key} is no text")));
        };
        fields.push((key.clone(), text.to_owned()));
    }
    Ok(LogForm::Json(fields))
}

/// `5s`, `1.5s`, `250ms`, `1m`, `1h`.
pub fn milliseconds(text: &str) -> Option<u32> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let scale = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => return None,
    };
    let value = number.parse::<f64>().ok()? * scale;
    (value >= 1.0 && value <= f64::from(u32::MAX)).then_some(value as u32)
}

/// Reads `defaultProviders`.
pub(super) fn read_defaults(value: &Value) -> (DefaultProviders, Complaints) {
    let mut complaints = Complaints::new();
    let mut names = |field: &str| {
        let list = value.get(field).filter(|list| !list.is_null());
        let list = list.map_or(Some(Vec::new()), |list| {
            let texts = list.as_array()?.iter();
            texts.map(|one| one.as_str().map(str::to_owned)).collect()
        });
        list.unwrap_or_else(|| {
            complaints.push((format!(".{field}"), "expected a list of names".to_owned()));
            Vec::new()
        })
    };
    let defaults = DefaultProviders {
        tracing: names("tracing"),
        metrics: names("metrics"),
        access_logging: names("accessLogging"),
    };
    (defaults, complaints)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_is_read_or_told() {
        let (providers, complaints) = read(&json!([
            {"name": "otel", "opentelemetry": {"service": "otel.obs.svc.cluster.local", "port": 4317}},
            {"name": "http", "opentelemetry": {"service": "obs/otel", "port": 4318, "http": {"path": "v1/traces", "timeout": "250ms"}}},
            {"name": "prom", "prometheus": {}},
            {"name": "lines", "envoyFileAccessLog": {"path": "/dev/stdout", "logFormat": {"labels": {"a": "%PATH%"}}}},
            {"name": "zip", "zipkin": {"service": "z", "port": 1}},
            {"name": "otel", "prometheus": {}},
            {"name": "bad", "opentelemetry": {"service": "x", "port": 0}},
            {"name": "file", "envoyFileAccessLog": {"path": "/var/log/x"}},
            {"prometheus": {}},
        ]));
        let names: Vec<&str> = providers.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["otel", "http", "prom", "lines"]);
        assert_eq!(
            providers[1].spec,
            ProviderSpec::Opentelemetry(Otlp {
                service: "obs/otel".to_owned(),
                port: 4318,
                http_path: Some("/v1/traces".to_owned()),
                timeout_ms: 250,
                headers: Vec::new(),
            })
        );
        let fields: Vec<&str> = complaints.iter().map(|(field, _)| &**field).collect();
        assert_eq!(
            fields,
            [
                "[4].zipkin",
                "[5].name",
                "[6].opentelemetry.port",
                "[7].envoyFileAccessLog.path",
                "[8].name"
            ]
        );
    }

    #[test]
    fn headers_are_read_and_shown_to_nobody() {
        let otlp = |spec: Value| {
            let (providers, complaints) = read(&json!([{"name": "otel", "opentelemetry": spec}]));
            (providers, format!("{complaints:?}"))
        };
        let (providers, complaints) = otlp(json!({"service": "x", "port": 1, "http": {
            "path": "/v1/traces",
            "headers": [{"name": "Authorization", "value": "Bearer SECRET"}, {"name": "x-key", "envName": "KEY"}],
        }}));
        assert_eq!(complaints, "[]");
        let ProviderSpec::Opentelemetry(read) = &providers[0].spec else {
            panic!("{providers:?}");
        };
        assert_eq!(
            read.headers,
            [
                (
                    "authorization".to_owned(),
                    HeaderValue::Text("Bearer SECRET".to_owned())
                ),
                (
                    "x-key".to_owned(),
                    HeaderValue::Environment("KEY".to_owned())
                ),
            ]
        );
        assert!(!format!("{providers:?}").contains("SECRET"));
        let (providers, _) = otlp(json!({"service": "x", "port": 1, "grpc": {
            "initialMetadata": [{"name": "x-key", "value": "SECRET"}],
        }}));
        assert_eq!(providers.len(), 1);
        for wrong in [
            json!("SECRET"),
            json!([{"value": "SECRET"}]),
            json!([{"name": "a b", "value": "SECRET"}]),
            json!([{"name": "host", "value": "SECRET"}]),
            json!([{"name": "a", "value": "SECRET\r\nb: c"}]),
            json!([{"name": "a", "value": "SECRET", "envName": "B"}]),
            json!([{"name": "a"}]),
            json!(vec![json!({"name": "a", "value": "SECRET"}); 33]),
        ] {
            let http = json!({"path": "/", "headers": wrong});
            let (providers, told) = otlp(json!({"service": "x", "port": 1, "http": http}));
            assert!(providers.is_empty(), "{providers:?}");
            assert!(
                told.contains("http.headers") && !told.contains("SECRET"),
                "{told}"
            );
        }
    }

    #[test]
    fn defaults_are_lists_of_names() {
        let (defaults, complaints) =
            read_defaults(&json!({"tracing": ["otel"], "metrics": 1, "accessLogging": null}));
        assert_eq!(defaults.tracing, ["otel"]);
        assert_eq!(complaints.len(), 1);
    }
}
