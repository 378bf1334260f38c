//! One request, normalised once: routing, authorization, telemetry and the backend all see these bytes.
//!
//! ```text
//!   head as the codec gives it ──Request::new──► Request ──► table, policy, filters ──into_parts──► head for the backend
//!                                    └─► Refusal: 400, before anything has looked at it
//! ```
//!
//! What is normalised and why: `docs/design/0012-one-reading-of-a-request.md`. In short: the path as [`path`] has it, the
//! host in lower case without its port and final dot. The query and the header values stay as they were sent.

mod forwarded;
mod host;
mod path;
mod query;

use std::{borrow::Cow, sync::Arc};

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{self, AsHeaderName},
    request::Parts,
    uri::{self, Authority, PathAndQuery},
};

pub use self::{
    forwarded::{Upgrade, remote_ip, strip_hop_by_hop},
    path::{normalise as normalise_path, normalise_pattern},
};
use self::{host::Host, query::Params};
use crate::token::Token;

/// What the connection tells of a request, rather than its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The scheme of the connection; what the peer writes in `:scheme` or an absolute target is not believed.
    pub scheme: Scheme,
    /// The service's port that the client dialled.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URI of this scheme need not name.
    pub fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Why a request is refused before it is looked at. Always the peer's fault; always 400 (RFC 9112 section 3.2, RFC 9113
/// section 8.1.1); never to be tried again. The text goes into the access log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request has no Host header")]
    HostMissing,
    #[error("the request has {0} Host headers")]
    HostRepeated(usize),
    #[error("host {0:?} is no host name or address with a port")]
    Host(String),
    #[error("the request is for {authority:?} and its Host header says {host:?}")]
    HostsDiffer { authority: String, host: String },
    #[error("the target's scheme {0:?} is not http or https")]
    Scheme(String),
    #[error("the target {0:?} is not a path")]
    Target(String),
    #[error("the path has a % that no two hexadecimal digits follow")]
    PathEscape,
    #[error("the path has an encoded slash or backslash (%2F, %5C)")]
    PathEncodedSeparator,
    #[error("the path has a backslash")]
    PathBackslash,
    #[error("the path has a control character, encoded or not")]
    PathControl,
    #[error("the path encodes a character in more bytes than UTF-8 allows")]
    PathOverlong,
    #[error("the path has a byte above 127 that is not encoded")]
    PathNotAscii,
    #[error("the path has a dot segment with a parameter (..;)")]
    PathDotParameter,
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// A fixed word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::HostMissing => "host_missing",
            Self::HostRepeated(_) => "host_repeated",
            Self::Host(_) => "host_malformed",
            Self::HostsDiffer { .. } => "hosts_differ",
            Self::Scheme(_) => "scheme",
            Self::Target(_) => "target",
            Self::PathEscape => "path_escape",
            Self::PathEncodedSeparator => "path_encoded_separator",
            Self::PathBackslash => "path_backslash",
            Self::PathControl => "path_control",
            Self::PathOverlong => "path_overlong",
            Self::PathNotAscii => "path_not_ascii",
            Self::PathDotParameter => "path_dot_parameter",
        }
    }
}

/// What a filter wrote and no request can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a request's {1}")]
pub struct Unwritable(pub String, pub &'static str);

/// How the head of a request is written for the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// HTTP/1: the target is a path, the host a header.
    Origin,
    /// HTTP/2: the target has scheme and authority, and there is no `Host` header.
    Absolute,
}

/// The head of a request, normalised.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    version: Version,
    seen: Seen,
    host: Host,
    target: Target,
    headers: HeaderMap,
    extensions: Extensions,
    sender: Arc<Sender>,
    token: Option<Arc<Token>>,
}

/// Who sends a request, as far as routes ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    pub namespace: Option<Arc<str>>,
    /// Of its workload; only those whose keys some rule refers to.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
    /// Its identity, without `spiffe://`.
    pub principal: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Target {
    Path(PathAndQuery),
    /// CONNECT to the host itself: there is no path.
    Tunnel,
}

impl Request {
    /// Reads and normalises the head of a request.
    pub fn new(parts: Parts, seen: Seen) -> Result<Self, Refusal> {
        let Parts {
            method,
            uri,
            version,
            mut headers,
            extensions,
            ..
        } = parts;
        if let Some(scheme) = uri.scheme_str()
            && !["http", "https"].contains(&scheme)
        {
            return Err(Refusal::Scheme(scheme.to_owned()));
        }
        let host = Host::of(&uri, version, &mut headers)?;
        let target = Target::new(&method, &uri)?;
        Ok(Self {
            method,
            version,
            seen,
            host,
            target,
            headers,
            extensions,
            sender: Arc::default(),
            token: None,
        })
    }

