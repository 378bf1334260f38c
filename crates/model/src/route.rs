//! Routes: what a waypoint does with a request or a connection, from whichever API it was written in.
//!
//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute of the Gateway API and Istio's VirtualService lower into these types:
//! proxies know one model. One [`Route`] is one object and one discovery resource, so that a small edit is a
//! small push. Which rule a request takes (precedence and merging over all routes of a service) is `karst-routing`; here
//! are only the words.
//!
//! Source of the semantics: Gateway API v1.6, `HTTPRouteSpec`, `GRPCRouteSpec`, `TLSRouteSpec`, `TCPRouteSpec`, GEP-1426
//! (routes whose parent is a Service); Istio reference, "Virtual Service".

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    name::{NameError, ServiceKey},
    policy::IpBlock,
    traffic::SessionPersistence,
};

/// Key of a route: `<kind>/<namespace>/<name>` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteKey {
    pub kind: RouteKind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// The object that a route was written as. The order is the order of precedence between kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RouteKind {
    GrpcRoute,
    HttpRoute,
    TlsRoute,
    TcpRoute,
    /// The `http` part of one. Its matches are tried in the order in which they are written.
    VirtualService,
    /// The `tls` part of one.
    VirtualServiceTls,
    /// The `tcp` part of one.
    VirtualServiceTcp,
}

impl RouteKind {
    pub const ALL: [Self; 7] = [
        Self::GrpcRoute,
        Self::HttpRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::VirtualService,
        Self::VirtualServiceTls,
        Self::VirtualServiceTcp,
    ];

    /// The kind as its API spells it, and the part of the object where that makes several routes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::VirtualService => "VirtualService",
            Self::VirtualServiceTls => "VirtualService.tls",
            Self::VirtualServiceTcp => "VirtualService.tcp",
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

impl FromStr for RouteKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError(text.to_owned());
        let mut parts = text.split('/');
        let (Some(kind), Some(namespace), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let known = RouteKind::ALL.into_iter().find(|k| k.as_str() == kind);
        if namespace.is_empty() || name.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            kind: known.ok_or_else(wrong)?,
            namespace: namespace.into(),
            name: name.into(),
        })
    }
}

/// One route object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub key: RouteKey,
    /// When the object was made, in seconds since the epoch: the older of two routes wins a tie.
    pub created: i64,
    /// The services whose traffic the route takes. A parent that was refused is not here.
    pub attachments: Vec<Attachment>,
    pub rules: RouteRules,
}

/// One parent of a route that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    pub service: ServiceKey,
    /// The service's own port (not the target port); `None`: every port.
    pub port: Option<u16>,
    pub clients: Clients,
}

/// Whose requests an attachment takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Clients {
    /// Everybody's: the route lives in the namespace of the service (a producer's route).
    All,
    /// Those of clients of this namespace, which is the route's own (a consumer's route). For them it replaces the
    /// producer's routes.
    Namespace(Arc<str>),
}

/// The rules, in the order in which they were written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteRules {
    Http(Vec<HttpRule>),
    /// By the SNI of a TLS ClientHello.
    Tls(Vec<TlsRule>),
    Tcp(Vec<TcpRule>),
}

/// What happens to the requests that one of the matches takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRule {
    pub name: Option<Arc<str>>,
    /// OR of matches. The lowering writes the default of the API out, so an empty list takes nothing.
    pub matches: Vec<HttpMatch>,
    /// Applied in this order.
    pub filters: Vec<HttpFilter>,
    /// Empty, or all weights zero: 500, unless a filter answers.
    pub backends: Vec<WeightedBackend>,
    pub timeouts: Timeouts,
    pub retry: Option<RetryPolicy>,
    /// Requests of one session stay with one endpoint; `None`: as the backend's own traffic policy says.
    pub session: Option<SessionPersistence>,
}

