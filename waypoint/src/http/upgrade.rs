//! Requests that become something else than HTTP: WebSocket and other upgrades, CONNECT. The waypoint authorizes and
//! routes the request; then it carries bytes.
//!
//! What HTTP/1 asks for with `Upgrade` in a GET, HTTP/2 asks for with CONNECT and a `:protocol` (RFC 8441). Both are one
//! and the same request: policies, routes and logs see the GET, and an endpoint gets what its version of HTTP knows.

use std::{future::poll_fn, task::Poll};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{
    body::Incoming,
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use karst_routing::request::Upgrade;
use karst_runtime::supervise;
use karst_telemetry::metrics::http::RequestFlag;

use rand::RngExt as _;

use super::{
    Version as Spoken,
    answer::{Answer, Content},
    record::Record,
};

/// What a request wants to become.
pub(super) enum Asked {
    Nothing,
    /// An `Upgrade` of HTTP/1.1.
    Upgrade(OnUpgrade),
    /// CONNECT, of any version.
    Connect(OnUpgrade),
    /// CONNECT of HTTP/2 with the protocol that it asks for.
    Extended(OnUpgrade, Protocol),
}

impl Asked {
    pub(super) fn take(request: &mut Request<Incoming>) -> Self {
        let version = request.version();
        if *request.method() == Method::CONNECT {
            let protocol = request.extensions().get::<Protocol>().cloned();
            let upgrade = hyper::upgrade::on(&mut *request);
            let Some(protocol) = protocol else {
                return Self::Connect(upgrade);
            };
            *request.method_mut() = Method::GET;
            return Self::Extended(upgrade, protocol);
        }
        if version == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE) {
            return Self::Upgrade(hyper::upgrade::on(request));
        }
        Self::Nothing
    }

    /// Whether the request to upgrade goes on to the endpoint.
    pub(super) fn keep(&self) -> Upgrade {
        match self {
            Self::Upgrade(_) => Upgrade::Keep,
            Self::Nothing | Self::Connect(_) | Self::Extended(..) => Upgrade::Drop,
        }
    }

    /// Asks the endpoint for the protocol in the way of `version`.
    pub(super) fn translate(&self, parts: &mut Parts, version: Spoken) {
        let Self::Extended(_, protocol) = self else {
            return;
        };
        if version == Spoken::Http2 {
            parts.method = Method::CONNECT;
            return;
        }
        parts.extensions.remove::<Protocol>();
        let Ok(named) = HeaderValue::from_str(protocol.as_str()) else {
            return;
        };
        let headers = &mut parts.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, named);
        if protocol.as_str().eq_ignore_ascii_case("websocket")
            && let Ok(key) = HeaderValue::try_from(websocket_key())
        {
            headers.insert(header::SEC_WEBSOCKET_KEY, key);
        }
    }

    /// Whether the response says that the endpoint did something else than what was asked for, where the client would take
    /// it for a yes.
    pub(super) fn is_misunderstood(&self, response: &Response<Content>) -> bool {
        let of_http1 = matches!(response.body(), Content::Http1(_));
        matches!(self, Self::Extended(..)) && of_http1 && response.status().is_success()
    }

    /// Whether the endpoint must be asked with HTTP/1.
    pub(super) fn is_http1_upgrade(&self) -> bool {
        matches!(self, Self::Upgrade(_))
    }
}

/// Whether the endpoint has agreed.
pub(super) fn is_upgrade(asked: &Asked, response: &Response<Content>) -> bool {
    match asked {
        Asked::Nothing => false,
        Asked::Upgrade(_) => response.status() == StatusCode::SWITCHING_PROTOCOLS,
        Asked::Extended(..) if matches!(response.body(), Content::Http1(_)) => {
            response.status() == StatusCode::SWITCHING_PROTOCOLS
        }
        Asked::Connect(_) | Asked::Extended(..) => {
            response.status().is_success() && !matches!(response.body(), Content::Fixed(_))
        }
    }
}

/// 16 random bytes in Base64 (RFC 6455, section 4.1).
fn websocket_key() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut rng = rand::rng();
    let mut letter = |step: usize| {
        let index: usize = rng.random_range(0..64 / step) * step;
        char::from(LETTERS[index])
    };
    let mut key: String = (0..21).map(|_| letter(1)).collect();
    // The last letter stands for two bits.
    key.push(letter(16));
    key.push_str("==");
    key
}

/// Answers the client and carries bytes from then on; the record ends with them.
pub(super) fn join(
    asked: Asked,
    mut record: Box<Record>,
    mut response: Response<Content>,
) -> Response<Answer> {
    let of_endpoint = hyper::upgrade::on(&mut response);
    let of_client = match asked {
        Asked::Upgrade(upgrade) | Asked::Connect(upgrade) => upgrade,
        Asked::Extended(upgrade, _) => {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                *response.status_mut() = StatusCode::OK;
            }
            let headers = response.headers_mut();
            for name in [
                header::CONNECTION,
                header::UPGRADE,
                header::SEC_WEBSOCKET_ACCEPT,
            ] {
                headers.remove(name);
            }
            upgrade
        }
        Asked::Nothing => return response.map(|content| Answer::new(content, Some(record), None)),
    };
    let (parts, content) = response.into_parts();
    let mut load = None;
    match content {
        Content::Http1(exchange) => {
            if let Some(connection) = exchange.into_connection() {
                connection.detach();
            }
        }
        Content::Http2(_, held) => load = Some(held),
        Content::Fixed(_) => {}
    }
    supervise::spawn_local_connection("upgraded connection", async move {
        let _load = load;
        match tokio::try_join!(of_client, of_endpoint) {
            Ok((client, endpoint)) => {
                let conversation = record.conversation();
                let mut admitted = record.admitted_by_policy.take();
                let revoked = poll_fn(|cx| match &mut admitted {
                    Some(admitted) => admitted.poll_revoked(&conversation, cx),
                    None => Poll::Pending,
                });
                tokio::select! {
                    () = carry(client, endpoint, &mut record) => {}
                    refusal = revoked => record.refused(refusal.flag, &refusal.cause),
                }
            }
            Err(error) => record.broken(RequestFlag::UpstreamTermination, &error),
        }
        record.finish();
    });
    Response::from_parts(parts, Answer::new(Content::Fixed(None), None, None))
}

async fn carry(client: Upgraded, endpoint: Upgraded, record: &mut Record) {
    let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
    match tokio::io::copy_bidirectional(&mut client, &mut endpoint).await {
        Ok((_sent, received)) => record.response_bytes += received,
        Err(error) => tracing::debug!(%error, "an upgraded connection broke"),
    }
}