    /// What the request's user proved to be, where a token was verified.
    pub fn token(&self) -> Option<&Arc<Token>> {
        self.token.as_ref()
    }

    /// Puts what a verified token says.
    pub fn set_token(&mut self, token: Arc<Token>) {
        self.token = Some(token);
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn scheme(&self) -> Scheme {
        self.seen.scheme
    }

    /// The service's port that the client dialled.
    pub fn port(&self) -> u16 {
        self.seen.port
    }

    /// The host that the request is for: lower case, without port and final dot. Empty where HTTP/1.0 named none.
    pub fn host(&self) -> &str {
        self.host.normalised()
    }

    /// The host as it was sent, with its port if it had one.
    pub fn authority(&self) -> &str {
        self.host.as_sent()
    }

    /// The normalised path, without the query. `*` for `OPTIONS *`; empty for a CONNECT without a path.
    pub fn path(&self) -> &str {
        match &self.target {
            Target::Path(path) => path.path(),
            Target::Tunnel => "",
        }
    }

    /// The query as it was sent.
    pub fn query(&self) -> Option<&str> {
        match &self.target {
            Target::Path(path) => path.query(),
            Target::Tunnel => None,
        }
    }

    /// Path and query as they go to the backend.
    pub fn path_and_query(&self) -> &str {
        match &self.target {
            Target::Path(path) => path.as_str(),
            Target::Tunnel => "",
        }
    }

    /// The value of the first query parameter of this name; names and values percent-decoded.
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        Params::new(self.query())
            .find_map(|(key, value)| (*key == *name.as_bytes()).then_some(value))
    }

    /// All query parameters in their order, percent-decoded.
    pub fn query_params(&self) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
        Params::new(self.query())
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// Who sends; nobody in particular before [`Self::set_sender`].
    pub fn source(&self) -> &Sender {
        &self.sender
    }

    pub fn set_sender(&mut self, sender: Arc<Sender>) {
        self.sender = sender;
    }

