//! What a server has been told to do and what it has seen: tests make it fail, count what reached it, and leave things
//! with it that others fetch.
//!
//! ```text
//!   /told?status=503       every answer has this status from now on; 200 is as before
//!   /seen                  Requests=N, AtOnce=N: what was asked so far and at most at once
//!   PUT, GET /kept/NAME    a text that the server keeps
//!   /authorize/...         200 for `x-ext-authz: allow`, else 403: an authorizer of Envoy's HTTP protocol
//!   /via/HOST[:PORT]/...   asks `http://HOST[:PORT]/...` with the caller's deadline, and answers what that answers
//!   /certificate           the certificate of this server's TLS ports, as PEM
//! ```

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use karst_runtime::supervise::spawn_connection;

use super::http::{Body, full, text};
use crate::{client::dial, describe::hostname};

/// Texts that are kept at most.
const KEPT: usize = 64;
/// Headers that say how long the caller waits.
const DEADLINES: [&str; 2] = ["x-envoy-expected-rq-timeout-ms", "x-request-id"];

/// One for all ports.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// 0: as the request asks.
    status: AtomicU16,
    requests: AtomicU64,
    now: AtomicU64,
    at_once: AtomicU64,
    kept: Mutex<HashMap<String, Bytes>>,
    pub(crate) certificate: String,
}

/// Counts one request for as long as it lives.
pub(crate) struct Counted<'a>(&'a Told);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

impl Told {
    pub(crate) fn with_certificate(certificate: String) -> Self {
        Self {
            certificate,
            ..Self::default()
        }
    }

    pub(crate) fn count(&self) -> Counted<'_> {
        self.requests.fetch_add(1, SeqCst);
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.at_once.fetch_max(now, SeqCst);
        Counted(self)
    }

    /// What every answer has, if anything was told.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(SeqCst)).ok()
    }

    /// The answer to one of the paths above; the request back where it is none of them.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Request<Incoming>> {
        let path = request.uri().path().to_owned();
        Ok(match path.as_str() {
            "/told" => self.tell(request.uri()),
            "/seen" => self.seen(),
            "/certificate" => text(StatusCode::OK, self.certificate.clone()),
            _ if path.starts_with("/authorize/") => authorize(request.headers()),
            _ if path.starts_with("/kept/") => self.keep(path, request).await,
            _ if path.starts_with("/via/") => return via(request).await,
            _ => return Err(request),
        })
    }

    fn tell(&self, uri: &Uri) -> Response<Body> {
        let status = uri.query().and_then(|query| query.strip_prefix("status="));
        let Some(status) = status.and_then(|status| status.parse::<u16>().ok()) else {
            return text(
                StatusCode::BAD_REQUEST,
                "expected ?status= and a number, 200 for none\n",
            );
        };
        let status = if status == 200 { 0 } else { status };
        self.status.store(status, SeqCst);
        text(StatusCode::OK, "told\n")
    }

    fn seen(&self) -> Response<Body> {
        let (requests, at_once) = (self.requests.load(SeqCst), self.at_once.load(SeqCst));
        let lines = format!("Requests={requests}\nAtOnce={at_once}\n");
        text(StatusCode::OK, lines)
    }

    async fn keep(&self, path: String, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::PUT {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            return match kept.get(&path) {
                Some(body) => Response::new(full(body.clone())),
                None => text(StatusCode::NOT_FOUND, "nothing is kept here\n"),
            };
        }
        // A header rather than the body, so that any client can leave something.
        let left = request.headers().get("x-keep").cloned();
        let Ok(body) = request.into_body().collect().await else {
            return text(StatusCode::BAD_REQUEST, "the request body ended early\n");
        };
        let left = left.map(|left| Bytes::copy_from_slice(left.as_bytes()));
        let body = left.unwrap_or_else(|| body.to_bytes());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&path) {
            return text(StatusCode::INSUFFICIENT_STORAGE, "no room\n");
        }
        kept.insert(path, body);
        text(StatusCode::OK, "kept\n")
    }
}

fn authorize(headers: &HeaderMap) -> Response<Body> {
    let allowed = headers
        .get("x-ext-authz")
        .is_some_and(|value| value == "allow");
    let (status, result) = match allowed {
        true => (StatusCode::OK, "allowed"),
        false => (StatusCode::FORBIDDEN, "denied"),
    };
    let mut answer = text(status, format!("denied by {}\n", hostname()));
    let result = HeaderValue::from_static(result);
    answer
        .headers_mut()
        .insert("x-ext-authz-check-result", result);
    answer
}

/// The next of a chain: what it answers, below what came here.
async fn via(request: Request<Incoming>) -> Result<Response<Body>, Request<Incoming>> {
    let rest = request.uri().path().trim_start_matches("/via/");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let query = request.uri().query().map(|query| format!("?{query}"));
    let next = format!("http://{host}/{path}{}", query.unwrap_or_default());
    let Ok(next) = next.parse::<Uri>() else {
        return Err(request);
    };
    let mut own = format!("Via={}\n", hostname());
    let deadline = request.headers().get(DEADLINES[0]);
    if let Some(deadline) = deadline.and_then(|value| value.to_str().ok()) {
        own += &format!("Deadline={deadline}\n");
    }
    Ok(match ask(&next, request.headers()).await {
        Ok((status, body)) => text(status, format!("{own}{body}")),
        Err(error) => text(
            StatusCode::BAD_GATEWAY,
            format!("{own}Error={next}: {error}\n"),
        ),
    })
}

async fn ask(next: &Uri, headers: &HeaderMap) -> anyhow::Result<(StatusCode, String)> {
    let io = TokioIo::new(dial(next).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    spawn_connection("echo-via", async move { drop(connection.await) });
    let path = next.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path);
    request = request.header(
        header::HOST,
        next.authority().map_or("", |host| host.as_str()),
    );
    for name in DEADLINES {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer = sender.send_request(request.body(full(""))?).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
