//! The CONNECT request: what a tunnel asks for, written by the client and parsed by the server.
//!
//! Only `:authority` says where the tunnel leads. `baggage`, `forwarded`, `traceparent` and `x-forwarded-network`
//! describe the source for telemetry; nothing in them takes part in authorization.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, request::Parts};
use karst_model::{
    identity::SpiffeId,
    workload::{Workload, WorkloadType},
};

use crate::error::RequestError;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = http::header::FORWARDED;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
const CLIENT: HeaderName = HeaderName::from_static("karst-client");

/// Longest hostname that DNS allows.
const HOSTNAME_MAX: usize = 253;

/// Where a tunnel leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `a.b.c.d:port` or `[v6]:port`; v4-mapped addresses are IPv4 here.
    Addr(SocketAddr),
    /// `hostname:port`: a service and its service port (through gateways between networks). Lower case.
    Host(Arc<str>, u16),
}

impl Authority {
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let bad = || RequestError::Authority(text.to_owned());
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| RequestError::Port(text.to_owned()))?;
        let port = parse_port(port).ok_or_else(|| RequestError::Port(text.to_owned()))?;
        if let Some(v6) = host.strip_prefix('[') {
            let v6 = v6.strip_suffix(']').ok_or_else(bad)?;
            let ip = v6
                .parse()
                .map_err(|_not_v6: std::net::AddrParseError| bad())?;
            return Ok(Self::Addr(karst_model::addr::canonical(SocketAddr::new(
                IpAddr::V6(ip),
                port,
            ))));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Addr(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        if !is_hostname(host) {
            return Err(bad());
        }
        Ok(Self::Host(host.to_ascii_lowercase().into(), port))
    }
}

/// Digits only (`u16::from_str` would take a sign), 1 to 65535.
fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Letters, digits, `-`, `_` in labels of 1 to 63; the last label is not all digits, as `10.0.0` and `1.2.3.4.5` are
/// mistyped addresses and no names. `*` is not a destination.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    text.len() <= HOSTNAME_MAX
        && text.split('.').all(label)
        && !text.rsplit('.').next().is_none_or(numeric)
}

/// A CONNECT request as the client writes it.
#[derive(Clone, Debug)]
pub struct TunnelRequest {
    pub authority: Authority,
    /// The source workload, encoded once per workload by [`Baggage::encode`].
    pub baggage: Option<HeaderValue>,
    pub forwarded: Option<Forwarded>,
    pub traceparent: Option<TraceParent>,
    /// Own network name, on the inner request of a tunnel through a gateway only.
    pub forwarded_network: Option<HeaderValue>,
    /// The client for whom a waypoint asks (`karst-client`): `<SPIFFE ID>;<address>`, either of them may be empty. For
    /// the destination's telemetry.
    pub client: Option<HeaderValue>,
}

impl TunnelRequest {
    /// A request without any description of its source.
    pub fn new(authority: Authority) -> Self {
        Self {
            authority,
            baggage: None,
            forwarded: None,
            traceparent: None,
            forwarded_network: None,
            client: None,
        }
    }

    pub(crate) fn to_http(&self) -> Result<Request<()>, http::Error> {
        let uri = Uri::builder()
            .authority(self.authority.to_string())
            .build()?;
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .body(())?;
        let headers = request.headers_mut();
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.clone());
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(FORWARDED, HeaderValue::try_from(forwarded.to_string())?);
        }
        if let Some(traceparent) = &self.traceparent {
            headers.insert(TRACEPARENT, HeaderValue::try_from(traceparent.to_string())?);
        }
        if let Some(network) = &self.forwarded_network {
            headers.insert(FORWARDED_NETWORK, network.clone());
        }
        if let Some(client) = &self.client {
            headers.insert(CLIENT, client.clone());
        }
        Ok(request)
    }
}

