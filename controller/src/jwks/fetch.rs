//! One fetch: an address, its redirects, and the text at the end. Everything is bounded: time, size, redirects, and who
//! may be asked. The address that was checked is the one that is connected to.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use karst_identity::tls::{HandshakeError, Inside, Origination, OriginationError};
use karst_index::KeySource;
use karst_model::traffic::{TlsMode, TrustAnchors, UpstreamTls};
use karst_policy::token::KeysError;
use karst_runtime::supervise;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{JwksConfig, address::is_public};

/// For one source, with its redirects.
const PATIENCE: Duration = Duration::from_secs(10);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of one answer.
const ANSWER_MAX: usize = 1 << 20;
const REDIRECTS_MAX: usize = 3;
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Why keys could not be fetched. The fault is the issuer's, the network's, or of whoever wrote the address.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{0:?} is no address of http or https")]
    Address(String),
    #[error("issuer {0:?} is no address: give the rule a jwksUri")]
    Issuer(String),
    #[error("host {0:?} is not known")]
    Resolve(String, #[source] io::Error),
    #[error(
        "host {0:?} has addresses of private networks only, and --jwks-allow-private is not set"
    )]
    Private(String),
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("TLS cannot be set up")]
    Tls(#[source] OriginationError),
    #[error("the server is not who it should be")]
    Handshake(#[source] HandshakeError),
    #[error("the server broke off")]
    Http(#[source] hyper::Error),
    #[error("the server answered {0}")]
    Status(u16),
    #[error("more than 3 redirects, or one from https to http")]
    Redirects,
    #[error("the answer is longer than 1 MiB")]
    TooLarge,
    #[error("no whole answer within {PATIENCE:?}")]
    Late,
    #[error("the answer is no text")]
    NoText,
    #[error("the issuer's configuration is none, or of another issuer")]
    Configuration,
    #[error("the answer holds no keys")]
    Keys(#[source] KeysError),
}

/// What one answer came to.
enum Got {
    Text(Bytes),
    Elsewhere(Uri),
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// Fetches keys.
pub struct Fetcher {
    allow_private: bool,
    /// Roots that we were given, then those of the system.
    trust: Vec<UpstreamTls>,
}

impl Fetcher {
    pub fn new(config: &JwksConfig) -> Self {
        let system = UpstreamTls::new(TlsMode::Simple);
        let extra = config.extra_roots.iter().map(|pem| UpstreamTls {
            anchors: TrustAnchors::Pem(pem.clone()),
            ..UpstreamTls::new(TlsMode::Simple)
        });
        // Those that we were given are fewer.
        Self {
            allow_private: config.allow_private,
            trust: extra.chain([system]).collect(),
        }
    }

    /// The text at a source.
    ///
    /// # Errors
    /// [`FetchError`]: whatever goes wrong on the way.
    pub async fn fetch(&self, source: &KeySource) -> Result<Arc<str>, FetchError> {
        match timeout(PATIENCE, self.read(source)).await {
            Ok(read) => read,
            Err(_elapsed) => Err(FetchError::Late),
        }
    }

    async fn read(&self, source: &KeySource) -> Result<Arc<str>, FetchError> {
        let text = match source {
            KeySource::Uri(uri) => self.get(uri).await?,
            KeySource::Issuer(issuer) => {
                if !issuer.starts_with("https://") && !issuer.starts_with("http://") {
                    return Err(FetchError::Issuer(issuer.to_string()));
                }
                let base = issuer.trim_end_matches('/');
                let text = self.get(&format!("{base}{DISCOVERY}")).await?;
                let read: Option<Configuration> = serde_json::from_slice(&text).ok();
                let read = read.ok_or(FetchError::Configuration)?;
                if read.issuer.trim_end_matches('/') != base {
                    return Err(FetchError::Configuration);
                }
                self.get(&read.jwks_uri).await?
            }
        };
        let text = std::str::from_utf8(&text).map_err(|_bytes| FetchError::NoText)?;
        Ok(text.into())
    }

    async fn get(&self, address: &str) -> Result<Bytes, FetchError> {
        let wrong = || FetchError::Address(address.to_owned());
        let mut uri: Uri = address.parse().map_err(|_invalid| wrong())?;
        for _ in 0..=REDIRECTS_MAX {
            match self.get_one(&uri).await? {
                Got::Text(text) => return Ok(text),
                Got::Elsewhere(next) => {
                    let downgrade =
                        uri.scheme_str() == Some("https") && next.scheme_str() != Some("https");
                    if downgrade {
                        return Err(FetchError::Redirects);
                    }
                    uri = next;
                }
            }
        }
        Err(FetchError::Redirects)
    }

    async fn get_one(&self, uri: &Uri) -> Result<Got, FetchError> {
        let wrong = || FetchError::Address(uri.to_string());
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|one| !one.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        if !is_tls {
            return exchange(self.connect(host, port).await?, uri).await;
        }
        let mut failed = FetchError::Late;
        for trust in &self.trust {
            match Origination::new(trust, host, Inside::Http1) {
                Err(error) => failed = FetchError::Tls(error),
                Ok(origination) => {
                    let stream = self.connect(host, port).await?;
                    match origination.connect(stream, HANDSHAKE_PATIENCE).await {
                        Ok(stream) => return exchange(stream, uri).await,
                        Err(error) => failed = FetchError::Handshake(error),
                    }
                }
            }
        }
        Err(failed)
    }

    /// Connects to the first address that may be asked and answers.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let found = lookup_host((host, port)).await;
        let found = found.map_err(|error| FetchError::Resolve(host.to_owned(), error))?;
        let mut failed = FetchError::Private(host.to_owned());
        for addr in found.filter(|addr| self.allow_private || is_public(addr.ip())) {
            match TcpStream::connect(addr).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = FetchError::Connect(addr, error),
            }
        }
        Err(failed)
    }
}

async fn exchange<IO>(io: IO, uri: &Uri) -> Result<Got, FetchError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(FetchError::Http)?;
    supervise::spawn_connection("fetch of keys", async move {
        // The response says what went wrong.
        let _ = connection.await;
    });
    let wrong = || FetchError::Address(uri.to_string());
    let host = uri.authority().ok_or_else(wrong)?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "karst-controller")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_invalid| wrong())?;
    let mut response = sender
        .send_request(request)
        .await
        .map_err(FetchError::Http)?;
    let status = response.status();
    if status.is_redirection() {
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        return location
            .and_then(|location| next(uri, location))
            .map(Got::Elsewhere)
            .ok_or(FetchError::Redirects);
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(status.as_u16()));
    }
    let mut text = BytesMut::new();
    while let Some(frame) = response.body_mut().frame().await {
        let Ok(data) = frame.map_err(FetchError::Http)?.into_data() else {
            continue;
        };
        if text.len() + data.len() > ANSWER_MAX {
            return Err(FetchError::TooLarge);
        }
        text.extend_from_slice(&data);
    }
    Ok(Got::Text(text.freeze()))
}

/// Where a redirect leads: an address, or a path of the same server.
fn next(from: &Uri, location: &str) -> Option<Uri> {
    let next: Uri = location.parse().ok()?;
    if next.scheme().is_some() {
        return Some(next);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(
        location
            .parse()
            .ok()
            .filter(|_| location.starts_with('/'))?,
    );
    Uri::from_parts(parts).ok()
}
