//! Whom a request is for: one authority out of the target and the `Host` header, or a refusal.
//!
//! RFC 9112 section 3.2: a request of HTTP/1.1 has exactly one `Host`; an absolute target wins over it. RFC 9113 section
//! 8.3.1: `:authority` and `Host` must agree. The host is compared without case, port and final dot, and forwarded as
//! it was sent.

use std::ops::Range;

use http::{HeaderMap, HeaderValue, Uri, Version, header};

use super::Refusal;

/// An authority, and its host in the normal form.
#[derive(Clone, Debug)]
pub(super) struct Host {
    as_sent: Box<str>,
    normalised: Normalised,
}

#[derive(Clone, Debug)]
enum Normalised {
    /// Part of what was sent.
    Within(Range<usize>),
    Lowered(Box<str>),
}

impl Host {
    /// Reads an authority: `name`, `name:port`, `[v6]`, `[v6]:port`. An empty port counts as none (RFC 3986 section 3.2.3).
    pub(super) fn new(authority: &str) -> Result<Self, Refusal> {
        let refused = || Refusal::Host(authority.to_owned());
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, ""),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || (!port.is_empty() && port.parse::<u16>().is_err()) || !is_host(host) {
            return Err(refused());
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() {
            return Err(refused());
        }
        let normalised = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Normalised::Lowered(host.to_ascii_lowercase().into())
        } else {
            Normalised::Within(0..host.len())
        };
        Ok(Self {
            as_sent: authority.into(),
            normalised,
        })
    }

    fn none() -> Self {
        Self {
            as_sent: "".into(),
            normalised: Normalised::Within(0..0),
        }
    }

    /// The one authority of a request. An absolute target's replaces the `Host` header.
    pub(super) fn of(
        uri: &Uri,
        version: Version,
        headers: &mut HeaderMap,
    ) -> Result<Self, Refusal> {
        let in_header = Self::in_header(headers)?;
        let in_target = uri
            .authority()
            .map(|authority| Self::new(authority.as_str()))
            .transpose()?;
        if version > Version::HTTP_11 {
            return match (in_target, in_header) {
                (Some(target), Some(header)) if !target.agrees(&header) => {
                    Err(Refusal::HostsDiffer {
                        authority: target.as_sent.into(),
                        host: header.as_sent.into(),
                    })
                }
                (Some(host), _) | (None, Some(host)) => Ok(host),
                (None, None) => Err(Refusal::HostMissing),
            };
        }
        match (in_target, in_header) {
            (_, None) if version == Version::HTTP_11 => Err(Refusal::HostMissing),
            (Some(target), _) => {
                let value = HeaderValue::from_str(&target.as_sent)
                    .map_err(|_invalid| Refusal::Host(target.as_sent.to_string()))?;
                headers.insert(header::HOST, value);
                Ok(target)
            }
            (None, Some(header)) => Ok(header),
            (None, None) => Ok(Self::none()),
        }
    }

    fn in_header(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let mut values = headers.get_all(header::HOST).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let further = values.count();
        if further > 0 {
            return Err(Refusal::HostRepeated(further + 1));
        }
        let text = value.to_str().map_err(|_invalid| {
            Refusal::Host(String::from_utf8_lossy(value.as_bytes()).into_owned())
        })?;
        Self::new(text).map(Some)
    }

    fn agrees(&self, other: &Self) -> bool {
        self.as_sent.eq_ignore_ascii_case(&other.as_sent)
    }

    pub(super) fn as_sent(&self) -> &str {
        &self.as_sent
    }

    pub(super) fn normalised(&self) -> &str {
        match &self.normalised {
            Normalised::Within(range) => &self.as_sent[range.clone()],
            Normalised::Lowered(host) => host,
        }
    }
}

/// Narrower than RFC 3986: no escapes, no user information, no punctuation that a backend could read as a list.
fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    host.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}