/// AND of its fields; an empty one takes every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HttpMatch {
    /// OR; empty: any host. Compared without case, without port.
    pub hosts: Vec<HostMatch>,
    pub path: Option<PathMatch>,
    /// As sent: methods compare with case.
    pub method: Option<Arc<str>>,
    /// Also by the names `:authority`, `:scheme` and `:method`, with case.
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Exact paths and prefixes are compared without case.
    pub ignore_path_case: bool,
    /// The service's port that the client dialled.
    pub port: Option<u16>,
    pub source: SourceMatch,
    /// Of the request's verified token; without one every claim is absent.
    pub claims: Vec<ClaimMatch>,
}

/// Who sends. AND of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceMatch {
    /// Namespace of the client's identity, or of its workload where it has none.
    pub namespace: Option<Arc<str>>,
    /// Labels of its workload.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Its identity, without `spiffe://`, as policies write principals.
    pub principal: Option<ValueMatch>,
}

/// A claim of a token: a text, a number, a truth value, or a list of which any entry may match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimMatch {
    /// Names from the outermost in.
    pub path: Vec<Arc<str>>,
    pub value: ValueMatch,
}

/// A host of a match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostMatch {
    Exact(Arc<str>),
    /// `*.example.com`, kept as `.example.com`: one label or more in front.
    Suffix(Arc<str>),
}

/// How the path is compared: with the normalised path, without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Element by element: `/abc` takes `/abc` and `/abc/d`, not `/abcd`.
    Prefix(Arc<str>),
    /// Matches the whole path; a linear-time engine.
    Regex(Arc<str>),
    /// Letter by letter: `/abc` takes `/abcd` too.
    Start(Arc<str>),
}

/// One header of a match. All values of a name count as one, joined by a comma.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: Arc<str>,
    pub value: ValueMatch,
}

/// One query parameter of a match; of a name given twice the first counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueryMatch {
    /// With case, percent-decoded.
    pub name: Arc<str>,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ValueMatch {
    Exact(Arc<str>),
    /// Matches the whole value; a linear-time engine.
    Regex(Arc<str>),
    Prefix(Arc<str>),
    Present,
    Absent,
    /// What the inner one does not take: a value that is not there, too, unless the inner one takes that.
    Not(Box<Self>),
}

/// One step that changes or answers a request or a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HttpFilter {
    RequestHeaders(HeaderChanges),
    ResponseHeaders(HeaderChanges),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
    /// Answers itself.
    Direct(DirectResponse),
    Fault(Fault),
}

/// Errors made on purpose: first the delay, then the abort, each for its own share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultDelay {
    pub wait: Duration,
    /// Of a million requests this many.
    pub millionths: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultAbort {
    pub answer: FaultAnswer,
    /// Of a million requests this many.
    pub millionths: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultAnswer {
    /// A status of HTTP: 200 to 599.
    Http(u16),
    /// A status of gRPC: 0 to 16.
    Grpc(u8),
}

/// Set replaces, add appends, remove takes all values away; in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChanges {
    pub set: Vec<(Arc<str>, Arc<str>)>,
    pub add: Vec<(Arc<str>, Arc<str>)>,
    pub remove: Vec<Arc<str>>,
}

/// A redirect; what is `None` stays as the request has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    /// `None`: the well-known port of `scheme` if there is one, else the request's.
    pub port: Option<u16>,
    /// Where `port` is `None`: the request's, whatever `scheme` is.
    pub keep_port: bool,
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    pub host: Option<Arc<str>>,
    pub path: Option<PathChange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathChange {
    Full(Arc<str>),
    /// Replaces what the rule's prefix match took: by segments after [`PathMatch::Prefix`], letter by letter after
    /// [`PathMatch::Start`], the whole path after other matches.
    Prefix(Arc<str>),
    /// Replaces all that the expression finds. `\1` to `\9` stand for its groups, `\0` for what it found, `\\` for a
    /// backslash.
    Regex {
        pattern: Arc<str>,
        substitution: Arc<str>,
    },
}

