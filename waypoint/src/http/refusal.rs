//! Answers of the waypoint itself: a status, a response flag, and a short text that names the cause. A gRPC client gets
//! the same as a gRPC status.

use std::borrow::Cow;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{self, HeaderName},
};
use karst_routing::filter::fault::Abort;
use karst_telemetry::metrics::http::RequestFlag;

use super::answer::Content;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer instead of an endpoint's.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) flag: RequestFlag,
    /// For the access log, and for the client where nothing else is said to it.
    pub(crate) cause: Cow<'static, str>,
    /// The client is told this and not the cause: it would learn from that how to get past.
    pub(crate) told: Option<&'static str>,
    pub(crate) headers: Option<Box<HeaderMap>>,
    /// The client gets this text instead of the cause.
    pub(crate) body: Option<Bytes>,
    /// Nothing went wrong: the route wants this answer.
    pub(crate) wanted: bool,
    /// For a gRPC client, where it is not what `status` says.
    pub(crate) grpc: Option<u8>,
}

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        flag: RequestFlag,
        cause: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            flag,
            cause: cause.into(),
            told: None,
            headers: None,
            body: None,
            wanted: false,
            grpc: None,
        }
    }

    /// The client's request cannot be understood.
    pub(crate) fn bad_request(cause: String) -> Self {
        let flag = RequestFlag::DownstreamProtocol;
        Self::new(StatusCode::BAD_REQUEST, flag, cause)
    }

    /// The configuration leads nowhere.
    pub(crate) fn internal(cause: String) -> Self {
        let flag = RequestFlag::NoCluster;
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, flag, cause)
    }

    /// An answer that a route's filter gives.
    pub(crate) fn wanted(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        Self {
            status,
            flag: RequestFlag::None,
            cause: "".into(),
            told: None,
            headers: Some(Box::new(headers)),
            body: Some(body),
            wanted: true,
            grpc: None,
        }
    }

    /// Policy does not allow the request. `why` names policies and rules, so it stays in the access log, in `karst why`
    /// and in what is observed; the client gets Istio's words.
    pub(crate) fn denied(why: &str) -> Self {
        const TOLD: &str = "RBAC: access denied";
        Self {
            told: Some(TOLD),
            ..Self::new(
                StatusCode::FORBIDDEN,
                RequestFlag::None,
                format!("{TOLD}: {why}"),
            )
        }
    }

    /// The end of a gRPC response that has begun.
    pub(super) fn into_trailers(self) -> HeaderMap {
        let headers = self.into_grpc().into_parts().0.headers;
        let named = |name: &HeaderName| *name == GRPC_STATUS || *name == GRPC_MESSAGE;
        let kept = headers
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)));
        kept.filter(|(name, _)| named(name)).collect()
    }

    /// What the client reads.
    fn words(&self) -> &str {
        self.told.unwrap_or(&self.cause)
    }

    /// A fault of a route wants this answer.
    pub(crate) fn aborted(abort: Abort) -> Self {
        let (status, grpc) = match abort {
            Abort::Http(status) => (status, None),
            Abort::Grpc(status) => (http_status(status), Some(status)),
        };
        Self {
            grpc,
            ..Self::new(status, RequestFlag::FaultInjected, "fault filter abort")
        }
    }

    /// The response for an HTTP client.
    pub(crate) fn into_response(self) -> Response<Content> {
        let text = match &self.body {
            Some(body) => body.clone(),
            None => Bytes::from(format!("{}\n", self.words())),
        };
        let mut response = Response::new(Content::Fixed((!text.is_empty()).then_some(text)));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.map(|headers| *headers).unwrap_or_default();
        let has_body = matches!(response.body(), Content::Fixed(Some(_)));
        if has_body && !response.headers().contains_key(header::CONTENT_TYPE) {
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
        }
        response
    }

    /// The response for a gRPC client: trailers only, status 200.
    pub(crate) fn into_grpc(self) -> Response<Content> {
        let message = percent_encoded(self.words());
        let mut response = Response::new(Content::Fixed(None));
        let headers = response.headers_mut();
        *headers = self.headers.map(|headers| *headers).unwrap_or_default();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(
            GRPC_STATUS,
            HeaderValue::from(
                self.grpc
                    .map_or_else(|| grpc_status(self.status), u16::from),
            ),
        );
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert(GRPC_MESSAGE, message);
        }
        response
    }
}

/// Statuses as gRPC maps them ("HTTP to gRPC Status Code Mapping").
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The other way round, for a client that does not speak gRPC (Envoy, `Grpc::Utility::grpcToHttpStatus`).
fn http_status(grpc: u8) -> StatusCode {
    match grpc {
        0 => StatusCode::OK,
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The status that a response's header or trailer says.
pub(super) fn grpc_status_of(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Printable ASCII without the percent sign stays (gRPC over HTTP/2, "Status-Message").
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_a_grpc_status() {
        let refusal = Refusal::new(
            StatusCode::NOT_FOUND,
            RequestFlag::NoRoute,
            "no route: 100%\n",
        );
        let response = refusal.into_grpc();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-message"], "no route: 100%25%0A");
    }
}
