//! What an external authorizer decided, and what of its wishes is followed. Headers that say how a message is sent, or to
//! whom, are not an authorizer's to set.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use karst_routing::request::Request;
use karst_telemetry::metrics::http::RequestFlag;

use crate::http::refusal::Refusal;

pub(crate) enum Verdict {
    Allow(Box<Changes>),
    Deny(Box<Denied>),
}

/// What becomes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Set,
    Append,
    SetIfAbsent,
    SetIfPresent,
}

/// What changes on a request that is allowed.
#[derive(Default)]
pub(crate) struct Changes {
    /// Names in lower case, before `headers`.
    pub(crate) remove: Vec<String>,
    pub(crate) headers: Vec<(String, Bytes, How)>,
    /// For the client.
    pub(crate) response: Vec<(String, Bytes, How)>,
    pub(crate) query_remove: Vec<String>,
    pub(crate) query_set: Vec<(String, String)>,
}

/// What the client gets instead of an answer of the service.
pub(crate) struct Denied {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Bytes, How)>,
    pub(crate) body: Bytes,
}

/// What is to be done later, after authorizers have allowed a request.
#[derive(Default)]
pub(crate) struct Told {
    response: Vec<(HeaderName, HeaderValue, How)>,
    /// The route is to be chosen again.
    pub(crate) reroute: bool,
}

impl Told {
    /// This after what others said before.
    pub(crate) fn after(mut self, before: Option<Box<Self>>) -> Self {
        let mut response = before.map(|before| before.response).unwrap_or_default();
        response.append(&mut self.response);
        Self { response, ..self }
    }

    /// Puts what authorizers want the client to have.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        for (name, value, how) in self.response {
            put(headers, name, value, how);
        }
    }
}

impl Changes {
    /// How many headers were refused.
    pub(crate) fn apply(self, request: &mut Request, told: &mut Told) -> u64 {
        let mut refused = 0;
        for name in &self.remove {
            match HeaderName::try_from(name.as_str()).ok().filter(is_free) {
                Some(name) => drop(request.headers_mut().remove(name)),
                None => refused += 1,
            }
        }
        for (name, value, how) in self.headers {
            match read(&name, &value) {
                Some((name, value)) => put(request.headers_mut(), name, value, how),
                None => refused += 1,
            }
        }
        for (name, value, how) in self.response {
            match read(&name, &value) {
                Some((name, value)) => told.response.push((name, value, how)),
                None => refused += 1,
            }
        }
        let replaced = |key: &[u8]| {
            let is = |name: &String| name.as_bytes() == key;
            self.query_remove.iter().any(is) || self.query_set.iter().any(|(name, _)| is(name))
        };
        // What is left of a query that could be read can be written.
        let _ = request.retain_query(|key| !replaced(key));
        if !self.query_set.is_empty() {
            let set = self.query_set.iter();
            let set = set.map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
            let all: Vec<String> = request
                .query()
                .map(str::to_owned)
                .into_iter()
                .chain(set)
                .collect();
            let _ = request.set_query(Some(&all.join("&")));
        }
        refused
    }
}

impl Denied {
    pub(crate) fn into_refusal(self, cause: String) -> Refusal {
        let status = StatusCode::from_u16(self.status).ok();
        let status = status.filter(|status| (300..600).contains(&status.as_u16()));
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let mut headers = HeaderMap::new();
        for (name, value, how) in self.headers {
            if let Some((name, value)) = read(&name, &value) {
                put(&mut headers, name, value, how);
            }
        }
        let mut refusal = Refusal::new(status, RequestFlag::Unauthorized, cause);
        refusal.headers = Some(Box::new(headers));
        refusal.body = Some(self.body);
        refusal
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue, how: How) {
    let is_there = headers.contains_key(&name);
    match how {
        How::Append => drop(headers.append(name, value)),
        How::Set => drop(headers.insert(name, value)),
        How::SetIfAbsent if !is_there => drop(headers.insert(name, value)),
        How::SetIfPresent if is_there => drop(headers.insert(name, value)),
        How::SetIfAbsent | How::SetIfPresent => {}
    }
}

fn read(name: &str, value: &Bytes) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(name).ok().filter(is_free)?;
    let value = HeaderValue::from_maybe_shared(value.clone()).ok()?;
    Some((name, value))
}

/// Whether an authorizer may set or remove a header.
fn is_free(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 7] = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let of_hop = [
        "keep-alive",
        "proxy-connection",
        "karst-client",
        "http2-settings",
    ];
    !FRAMING.contains(name) && !of_hop.contains(&name.as_str())
}

fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
