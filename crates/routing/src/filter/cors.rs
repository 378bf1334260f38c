//! Cross-origin answers: which headers a preflight and an actual response carry.
//!
//! Source: the Fetch standard ("HTTP extensions, CORS protocol") and `HTTPCORSFilter` of the Gateway API. Where the latter
//! leaves a choice: a preflight from an origin that is not allowed is answered with 204 and no CORS header, an origin
//! is echoed unless everybody may come without credentials, and a wildcard with credentials echoes what was asked for.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use karst_model::route::{self, OriginMatch};

use super::Unusable;
use crate::{pattern::Pattern, request::Request};

/// CORS rules with their headers written out.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Vec<Origin>,
    /// Preflights from elsewhere go on.
    forward_unmatched: bool,
    credentials: bool,
    methods: List,
    headers: List,
    expose: List,
    max_age: Option<HeaderValue>,
}

#[derive(Clone, Debug)]
enum Origin {
    Any,
    Text(OriginMatch),
    Pattern(Pattern),
}

/// A list of names as a response header has it.
#[derive(Clone, Debug)]
enum List {
    None,
    Any,
    Names(HeaderValue),
}

/// What CORS has to say about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOutcome {
    /// No origin, or one that is not allowed: the request goes on, and the response gets no CORS header.
    NotCors,
    /// Answer this, and ask no backend.
    Preflight(StatusCode, HeaderMap),
    /// The request goes on; [`put_into`] puts these into its response.
    Actual(HeaderMap),
}

/// Puts CORS headers into a response: they replace the backend's own of the same names, except that what the backend
/// varies by stays.
pub fn put_into(response: &mut HeaderMap, cors: &HeaderMap) {
    for (name, value) in cors {
        if name == header::VARY {
            response.append(name, value.clone());
        } else {
            response.insert(name, value.clone());
        }
    }
}

impl Cors {
    pub(super) fn compile(cors: &route::Cors) -> Result<Self, Unusable> {
        Ok(Self {
            origins: cors
                .allow_origins
                .iter()
                .map(Origin::compile)
                .collect::<Result<_, _>>()?,
            forward_unmatched: cors.forward_unmatched,
            credentials: cors.allow_credentials,
            methods: List::new(&cors.allow_methods, header::ACCESS_CONTROL_ALLOW_METHODS)?,
            headers: List::new(&cors.allow_headers, header::ACCESS_CONTROL_ALLOW_HEADERS)?,
            expose: List::new(&cors.expose_headers, header::ACCESS_CONTROL_EXPOSE_HEADERS)?,
            max_age: cors.max_age_seconds.map(HeaderValue::from),
        })
    }

    /// Says whether the request is a preflight, an actual request from an allowed origin, or neither.
    pub fn handle(&self, request: &Request) -> CorsOutcome {
        let headers = request.headers();
        let Some(origin) = headers.get(header::ORIGIN) else {
            return CorsOutcome::NotCors;
        };
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = asked.filter(|_| *request.method() == Method::OPTIONS);
        let allowed = self.allows(origin);
        match (preflight, allowed) {
            (Some(method), true) => CorsOutcome::Preflight(
                StatusCode::NO_CONTENT,
                self.preflight(origin, method, request),
            ),
            (Some(_), false) if self.forward_unmatched => CorsOutcome::NotCors,
            (Some(_), false) => CorsOutcome::Preflight(StatusCode::NO_CONTENT, HeaderMap::new()),
            (None, true) => CorsOutcome::Actual(self.common(origin)),
            (None, false) => CorsOutcome::NotCors,
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        self.origins.iter().any(|allowed| allowed.takes(origin))
    }

    /// Headers of preflights and actual responses.
    fn common(&self, origin: &HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let any = self.origins.iter().any(|one| matches!(one, Origin::Any));
        let everybody = !self.credentials && any;
        if everybody {
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                HeaderValue::from_static("*"),
            );
        } else {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::VARY, HeaderValue::from_static("origin"));
        }
        if self.credentials {
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
        // With credentials a star would mean a header of that name.
        let expose = self.expose.value(self.credentials, None);
        put(&mut headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
        headers
    }

    fn preflight(
        &self,
        origin: &HeaderValue,
        method: &HeaderValue,
        request: &Request,
    ) -> HeaderMap {
        let mut headers = self.common(origin);
        let asked = request
            .headers()
            .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let methods = self.methods.value(self.credentials, Some(method));
        put(&mut headers, header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let names = self.headers.value(self.credentials, asked);
        put(&mut headers, header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        put(
            &mut headers,
            header::ACCESS_CONTROL_MAX_AGE,
            self.max_age.clone(),
        );
        headers
    }
}

impl Origin {
    fn compile(origin: &OriginMatch) -> Result<Self, Unusable> {
        Ok(match origin {
            OriginMatch::Any => Self::Any,
            OriginMatch::Regex(text) => Self::Pattern(Pattern::new(text)?),
            OriginMatch::Exact(_) | OriginMatch::Wildcard { .. } | OriginMatch::Prefix(_) => {
                Self::Text(normalised(origin))
            }
        })
    }

    fn takes(&self, sent: &str) -> bool {
        let origin = without_default_port(sent);
        match self {
            Self::Any | Self::Text(OriginMatch::Any) => true,
            Self::Pattern(pattern) => pattern.matches(sent.as_bytes()),
            Self::Text(OriginMatch::Prefix(prefix)) => sent.starts_with(&**prefix),
            Self::Text(OriginMatch::Exact(exact)) => exact.eq_ignore_ascii_case(origin),
            Self::Text(OriginMatch::Wildcard { scheme, suffix }) => origin
                .get(..scheme.len())
                .zip(origin.get(scheme.len()..))
                .is_some_and(|(start, rest)| {
                    start.eq_ignore_ascii_case(scheme)
                        && rest.len() > suffix.len()
                        && rest
                            .get(rest.len() - suffix.len()..)
                            .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
                }),
            Self::Text(OriginMatch::Regex(_)) => false,
        }
    }
}

impl List {
    fn new(names: &[std::sync::Arc<str>], of: HeaderName) -> Result<Self, Unusable> {
        if names.is_empty() {
            return Ok(Self::None);
        }
        if names.iter().any(|name| &**name == "*") {
            return Ok(Self::Any);
        }
        let text = names.join(", ");
        HeaderValue::from_str(&text)
            .map(Self::Names)
            .map_err(|_invalid| Unusable::HeaderValue {
                name: of.to_string(),
                value: text,
            })
    }

    /// The value to send. "Any" is a star, or with credentials what was asked for.
    fn value(&self, credentials: bool, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any if credentials => asked.cloned(),
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Names(names) => Some(names.clone()),
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

fn normalised(origin: &OriginMatch) -> OriginMatch {
    match origin {
        OriginMatch::Any | OriginMatch::Prefix(_) | OriginMatch::Regex(_) => origin.clone(),
        OriginMatch::Exact(text) => OriginMatch::Exact(without_default_port(text).into()),
        OriginMatch::Wildcard { scheme, suffix } => {
            let default = if scheme.starts_with("https") {
                ":443"
            } else {
                ":80"
            };
            OriginMatch::Wildcard {
                scheme: scheme.clone(),
                suffix: suffix.strip_suffix(default).unwrap_or(suffix).into(),
            }
        }
    }
}

/// An origin without a port that its scheme implies.
fn without_default_port(origin: &str) -> &str {
    let default = match origin.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => ":443",
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => ":80",
        _ => return origin,
    };
    origin.strip_suffix(default).unwrap_or(origin)
}
