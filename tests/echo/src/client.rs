//! The client: calls a URL as often as asked, each time on a new connection, and prints what came back as the
//! Gateway API mesh suite reads it: `[n] StatusCode=`, `[n] ResponseHeader=`, `[n body] LINE`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use karst_runtime::supervise::spawn_connection;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    bytes_pattern::{Account, Pattern},
    describe::canonical,
    say,
    server::{Body, EchoMessage, GRPC_METHOD, full, grpc_frame, grpc_message},
};

/// What to call and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// http://, https://, h2c://, ws://, grpc:// or tcp://HOST[:PORT][/PATH]
    url: Uri,
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Header, NAME:VALUE (may be repeated); Host sets the authority
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// How often
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Seconds that one call may take
    #[arg(long, default_value_t = 10)]
    timeout: u64,
    /// Send this many bytes of the test pattern as the request body
    #[arg(long)]
    upload: Option<u64>,
    /// Print count and checksum of the response body instead of the body
    #[arg(long)]
    checksum: bool,
}

/// Calls `count` times; the first failure ends the program with an error.
pub(crate) async fn run(args: ClientArgs) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.timeout);
    for n in 0..args.count {
        let called = tokio::time::timeout(limit, call(n, &args)).await;
        called
            .with_context(|| format!("no answer from {} within {} s", args.url, args.timeout))??;
        say(""); // a blank line ends a response
    }
    Ok(())
}

async fn call(n: u32, args: &ClientArgs) -> anyhow::Result<()> {
    match args.url.scheme_str() {
        Some("http" | "https" | "h2c") => call_http(n, args).await,
        Some("grpc") => call_grpc(n, args).await,
        Some("ws") => call_websocket(n, args).await,
        Some("tcp") => call_tcp(n, args).await,
        other => bail!(
            "scheme {other:?} of {}: expected http, https, h2c, ws, grpc or tcp",
            args.url
        ),
    }
}

fn endpoint(url: &Uri) -> anyhow::Result<(String, u16)> {
    let host = url.host().with_context(|| format!("{url} names no host"))?;
    let default = if url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), url.port_u16().unwrap_or(default)))
}

pub(crate) async fn dial(url: &Uri) -> anyhow::Result<TcpStream> {
    let (host, port) = endpoint(url)?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .with_context(|| format!("connecting to {host} port {port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn call_http(n: u32, args: &ClientArgs) -> anyhow::Result<()> {
    let tcp = dial(&args.url).await?;
    let body = args.upload.map_or_else(|| full(Bytes::new()), upload);
    let response = match args.url.scheme_str() {
        Some("https") => {
            let config = crate::tls::client_config(&[b"http/1.1"]);
            let name = rustls::pki_types::ServerName::try_from(endpoint(&args.url)?.0)?;
            let tls = TlsConnector::from(config)
                .connect(name, tcp)
                .await
                .context("TLS handshake")?;
            send_http1(tls, request(args, body, Form::Origin)?).await?
        }
        Some("h2c") => send_http2(tcp, request(args, body, Form::Absolute)?).await?,
        _ => send_http1(tcp, request(args, body, Form::Origin)?).await?,
    };
    print_head(n, &response);
    print_body(n, response.into_body(), args.checksum).await
}

/// How the request names its target: HTTP/1.1 by path and Host, HTTP/2 by the whole URI.
enum Form {
    Origin,
    Absolute,
}

fn request(args: &ClientArgs, body: Body, form: Form) -> anyhow::Result<Request<Body>> {
    let path = args.url.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.is_empty() { "/" } else { path };
    let mut host = args
        .url
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut request = Request::builder()
        .method(args.method.clone())
        .header(header::USER_AGENT, "karst-echo");
    for line in &args.headers {
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("header {line:?}: expected NAME:VALUE"))?;
        if name.eq_ignore_ascii_case("host") {
            value.trim().clone_into(&mut host);
        } else {
            request = request.header(
                name.parse::<HeaderName>()?,
                value.trim().parse::<HeaderValue>()?,
            );
        }
    }
    let request = match form {
        Form::Origin => request
            .uri(path)
            .header(header::HOST, host)
            .header(header::CONNECTION, "close"),
        Form::Absolute => request.uri(
            Uri::builder()
                .scheme("http")
                .authority(host)
                .path_and_query(path)
                .build()?,
        ),
    };
    Ok(request.body(body)?)
}

fn upload(length: u64) -> Body {
    let pieces = Pattern::new(length).map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(stream::iter(pieces)).boxed_unsync()
}

async fn send_http1<Io>(io: Io, req: Request<Body>) -> anyhow::Result<Response<Incoming>>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    spawn_connection("client-http1", async move { drop(connection.await) });
    sender.send_request(req).await.context("no response")
}

