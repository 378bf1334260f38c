//! Requests over connections that stay open, for "nobody fails while it happens" tests of HTTP: who answered, with which
//! status, what failed and how; and streams that must outlive whatever changes.
//!
//! ```text
//!   http://, h2c://, grpc://   requests one after another, `--at-once` of them side by side on an HTTP/2 connection
//!   ws://, stream://           a WebSocket or a gRPC stream in both directions per slot: a message, its echo, a pause
//! ```

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _, future::join_all, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use karst_runtime::supervise::spawn_connection;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    client::dial,
    say,
    server::{Body, EchoMessage, GRPC_METHOD, GRPC_STREAM_METHOD, full, grpc_frame, grpc_message},
    stop::Stop,
};

/// Before a connection that could not be opened is tried again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// What to ask, how much and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct RequestsArgs {
    /// http://, h2c://, grpc://, ws:// or stream://HOST[:PORT][/PATH]
    url: Uri,
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Header, NAME:VALUE (may be repeated)
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// Connections that stay open
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Requests or streams at once on each HTTP/2 connection
    #[arg(long, default_value_t = 1)]
    at_once: u32,
    /// Ends after this many requests
    #[arg(long)]
    count: Option<u64>,
    /// Ends after this many seconds
    #[arg(long, default_value_t = 10)]
    duration: u64,
    /// Ends before its time as soon as this file is there
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Milliseconds between two requests or messages of one slot
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Milliseconds that one answer may take
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    /// Count the answers that took at least so many milliseconds
    #[arg(long, default_value_t = 1_000)]
    slow_ms: u32,
}

#[derive(Default, Serialize)]
struct Report {
    requests: u64,
    /// Connections that were opened; more than asked for means that some were closed between two requests.
    connections: u64,
    statuses: BTreeMap<String, u64>,
    /// Answers by the pod that gave them.
    answered_by: BTreeMap<String, u64>,
    failures: u64,
    failures_by_kind: BTreeMap<String, u64>,
    /// Answers that took `--slow-ms` or longer.
    slow: u64,
    p50_us: u32,
    p99_us: u32,
    max_us: u32,
    #[serde(skip)]
    latencies_us: Vec<u32>,
}

struct Run {
    args: RequestsArgs,
    headers: HeaderMap,
    stop: Stop,
    report: Mutex<Report>,
    /// Requests that may still be begun.
    left: Mutex<u64>,
}

/// Prints one JSON object at the end. Failures are in the report, not in the exit code.
pub(crate) async fn run(args: RequestsArgs) -> anyhow::Result<()> {
    let run = Arc::new(Run {
        headers: headers(&args.headers)?,
        stop: Stop::new(args.duration, args.stop_file.clone()),
        report: Mutex::default(),
        left: Mutex::new(args.count.unwrap_or(u64::MAX)),
        args,
    });
    let scheme = run.args.url.scheme_str().unwrap_or_default();
    if !["http", "h2c", "grpc", "ws", "stream"].contains(&scheme) {
        bail!("{}: expected http, h2c, grpc, ws or stream", run.args.url);
    }
    let tasks: Vec<_> = (0..run.args.connections)
        .map(|_| {
            let run = run.clone();
            spawn_connection("requests", async move { run.connection().await })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let mut report = run.report.lock().unwrap_or_else(PoisonError::into_inner);
    report.latencies_us.sort_unstable();
    let at = |share: f64| {
        let last = report.latencies_us.len().saturating_sub(1);
        let place = (last as f64 * share) as usize;
        report.latencies_us.get(place).copied().unwrap_or_default()
    };
    (report.p50_us, report.p99_us, report.max_us) = (at(0.5), at(0.99), at(1.0));
    report.failures = report.failures_by_kind.values().sum();
    say(serde_json::to_string(&*report)?);
    Ok(())
}

fn headers(lines: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("header {line:?}: expected NAME:VALUE"))?;
        headers.append(name.parse::<HeaderName>()?, value.trim().parse()?);
    }
    Ok(headers)
}

enum Sender {
    One(http1::SendRequest<Body>),
    Many(http2::SendRequest<Body>),
}

/// How a slot ended.
#[derive(PartialEq, Eq)]
enum End {
    /// Nothing more is asked for.
    Done,
    /// The connection takes no more requests: another is needed.
    Closed,
}

impl Run {
    async fn connection(&self) {
        loop {
            let ends = match self.args.url.scheme_str() {
                Some("ws") => vec![self.websocket().await],
                Some("http") => match self.open_one().await {
                    Ok(sender) => vec![self.slot(Sender::One(sender)).await],
                    Err(error) => vec![self.not_open(&error).await],
                },
                _ => match self.open_many().await {
                    Ok(sender) => self.slots(&sender).await,
                    Err(error) => vec![self.not_open(&error).await],
                },
            };
            if ends.iter().all(|end| *end == End::Done) || self.is_over() {
                return;
            }
        }
    }

