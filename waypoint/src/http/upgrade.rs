//! Requests that become something else than HTTP: WebSocket and other upgrades, CONNECT. The waypoint authorizes and
//! routes the request; then it carries bytes.

use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use karst_routing::request::Upgrade;
use karst_runtime::supervise;
use karst_telemetry::metrics::http::RequestFlag;

use super::{
    answer::{Answer, Content},
    phases,
    record::Record,
};

/// What a request wants to become.
pub(super) enum Asked {
    Nothing,
    /// An `Upgrade` of HTTP/1.1.
    Upgrade(OnUpgrade),
    /// CONNECT, of any version, extended or not (RFC 8441).
    Connect(OnUpgrade),
}

impl Asked {
    pub(super) fn take(request: &mut Request<Incoming>) -> Self {
        let version = request.version();
        if *request.method() == Method::CONNECT {
            return Self::Connect(hyper::upgrade::on(request));
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
            Self::Nothing | Self::Connect(_) => Upgrade::Drop,
        }
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
        Asked::Connect(_) => {
            response.status().is_success() && !matches!(response.body(), Content::Fixed(_))
        }
    }
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
                let (conversation, original) = (record.conversation(), record.original.take());
                let revoked = async {
                    match &original {
                        Some(original) => phases::revoked(&conversation, original).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = carry(client, endpoint, &mut record) => {}
                    refusal = revoked => record.refused(
                        refusal.flag,
                        &format!("closed because policy changed: {}", refusal.cause),
                    ),
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