/// A CONNECT request as the server read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRequest {
    pub authority: Authority,
    /// Description of the source, for telemetry only.
    pub baggage: Baggage,
    /// The client's own socket, as the peer claims it: only to be shown, never decided on.
    pub forwarded_for: Option<SocketAddr>,
    /// Service that the client meant, for telemetry only.
    pub forwarded_host: Option<Arc<str>>,
    pub traceparent: Option<TraceParent>,
    /// Name of the network that the request came from, where it came through a gateway.
    pub forwarded_network: Option<Arc<str>>,
    /// The client for whom a waypoint asks, as it says: worth nothing from anybody but the workload's own waypoint.
    pub client: Option<Client>,
}

/// The client for whom a waypoint asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `None`: the client was not in the mesh.
    pub identity: Option<SpiffeId>,
    /// `None`: requests of several connections share the tunnel.
    pub addr: Option<SocketAddr>,
}

impl Client {
    /// Of `<SPIFFE ID>;<address>`, either of which may be empty; an unreadable part makes the whole worthless.
    fn parse(text: &str) -> Option<Self> {
        let (identity, addr) = text.split_once(';')?;
        let identity = match identity {
            "" => None,
            id => Some(id.parse().ok()?),
        };
        let addr = match addr {
            "" => None,
            addr => Some(addr.parse().ok()?),
        };
        Some(Self { identity, addr })
    }
}

/// Reads a request. Pure and total: any `parts` give a request or the reason to answer 400.
///
/// # Errors
/// Only the method and the authority can make a request bad; unreadable telemetry headers are left out.
pub fn parse(parts: &Parts) -> Result<InboundRequest, RequestError> {
    if parts.method != Method::CONNECT {
        return Err(RequestError::Method(parts.method.to_string()));
    }
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        return Err(RequestError::Protocol(protocol.as_str().to_owned()));
    }
    let authority = parts.uri.authority().ok_or(RequestError::NoAuthority)?;
    Ok(InboundRequest {
        authority: authority.as_str().parse()?,
        baggage: Baggage::parse(&parts.headers),
        forwarded_for: Forwarded::parse_for(&parts.headers),
        forwarded_host: Forwarded::parse_host(&parts.headers),
        traceparent: text(&parts.headers, &TRACEPARENT).and_then(|value| value.parse().ok()),
        forwarded_network: text(&parts.headers, &FORWARDED_NETWORK)
            .filter(|n| !n.is_empty())
            .map(Into::into),
        client: text(&parts.headers, &CLIENT).and_then(Client::parse),
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Description of a workload in the `baggage` header. For telemetry, never for authorization.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    pub cluster: Option<Arc<str>>,
    pub namespace: Option<Arc<str>>,
    pub workload: Option<(WorkloadType, Arc<str>)>,
    /// Canonical service name.
    pub service: Option<Arc<str>>,
    /// Canonical revision.
    pub revision: Option<Arc<str>>,
    pub region: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
}

/// Kinds of workload in baggage keys (`k8s.<kind>.name`).
const KINDS: [(WorkloadType, &str); 4] = [
    (WorkloadType::Deployment, "k8s.deployment.name"),
    (WorkloadType::CronJob, "k8s.cronjob.name"),
    (WorkloadType::Pod, "k8s.pod.name"),
    (WorkloadType::Job, "k8s.job.name"),
];

impl Baggage {
    pub fn of(workload: &Workload) -> Self {
        let some = |text: &Arc<str>| (!text.is_empty()).then(|| text.clone());
        Self {
            cluster: some(&workload.cluster_id),
            namespace: some(&workload.namespace),
            workload: some(&workload.workload_name).map(|name| (workload.workload_type, name)),
            service: some(&workload.canonical_name),
            revision: some(&workload.canonical_revision),
            region: some(&workload.locality.region),
            zone: some(&workload.locality.zone),
        }
    }

    /// The header value, keys in Istio's order, absent ones left out. `None` where nothing is known or a name cannot
    /// stand in a header.
    pub fn encode(&self) -> Option<HeaderValue> {
        let kind = self
            .workload
            .as_ref()
            .and_then(|(kind, _)| KINDS.iter().find(|(k, _)| k == kind))
            .map(|(_, key)| *key);
        let pairs = [
            (Some("k8s.cluster.name"), self.cluster.as_ref()),
            (Some("k8s.namespace.name"), self.namespace.as_ref()),
            (kind, self.workload.as_ref().map(|(_, name)| name)),
            (Some("service.name"), self.service.as_ref()),
            (Some("service.version"), self.revision.as_ref()),
            (Some("cloud.region"), self.region.as_ref()),
            (Some("cloud.availability_zone"), self.zone.as_ref()),
        ];
        let text: Vec<String> = pairs
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{}={}", key?, value?)))
            .collect();
        if text.is_empty() {
            None
        } else {
            HeaderValue::try_from(text.join(",")).ok()
        }
    }

    /// Reads all `baggage` lines. Unknown keys are ignored, `k=` means none, nothing is decoded or trimmed.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        let lines = headers
            .get_all(BAGGAGE)
            .into_iter()
            .filter_map(|line| line.to_str().ok());
        for (key, value) in lines
            .flat_map(|line| line.split(','))
            .filter_map(|pair| pair.split_once('='))
        {
            baggage.set(key, (!value.is_empty()).then(|| value.into()));
        }
        baggage
    }

    fn set(&mut self, key: &str, value: Option<Arc<str>>) {
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "service.name" => self.service = value,
            "service.version" => self.revision = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            _ => {
                if let Some((kind, _)) = KINDS.iter().find(|(_, name)| *name == key) {
                    self.workload = value.map(|name| (*kind, name));
                }
            }
        }
    }
}