async fn send_http2<Io>(io: Io, req: Request<Body>) -> anyhow::Result<Response<Incoming>>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    spawn_connection("client-http2", async move { drop(connection.await) });
    sender.send_request(req).await.context("no response")
}

fn print_head<B>(n: u32, response: &Response<B>) {
    say(format_args!(
        "[{n}] StatusCode={}",
        response.status().as_u16()
    ));
    for (name, value) in response.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        say(format_args!(
            "[{n}] ResponseHeader={}:{value}",
            canonical(name.as_str())
        ));
    }
}

async fn print_body(n: u32, mut body: Incoming, checksum: bool) -> anyhow::Result<()> {
    let (mut account, mut kept) = (Account::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the response body broke off")?;
        if let Some(data) = frame.data_ref() {
            account.add(data);
            if !checksum {
                kept.extend_from_slice(data);
            }
        }
    }
    if checksum {
        say(format_args!(
            "[{n}] Bytes={}\n[{n}] Checksum={}",
            account.bytes,
            account.checksum()
        ));
    }
    print_lines(n, &kept);
    Ok(())
}

fn print_lines(n: u32, body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    for line in text.trim().lines() {
        say(format_args!("[{n} body] {}", line.trim()));
    }
}

async fn call_grpc(n: u32, args: &ClientArgs) -> anyhow::Result<()> {
    let tcp = dial(&args.url).await?;
    let hello = full(grpc_frame(&EchoMessage {
        message: "hello".to_owned(),
    }));
    let mut req = request(args, hello, Form::Absolute)?;
    *req.method_mut() = Method::POST;
    let authority = req
        .uri()
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    *req.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(GRPC_METHOD)
        .build()?;
    req.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    req.headers_mut()
        .insert(header::TE, HeaderValue::from_static("trailers"));
    let response = send_http2(tcp, req).await?;
    let head_status = response.headers().get("grpc-status").cloned();
    let body = response
        .into_body()
        .collect()
        .await
        .context("the gRPC response broke off")?;
    let status = head_status.or_else(|| {
        body.trailers()
            .and_then(|trailers| trailers.get("grpc-status").cloned())
    });
    if status.as_ref().is_none_or(|status| status != "0") {
        bail!("grpc-status {status:?}");
    }
    let message = grpc_message(&body.to_bytes()).context("the response is not one gRPC message")?;
    say(format_args!("[{n}] StatusCode=200"));
    print_lines(n, message.message.as_bytes());
    Ok(())
}

async fn call_websocket(n: u32, args: &ClientArgs) -> anyhow::Result<()> {
    let tcp = dial(&args.url).await?;
    let request = args.url.clone().into_client_request()?;
    let (mut socket, response) = tokio_tungstenite::client_async(request, tcp)
        .await
        .context("WebSocket handshake")?;
    print_head(n, &response);
    socket.send(Message::text(format!("hello {n}"))).await?;
    let answer = socket
        .next()
        .await
        .context("the server closed without an answer")??;
    print_lines(n, &answer.into_data());
    socket.close(None).await?;
    Ok(())
}

async fn call_tcp(n: u32, args: &ClientArgs) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = dial(&args.url).await?;
    tcp.write_all(b"hello\n").await?;
    tcp.shutdown().await?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await?;
    say(format_args!("[{n}] StatusCode=200"));
    print_lines(n, &answer);
    Ok(())
}
