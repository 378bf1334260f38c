//! The server: which ports speak what, and the accept loops.

use std::{net::SocketAddr, str::FromStr, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use karst_runtime::supervise::spawn_connection;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

mod http;
mod modes;
mod told;

pub(crate) use self::http::{
    Body, EchoMessage, GRPC_METHOD, GRPC_STREAM_METHOD, full, grpc_frame, grpc_message,
    serve_connection, text,
};
use self::{modes::Mode, told::Told};

/// Ports and what they speak. With none, HTTP on 8080.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// HTTP/1.1, h2c, WebSocket and gRPC on one port (may be repeated)
    #[arg(long)]
    pub(crate) port: Vec<u16>,
    /// Which of the `--port`s speak TLS
    #[arg(long)]
    pub(crate) tls: Vec<u16>,
    /// Names in the certificate of the TLS ports
    #[arg(long, value_delimiter = ',', default_value = "echo")]
    tls_names: Vec<String>,
    /// TCP: describes the connection, then echoes
    #[arg(long)]
    tcp: Vec<u16>,
    /// gRPC (the same server as `--port`)
    #[arg(long)]
    grpc: Vec<u16>,
    /// A TCP port with a behaviour of its own: MODE:PORT, MODE one of echo, banner, slow, close, reset, count, source, fin
    #[arg(long, value_name = "MODE:PORT")]
    mode: Vec<ModePort>,
    /// Pause in milliseconds before a `slow` port answers
    #[arg(long, default_value_t = 1_000)]
    slow_ms: u64,
    /// Taken for compatibility with the suite's pods: certificates are made at start
    #[arg(long, hide = true)]
    crt: Option<String>,
    /// See `--crt`
    #[arg(long, hide = true)]
    key: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct ModePort {
    mode: Mode,
    port: u16,
}

impl FromStr for ModePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mode, port) = text
            .split_once(':')
            .ok_or_else(|| format!("expected MODE:PORT, got {text:?}"))?;
        let port = port
            .parse()
            .map_err(|error| format!("port {port:?}: {error}"))?;
        Ok(Self {
            mode: mode.parse()?,
            port,
        })
    }
}

/// Serves until a listener fails or the program is told to stop (SIGTERM, SIGINT).
pub(crate) async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let names = args.tls_names.clone();
    let (tls, certificate) = crate::tls::server_config(names)?;
    let tls = TlsAcceptor::from(tls);
    let told = Arc::new(Told::with_certificate(certificate));
    let mut loops = JoinSet::new();
    let mut http_ports: Vec<u16> = args.port.iter().chain(&args.grpc).copied().collect();
    if http_ports.is_empty() && args.tcp.is_empty() && args.mode.is_empty() {
        http_ports.push(8080);
    }
    for port in http_ports {
        let tls = args.tls.contains(&port).then(|| tls.clone());
        loops.spawn(accept_http(listen(port)?, port, tls, told.clone()));
    }
    let described = args.tcp.iter().map(|&port| ModePort {
        mode: Mode::Describe,
        port,
    });
    for ModePort { mode, port } in described.chain(args.mode.iter().copied()) {
        loops.spawn(accept_tcp(listen(port)?, port, mode, args.slow_ms));
    }
    tokio::select! {
        ended = loops.join_next() => ended.map_or(Ok(()), |ended| ended?),
        signal = stop_signal() => signal,
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Listens on both address families, or on IPv4 alone where the pod has no IPv6.
pub(crate) fn listen(port: u16) -> anyhow::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let open = |domain, addr: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        TcpListener::from_std(socket.into())
    };
    open(Domain::IPV6, (std::net::Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_no_ipv6| open(Domain::IPV4, (std::net::Ipv4Addr::UNSPECIFIED, port).into()))
        .with_context(|| format!("cannot listen on port {port}"))
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let _best_effort = stream.set_nodelay(true);
                return (stream, remote);
            }
            // Out of file descriptors or a connection that was gone already: neither ends the server.
            Err(_transient) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn accept_http(
    listener: TcpListener,
    port: u16,
    tls: Option<TlsAcceptor>,
    told: Arc<Told>,
) -> anyhow::Result<()> {
    let handler = Arc::new(http::Echo { port, told });
    loop {
        let (stream, remote) = accept(&listener).await;
        let (tls, handler) = (tls.clone(), Arc::clone(&handler));
        spawn_connection("echo-http", async move {
            match tls {
                None => {
                    serve_connection(stream, move |req| Arc::clone(&handler).respond(req, remote))
                        .await
                }
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    serve_connection(stream, move |req| Arc::clone(&handler).respond(req, remote))
                        .await;
                }
            }
        });
    }
}

async fn accept_tcp(
    listener: TcpListener,
    port: u16,
    mode: Mode,
    slow_ms: u64,
) -> anyhow::Result<()> {
    loop {
        let (stream, remote) = accept(&listener).await;
        let connection = modes::Connection {
            stream,
            remote,
            port,
            slow: std::time::Duration::from_millis(slow_ms),
        };
        spawn_connection("echo-tcp", async move {
            // A peer that resets or vanishes is an everyday event for a test server.
            let _peer_error = connection.serve(mode).await;
        });
    }
}

#[cfg(test)]
mod tests;
