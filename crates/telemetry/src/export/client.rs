//! One message of OTLP to one collector, over gRPC or HTTP/protobuf.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use karst_model::{
    telemetry::{Collector, OtlpProtocol},
    traffic::UpstreamTls,
};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::outbox::Signal;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to a collector, secured or not.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that shakes hands.
pub type Securing =
    Pin<Box<dyn Future<Output = Result<Box<dyn Io>, Box<dyn StdError + Send + Sync>>> + Send>>;

/// How collectors are reached: discovery and those who make identities know.
pub trait Reach: Send + Sync {
    /// Where the collector is now. None: nobody is there.
    fn addresses(&self, collector: &Collector) -> Vec<SocketAddr>;

    /// Shakes hands with a collector on an open connection, as its `tls` says. Never called for one without.
    fn secure(&self, collector: &Collector, tls: &UpstreamTls, stream: TcpStream) -> Securing;
}

/// Shared by all clients.
pub type Connect = Arc<dyn Reach>;

/// A batch as it is sent.
pub(super) struct Batch {
    pub(super) signal: Signal,
    /// The request of the signal's service, encoded.
    pub(super) request: Bytes,
    /// Spans, log records or data points in it.
    pub(super) count: usize,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("collector {0} has no ready endpoint")]
    Nowhere(String),
    #[error("the collector cannot be reached")]
    Unreachable(#[source] Box<dyn StdError + Send + Sync>),
    #[error("there is no secure connection to the collector")]
    Insecure(#[source] Box<dyn StdError + Send + Sync>),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the collector answered {0}")]
    Refused(String),
    #[error("the collector is busy: {0}")]
    Busy(String),
}

impl SendError {
    /// Whether the same may be sent again.
    pub(super) fn may_retry(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// How many of a batch the collector has refused.
pub(super) type Rejected = i64;

/// A client of one collector; its connection is made when it is needed, and again after it broke.
pub(super) struct Client {
    collector: Collector,
    connect: Connect,
    channel: Channel,
    /// Of each export, as the provider has them.
    headers: HeaderMap,
    turn: Arc<AtomicUsize>,
}

impl Client {
    pub(super) fn new(collector: &Collector, connect: &Connect) -> Self {
        let turn = Arc::new(AtomicUsize::new(0));
        let connector = Connector {
            collector: collector.clone(),
            connect: connect.clone(),
            turn: turn.clone(),
        };
        let mut endpoint = Endpoint::from_static("http://collector")
            .user_agent("karst")
            .unwrap_or_else(|_static| Endpoint::from_static("http://collector"));
        if let Some(tls) = &collector.tls {
            let name = tls.sni.as_ref().unwrap_or(&collector.service.hostname);
            // A name that is none fails at the handshake, and is told there.
            if let Ok(origin) = format!("https://{name}").parse::<Uri>() {
                endpoint = endpoint.origin(origin);
            }
        }
        Self {
            collector: collector.clone(),
            connect: connect.clone(),
            channel: endpoint.connect_with_connector_lazy(connector),
            headers: headers_of(collector),
            turn,
        }
    }

    /// Sends one batch.
    pub(super) async fn send(&self, batch: &Batch) -> Result<Rejected, SendError> {
        let limit = Duration::from_millis(self.collector.timeout_ms.max(1).into());
        let sent = async {
            match &self.collector.protocol {
                OtlpProtocol::Grpc => self.grpc(batch).await,
                OtlpProtocol::Http { path } => self.http(batch, path).await,
            }
        };
        timeout(limit, sent)
            .await
            .unwrap_or(Err(SendError::TimedOut(limit)))
    }

    /// Whether one of its endpoints takes a connection, which is closed again.
    pub(super) async fn reach(&self) -> Result<(), SendError> {
        dial(&self.collector, &self.connect, &self.turn)
            .await
            .map(drop)
    }

    async fn grpc(&self, batch: &Batch) -> Result<Rejected, SendError> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready()
            .await
            .map_err(|error| SendError::Unreachable(error.into()))?;
        let mut request = tonic::Request::new(batch.request.clone());
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
        let path = PathAndQuery::from_static(batch.signal.rpc());
        let answer = grpc.unary(request, path, Encoded).await;
        let answer = answer.map_err(of_status)?.into_inner();
        Ok(rejected_of(batch.signal, answer))
    }

    async fn http(&self, batch: &Batch, traces: &str) -> Result<Rejected, SendError> {
        let unreachable = |error: Box<dyn StdError + Send + Sync>| SendError::Unreachable(error);
        let stream = dial(&self.collector, &self.connect, &self.turn).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.into()))?;
        let mut request = Request::post(path_of(traces, batch.signal))
            .header(header::HOST, &*self.collector.service.hostname)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, "karst")
            .body(Full::new(batch.request.clone()))
            .map_err(|error| unreachable(error.into()))?;
        request.headers_mut().extend(self.headers.clone());
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let answer = body.collect().await?.to_bytes();
            Ok::<_, Box<dyn StdError + Send + Sync>>((status, answer))
        };
        let (status, answer) = tokio::select! {
            done = exchange => done.map_err(unreachable)?,
            ended = connection => {
                let error: Box<dyn StdError + Send + Sync> = match ended {
                    Err(error) => error.into(),
                    Ok(()) => "it closed the connection".into(),
                };
                return Err(unreachable(error));
            }
        };
        match status.as_u16() {
            200..=299 => Ok(rejected_of(batch.signal, answer)),
            429 | 502 | 503 | 504 => Err(SendError::Busy(status.to_string())),
            _ => Err(SendError::Refused(status.to_string())),
        }
    }
}

