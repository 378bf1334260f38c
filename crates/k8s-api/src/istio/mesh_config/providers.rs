//! `extensionProviders` and `defaultProviders` of the mesh configuration.
//!
//! Source: Istio reference, "MeshConfig.ExtensionProvider".

use serde_json::{Map, Value};

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
    let secret = http.and_then(|http| http.get("headers"));
    if secret.is_some() {
        return Err((
            "http.headers",
            "not honoured yet: nothing is sent there".to_owned(),
        ));
    }
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
    })
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
    fn defaults_are_lists_of_names() {
        let (defaults, complaints) =
            read_defaults(&json!({"tracing": ["otel"], "metrics": 1, "accessLogging": null}));
        assert_eq!(defaults.tracing, ["otel"]);
        assert_eq!(complaints.len(), 1);
    }
}