/// A copy of the request for another backend, whose answer nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    pub backend: Backend,
    /// Share of requests: numerator over denominator, the denominator above zero and not below the numerator.
    pub numerator: u32,
    pub denominator: u32,
    /// The copy's host gets `-shadow` behind its name.
    pub shadow_host: bool,
}

/// Cross-origin rules (Fetch standard, "CORS protocol"; Gateway API GEP-1767).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cors {
    pub allow_origins: Vec<OriginMatch>,
    pub allow_credentials: bool,
    /// `*` stands for any.
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    /// `None`: the browser's own.
    pub max_age_seconds: Option<u32>,
    /// Preflights from an origin that is not allowed go on to the backend.
    pub forward_unmatched: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OriginMatch {
    Any,
    Exact(Arc<str>),
    /// `https://*.example.com`: scheme with `://`, and what follows the star.
    Wildcard {
        scheme: Arc<str>,
        suffix: Arc<str>,
    },
    Prefix(Arc<str>),
    /// Matches the whole origin; a linear-time engine.
    Regex(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Arc<str>,
    /// Why, for the access log: for example that a filter of the rule is not supported.
    pub reason: Arc<str>,
}

/// One of the backends of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedBackend {
    pub backend: Backend,
    /// Share among the weights of the rule. Zero: none.
    pub weight: u32,
    /// Applied after the rule's own, to requests that go to this backend.
    pub filters: Vec<HttpFilter>,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Backend {
    Service {
        service: ServiceKey,
        /// The service's own port; 0: the one that the client dialled.
        port: u16,
        /// Only endpoints of this subset of it.
        subset: Option<Arc<str>>,
    },
    /// The reference does not resolve or is not permitted: its share of the requests is answered with 500. The text says
    /// why, for the access log.
    Invalid(Arc<str>),
}

/// `None`: no limit. A zero of the API (which means "no limit") is lowered to `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From the request's last header to the response's last byte; retries included. 504 before the response has begun.
    pub request: Option<Duration>,
    /// The same for each try.
    pub backend_request: Option<Duration>,
}

/// When a request is sent again (GEP-1731; Istio reference, `HTTPRetry`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Tries after the first. Zero: none, not even of what was never sent.
    pub attempts: u32,
    /// Statuses that are tried again.
    pub statuses: Vec<u16>,
    /// Every status from 500 on is tried again.
    pub on_server_error: bool,
    /// Statuses of gRPC that are tried again.
    pub grpc_statuses: Vec<u8>,
    /// Shortest pause before a retry.
    pub backoff: Option<Duration>,
    /// A connection that fails or is reset before the response counts as a retriable failure.
    pub on_connection_failure: bool,
    /// Later tries may go to another locality, though this one has healthy endpoints.
    pub remote_localities: bool,
    /// Later tries go to endpoints that were not tried yet, while there are such.
    pub avoid_previous: bool,
}

impl Default for RetryPolicy {
    /// No tries; of the rest what the Gateway API leaves open.
    fn default() -> Self {
        Self {
            attempts: 0,
            statuses: Vec::new(),
            on_server_error: false,
            grpc_statuses: Vec::new(),
            backoff: None,
            on_connection_failure: true,
            remote_localities: false,
            avoid_previous: true,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRule {
    pub name: Option<Arc<str>>,
    /// OR; empty: any.
    pub hosts: Vec<HostMatch>,
    /// OR; empty: any. Beside `hosts`.
    pub matches: Vec<ConnectionMatch>,
    pub backends: Vec<WeightedBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRule {
    pub name: Option<Arc<str>>,
    /// OR; empty: any.
    pub matches: Vec<ConnectionMatch>,
    pub backends: Vec<WeightedBackend>,
}

/// What a connection must be like. AND of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionMatch {
    /// Server names of TLS. OR; empty: any.
    pub hosts: Vec<HostMatch>,
    /// The service's port that the client dialled.
    pub port: Option<u16>,
    /// Of the address that the client dialled. OR; empty: any.
    pub destinations: Vec<IpBlock>,
    /// Of the client's own address.
    pub client: Option<IpBlock>,
    pub source: SourceMatch,
}