    async fn slots(&self, sender: &http2::SendRequest<Body>) -> Vec<End> {
        let streams = self.args.url.scheme_str() == Some("stream");
        let slots = (0..self.args.at_once).map(|_| async {
            match streams {
                true => self.stream(sender.clone()).await,
                false => self.slot(Sender::Many(sender.clone())).await,
            }
        });
        join_all(slots).await
    }

    async fn open_one(&self) -> anyhow::Result<http1::SendRequest<Body>> {
        let io = TokioIo::new(dial(&self.args.url).await?);
        let (sender, connection) = http1::handshake(io).await?;
        spawn_connection("requests-http1", async move { drop(connection.await) });
        self.report().connections += 1;
        Ok(sender)
    }

    async fn open_many(&self) -> anyhow::Result<http2::SendRequest<Body>> {
        let io = TokioIo::new(dial(&self.args.url).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        spawn_connection("requests-http2", async move { drop(connection.await) });
        self.report().connections += 1;
        Ok(sender)
    }

    async fn not_open(&self, error: &anyhow::Error) -> End {
        self.failed(&format!("connect: {}", error.root_cause()));
        tokio::time::sleep(REOPEN_PAUSE).await;
        End::Closed
    }

    /// Requests one after another.
    async fn slot(&self, mut sender: Sender) -> End {
        loop {
            if self.is_over() {
                return End::Done;
            }
            let ready = match &mut sender {
                Sender::One(sender) => sender.ready().await,
                Sender::Many(sender) => sender.ready().await,
            };
            if ready.is_err() {
                return End::Closed;
            }
            if !self.take() {
                return End::Done;
            }
            let (started, limit) = (Instant::now(), self.limit());
            match tokio::time::timeout(limit, self.exchange(&mut sender)).await {
                Ok(Ok((status, host))) => self.answered(started, status, host),
                // It was never sent: nobody has failed.
                Ok(Err(Failed::Unsent)) => {
                    self.put_back();
                    return End::Closed;
                }
                Ok(Err(Failed::Told(kind))) => {
                    self.failed(&kind);
                    return End::Closed;
                }
                Err(_elapsed) => {
                    self.failed("timeout");
                    return End::Closed;
                }
            }
            if self.args.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(self.args.pause_ms)).await;
            }
        }
    }

    /// Status and the pod that answered.
    async fn exchange(&self, sender: &mut Sender) -> Result<(String, String), Failed> {
        let grpc = self.args.url.scheme_str() == Some("grpc");
        let request = self.request(grpc.then_some(GRPC_METHOD));
        let answer = match sender {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Many(sender) => sender.send_request(request).await,
        };
        let answer = answer.map_err(|error| match error.is_canceled() {
            true => Failed::Unsent,
            false => Failed::Told(format!("request: {}", chain(&error))),
        })?;
        let status = answer.status();
        let in_head = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| Failed::Told(format!("body: {}", chain(&error))))?;
        let trailers = body.trailers().and_then(|all| all.get("grpc-status"));
        let grpc_status = trailers.cloned().or(in_head);
        let bytes = body.to_bytes();
        let (status, text) = match grpc_status {
            Some(code) => (
                format!("grpc {}", String::from_utf8_lossy(code.as_bytes())),
                grpc_message(&bytes).unwrap_or_default().message,
            ),
            None => (
                status.as_u16().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            ),
        };
        let host = text.lines().find_map(|line| line.strip_prefix("Hostname="));
        Ok((status, host.unwrap_or_default().to_owned()))
    }

    fn request(&self, grpc: Option<&str>) -> Request<Body> {
        let message = grpc.map(|_| {
            let message = "hello".to_owned();
            full(grpc_frame(&EchoMessage { message }))
        });
        self.request_with(grpc, message.unwrap_or_else(|| full(Bytes::new())))
    }

    fn request_with(&self, grpc: Option<&str>, body: Body) -> Request<Body> {
        let url = &self.args.url;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::new(body);
        *request.headers_mut() = self.headers.clone();
        request.method_mut().clone_from(&self.args.method);
        let path = grpc.unwrap_or(path);
        if url.scheme_str() == Some("http") {
            let host = request.headers_mut().entry(header::HOST);
            host.or_insert_with(|| HeaderValue::from_str(authority).expect("of a URI"));
            *request.uri_mut() = path.parse().expect("of a URI");
        } else {
            let uri = Uri::builder()
                .scheme("http")
                .authority(authority)
                .path_and_query(path);
            *request.uri_mut() = uri.build().expect("of a URI");
        }
        if grpc.is_some() {
            *request.method_mut() = Method::POST;
            let headers = request.headers_mut();
            let kind = HeaderValue::from_static("application/grpc");
            headers.insert(header::CONTENT_TYPE, kind);
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        request
    }

    async fn websocket(&self) -> End {
        let open = async {
            let tcp = dial(&self.args.url).await?;
            let request = self.args.url.clone().into_client_request()?;
            let (socket, _answer) = tokio_tungstenite::client_async(request, tcp).await?;
            anyhow::Ok(socket)
        };
        let mut socket = match open.await {
            Ok(socket) => socket,
            Err(error) => {
                self.not_open(&error).await;
                return End::Done;
            }
        };
        self.report().connections += 1;
        let mut number = 0_u64;
        while !self.is_over() {
            number += 1;
            let text = format!("message {number}");
            let started = Instant::now();
            let exchange = async {
                socket.send(Message::text(text.clone())).await.ok()?;
                socket.next().await?.ok()?.into_text().ok()
            };
            let echoed = tokio::time::timeout(self.limit(), exchange).await;
            if !matches!(echoed, Ok(Some(echoed)) if *echoed == *text) {
                self.failed("WebSocket broke off");
                return End::Done;
            }
            self.answered(started, "message".to_owned(), String::new());
            tokio::time::sleep(Duration::from_millis(self.args.pause_ms)).await;
        }
        // The server may be gone by now.
        let _closed = socket.close(None).await;
        End::Done
    }

    /// A gRPC stream in both directions.
    async fn stream(&self, mut sender: http2::SendRequest<Body>) -> End {
        let (messages, waiting) = mpsc::channel::<Bytes>(1);
        let frames = stream::unfold(waiting, |mut waiting| async {
            let message = waiting.recv().await?;
            Some((Ok::<_, std::io::Error>(Frame::data(message)), waiting))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let answer = sender.send_request(self.request_with(Some(GRPC_STREAM_METHOD), body));
        let mut answer = match tokio::time::timeout(self.limit(), answer).await {
            Ok(Ok(answer)) if answer.status().is_success() => answer.into_body(),
            Ok(Ok(answer)) => {
                self.failed(&format!("stream: status {}", answer.status()));
                return End::Done;
            }
            Ok(Err(error)) => {
                self.failed(&format!("stream: {}", chain(&error)));
                return End::Done;
            }
            Err(_elapsed) => {
                self.failed("stream: timeout");
                return End::Done;
            }
        };
        let mut number = 0_u64;
        while !self.is_over() {
            number += 1;
            let message = format!("message {number}");
            let message = grpc_frame(&EchoMessage { message });
            let started = Instant::now();
            let exchange = async {
                messages.send(message.clone()).await.ok()?;
                read_exactly(&mut answer, message.len()).await
            };
            let echoed = tokio::time::timeout(self.limit(), exchange).await;
            if !matches!(echoed, Ok(Some(echoed)) if echoed == message) {
                self.failed("stream broke off");
                return End::Done;
            }
            self.answered(started, "message".to_owned(), String::new());
            tokio::time::sleep(Duration::from_millis(self.args.pause_ms)).await;
        }
        End::Done
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.args.timeout_ms)
    }

    fn is_over(&self) -> bool {
        self.stop.is_over() || *self.left() == 0
    }

    /// Whether one more request may be begun.
    fn take(&self) -> bool {
        let mut left = self.left();
        let any = *left > 0;
        *left = left.saturating_sub(1);
        any
    }

    fn put_back(&self) {
        let mut left = self.left();
        *left = left.saturating_add(1);
    }

    fn left(&self) -> std::sync::MutexGuard<'_, u64> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, started: Instant, status: String, host: String) {
        let us = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let mut report = self.report();
        report.requests += 1;
        report.slow += u64::from(us / 1_000 >= self.args.slow_ms);
        report.latencies_us.push(us);
        *report.statuses.entry(status).or_default() += 1;
        if !host.is_empty() {
            *report.answered_by.entry(host).or_default() += 1;
        }
    }

    fn failed(&self, kind: &str) {
        let mut report = self.report();
        *report.failures_by_kind.entry(kind.to_owned()).or_default() += 1;
    }
}

/// Why there is no answer.
enum Failed {
    /// The connection was closed before the request went out.
    Unsent,
    Told(String),
}

fn chain(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// The next `length` bytes of a body; nothing where it ends before.
async fn read_exactly(body: &mut Incoming, length: usize) -> Option<Bytes> {
    let mut read = BytesMut::new();
    while read.len() < length {
        let frame = body.frame().await?.ok()?;
        read.extend_from_slice(frame.data_ref()?);
    }
    Some(read.freeze())
}