    /// The texts of a claim of the request's verified token, by its names from the outermost in; of a list each entry.
    /// Nothing where there is no token, or no such claim.
    pub fn claim(&self, path: &[Arc<str>]) -> Vec<Cow<'_, str>> {
        let token = self.token.as_deref().into_iter();
        token
            .flat_map(|token| token.claim_texts(path))
            .map(Cow::Borrowed)
            .collect()
    }

    /// All values of a header as one, joined by commas (cookies by semicolons); `None` if there is none. `name` is in
    /// lower case. `host` and `:authority` are the authority as sent, `:method`, `:path`, `:scheme` what HTTP/2 calls so.
    pub fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let text = match name {
            "host" | ":authority" => Some(self.authority()),
            ":method" => Some(self.method.as_str()),
            ":path" => Some(self.path_and_query()),
            ":scheme" => Some(self.seen.scheme.as_str()),
            _ => return joined(&self.headers, name, name == "cookie"),
        };
        text.filter(|text| !text.is_empty())
            .map(|text| Cow::Borrowed(text.as_bytes()))
    }

    /// [`Self::header`] by a parsed name, except for the host and what begins with a colon.
    pub(crate) fn header_named(&self, name: &HeaderName) -> Option<Cow<'_, [u8]>> {
        joined(&self.headers, name, *name == header::COOKIE)
    }

    /// Sends the request on under another authority.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), Unwritable> {
        let unwritable = || Unwritable(authority.to_owned(), "authority");
        let host = Host::new(authority).map_err(|_refusal| unwritable())?;
        if self.headers.contains_key(header::HOST) {
            let value = HeaderValue::from_str(authority).map_err(|_invalid| unwritable())?;
            self.headers.insert(header::HOST, value);
        }
        self.host = host;
        Ok(())
    }

    /// Sends the request on with another path and its own query. The path is taken as it is.
    pub fn set_path(&mut self, path: &str) -> Result<(), Unwritable> {
        let unwritable = || Unwritable(path.to_owned(), "path");
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return Err(unwritable());
        }
        let target = match self.query() {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        };
        self.target = Target::Path(target.map_err(|_invalid| unwritable())?);
        Ok(())
    }

    /// Sends the request on without the query parameters of which `keep` says no to the decoded name.
    pub fn retain_query(&mut self, keep: impl Fn(&[u8]) -> bool) -> Result<(), Unwritable> {
        let Some(query) = self.query() else {
            return Ok(());
        };
        let name = |param: &str| {
            let sent = param.split_once('=').map_or(param, |(name, _)| name);
            keep(&query::decoded(sent))
        };
        let kept: Vec<&str> = query.split('&').filter(|param| name(param)).collect();
        let kept = kept.join("&");
        self.set_query(Some(kept.as_str()).filter(|kept| !kept.is_empty()))
    }

    /// Sends the request on with its path and another query, or none.
    pub fn set_query(&mut self, query: Option<&str>) -> Result<(), Unwritable> {
        let Target::Path(target) = &self.target else {
            return Ok(());
        };
        let text = match query {
            Some(query) => format!("{}?{query}", target.path()),
            None => target.path().to_owned(),
        };
        let target = PathAndQuery::try_from(text);
        self.target = Target::Path(
            target.map_err(|_invalid| Unwritable(query.unwrap_or_default().to_owned(), "query"))?,
        );
        Ok(())
    }

    /// The head for the next hop. Without an authority (HTTP/1.0) no form has one: the caller sets it first.
    pub fn into_parts(self, form: Form) -> Result<Parts, Unwritable> {
        let uri = self.uri(form)?;
        let mut headers = self.headers;
        match form {
            Form::Absolute => {
                headers.remove(header::HOST);
            }
            Form::Origin
                if self.host.as_sent().is_empty() || headers.contains_key(header::HOST) => {}
            Form::Origin => {
                let authority = self.host.as_sent();
                let value = HeaderValue::from_str(authority)
                    .map_err(|_invalid| Unwritable(authority.to_owned(), "authority"))?;
                headers.insert(header::HOST, value);
            }
        }
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method;
        parts.uri = uri;
        parts.version = self.version;
        parts.headers = headers;
        parts.extensions = self.extensions;
        Ok(parts)
    }

    fn uri(&self, form: Form) -> Result<Uri, Unwritable> {
        let mut parts = uri::Parts::default();
        let authority = self.host.as_sent();
        if !authority.is_empty()
            && (form == Form::Absolute || matches!(self.target, Target::Tunnel))
        {
            parts.authority = Some(
                Authority::try_from(authority)
                    .map_err(|_invalid| Unwritable(authority.to_owned(), "authority"))?,
            );
        }
        if let Target::Path(path) = &self.target {
            parts.path_and_query = Some(path.clone());
            if parts.authority.is_some() {
                parts.scheme = Some(match self.seen.scheme {
                    Scheme::Http => uri::Scheme::HTTP,
                    Scheme::Https => uri::Scheme::HTTPS,
                });
            }
        }
        Uri::from_parts(parts)
            .map_err(|_invalid| Unwritable(self.path_and_query().to_owned(), "target"))
    }
}

impl Target {
    fn new(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        let refused = || Err(Refusal::Target(uri.to_string()));
        let Some(sent) = uri.path_and_query() else {
            return if *method == Method::CONNECT {
                Ok(Self::Tunnel)
            } else {
                refused()
            };
        };
        match sent.path() {
            "*" if *method == Method::OPTIONS => Ok(Self::Path(sent.clone())),
            path if path.starts_with('/') => match path::normalise(path)? {
                Cow::Borrowed(_) => Ok(Self::Path(sent.clone())),
                Cow::Owned(path) => {
                    let text = match sent.query() {
                        Some(query) => format!("{path}?{query}"),
                        None => path,
                    };
                    PathAndQuery::try_from(text)
                        .map(Self::Path)
                        .or_else(|_invalid| refused())
                }
            },
            _ => refused(),
        }
    }
}

/// Whether a text can be the authority of a request: a host, alone or with a port.
pub(crate) fn is_authority(text: &str) -> bool {
    Host::new(text).is_ok()
}

/// The values of a header as one.
fn joined(headers: &HeaderMap, name: impl AsHeaderName, cookie: bool) -> Option<Cow<'_, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first));
    };
    let joint: &[u8] = if cookie { b"; " } else { b"," };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.extend_from_slice(joint);
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

#[cfg(test)]
mod tests;