/// The provider's headers, marked so that nothing on the way shows or remembers them. The controller hands out none that
/// no header can be.
fn headers_of(collector: &Collector) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &collector.headers {
        let made = HeaderName::from_bytes(name.as_bytes()).ok();
        let Some((made, mut value)) = made.zip(HeaderValue::from_str(value.expose()).ok()) else {
            tracing::warn!(collector = %collector.service, header = %name, "a header of this collector is none: it is sent without");
            continue;
        };
        value.set_sensitive(true);
        headers.append(made, value);
    }
    headers
}

/// Logs and metrics have paths beside that of traces.
fn path_of(traces: &str, signal: Signal) -> String {
    let base = traces.strip_suffix("traces").unwrap_or("/v1/");
    match signal {
        Signal::Spans => traces.to_owned(),
        Signal::Logs => format!("{base}logs"),
        Signal::Metrics => format!("{base}metrics"),
    }
}

/// An answer that cannot be read has rejected nothing.
fn rejected_of(signal: Signal, answer: Bytes) -> Rejected {
    let rejected = match signal {
        Signal::Spans => ExportTraceServiceResponse::decode(answer)
            .ok()
            .and_then(|a| a.partial_success)
            .map(|p| p.rejected_spans),
        Signal::Logs => ExportLogsServiceResponse::decode(answer)
            .ok()
            .and_then(|a| a.partial_success)
            .map(|p| p.rejected_log_records),
        Signal::Metrics => ExportMetricsServiceResponse::decode(answer)
            .ok()
            .and_then(|a| a.partial_success)
            .map(|p| p.rejected_data_points),
    };
    rejected.unwrap_or(0)
}

/// Messages that are bytes already, and answers that are read later.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(message.len());
        to.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What OTLP's specification says of each code.
fn of_status(status: Status) -> SendError {
    match status.code() {
        Code::Unavailable => SendError::Unreachable(status.into()),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => SendError::Busy(status.code().to_string()),
        _ => SendError::Refused(format!("{}: {}", status.code(), status.message())),
    }
}

/// A connection to one of the collector's endpoints, each in its turn.
async fn dial(
    collector: &Collector,
    connect: &Connect,
    turn: &AtomicUsize,
) -> Result<Box<dyn Io>, SendError> {
    let addresses = connect.addresses(collector);
    let at = turn.fetch_add(1, Ordering::Relaxed);
    let Some(address) = addresses.get(at % addresses.len().max(1)) else {
        return Err(SendError::Nowhere(collector.service.to_string()));
    };
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(SendError::Unreachable(error.into())),
        Err(_elapsed) => return Err(SendError::TimedOut(CONNECT_TIMEOUT)),
    };
    let Some(tls) = &collector.tls else {
        return Ok(Box::new(stream));
    };
    match timeout(CONNECT_TIMEOUT, connect.secure(collector, tls, stream)).await {
        Ok(Ok(secured)) => Ok(secured),
        Ok(Err(error)) => Err(SendError::Insecure(error)),
        Err(_elapsed) => Err(SendError::TimedOut(CONNECT_TIMEOUT)),
    }
}

/// What makes the connections of gRPC.
struct Connector {
    collector: Collector,
    connect: Connect,
    turn: Arc<AtomicUsize>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let (collector, connect) = (self.collector.clone(), self.connect.clone());
        let turn = self.turn.clone();
        Box::pin(async move {
            let stream = dial(&collector, &connect, &turn).await;
            stream.map(TokioIo::new).map_err(io::Error::other)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_metrics_go_beside_traces() {
        assert_eq!(path_of("/v1/traces", Signal::Logs), "/v1/logs");
        assert_eq!(
            path_of("/otlp/v1/traces", Signal::Metrics),
            "/otlp/v1/metrics"
        );
        assert_eq!(path_of("/custom", Signal::Spans), "/custom");
        assert_eq!(path_of("/custom", Signal::Logs), "/v1/logs");
    }
}