/// The `forwarded` header: `for="<ip:port>";host=<service hostname>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Address of the application's socket at the source.
    pub source: SocketAddr,
    /// Service that the application meant.
    pub host: Option<Arc<str>>,
}

impl Forwarded {
    /// The first `host=` of all lines, quotes stripped, ASCII only.
    fn parse_host(headers: &HeaderMap) -> Option<Arc<str>> {
        Self::parameter(headers, "host")
            .filter(|host| host.len() <= HOSTNAME_MAX)
            .map(Into::into)
    }

    /// The first `for=` of all lines, if it is an address and a port (RFC 7239 section 6).
    fn parse_for(headers: &HeaderMap) -> Option<SocketAddr> {
        Self::parameter(headers, "for")?.parse().ok()
    }

    fn parameter<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        let lines = headers
            .get_all(FORWARDED)
            .into_iter()
            .filter_map(|line| line.to_str().ok());
        lines
            .flat_map(|line| line.split([';', ',']))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_matches('"'))
            .filter(|value| !value.is_empty())
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.source)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

/// W3C trace context of one proxied connection, not sampled: an id that both sides log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    pub trace: u128,
    pub span: u64,
}

/// A `traceparent` value that is not version 00 with non-zero ids.
#[derive(Debug, thiserror::Error)]
#[error("not a traceparent")]
pub struct TraceParentError;

impl TraceParent {
    /// A new random id.
    pub fn fresh() -> Self {
        Self {
            trace: rand::random::<u128>() | 1,
            span: rand::random::<u64>() | 1,
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, span, flags] = parts[..] else {
            return Err(TraceParentError);
        };
        let hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
            return Err(TraceParentError);
        }
        let parsed = u128::from_str_radix(trace, 16)
            .ok()
            .zip(u64::from_str_radix(span, 16).ok());
        match parsed {
            Some((trace, span)) if trace != 0 && span != 0 => Ok(Self { trace, span }),
            _ => Err(TraceParentError),
        }
    }
}

/// The `baggage` value of a response, where there is one.
pub(crate) fn response_baggage(headers: &HeaderMap) -> Option<Baggage> {
    headers
        .contains_key(BAGGAGE)
        .then(|| Baggage::parse(headers))
}

/// Puts the destination's baggage on a response.
pub(crate) fn put_baggage(headers: &mut HeaderMap, baggage: Option<HeaderValue>) {
    if let Some(baggage) = baggage {
        headers.insert(BAGGAGE, baggage);
    }
}

#[cfg(test)]
mod tests;
