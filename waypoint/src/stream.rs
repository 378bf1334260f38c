//! A connection on either side of the waypoint, as a relay or an HTTP codec wants it.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use karst_hbone::{AppIo, Flow, RelayEnd, Tunnel, TunnelIo, copy_tcp, join_tunnels, relay};
use karst_identity::tls::OriginatedIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection to a client or an endpoint.
pub(crate) enum Stream {
    Tunnel(Tunnel),
    Tcp(TcpStream),
    /// TLS to an endpoint, in a socket or in a tunnel.
    Tls(Box<Originated>),
}

/// Bytes that a peek at a plain socket looks at.
const PEEK: usize = 4096;

impl Stream {
    /// The first bytes, at least `wanted` of them unless no more are to be had; they stay unread.
    pub(crate) async fn peek(&mut self, wanted: usize) -> io::Result<Bytes> {
        match self {
            Self::Tunnel(tunnel) => {
                poll_fn(|cx| {
                    let peeked = ready!(tunnel.poll_peek(cx, wanted));
                    Poll::Ready(peeked.cloned().map_err(io::Error::other))
                })
                .await
            }
            Self::Tcp(stream) => {
                let mut seen = vec![0; PEEK];
                let len = stream.peek(&mut seen).await?;
                seen.truncate(len);
                Ok(seen.into())
            }
            // Clients are looked at, and none of them comes by TLS of this kind.
            Self::Tls(_) => Ok(Bytes::new()),
        }
    }

    /// Reads what was peeked at and goes nowhere: with bytes of the peer's unread, the end of a TCP connection is a reset.
    pub(crate) async fn forget_peeked(&mut self) -> io::Result<()> {
        if let Self::Tcp(stream) = self {
            let _all_or_some = stream.read(&mut vec![0; PEEK]).await?;
        }
        Ok(())
    }

    /// Moves bytes between a client and an endpoint until both directions have ended or one side has failed. `sent` is
    /// what the client sent.
    pub(crate) async fn join(self, endpoint: Self, flow: &Flow) -> RelayEnd {
        match (self, endpoint) {
            (Self::Tunnel(client), Self::Tunnel(endpoint)) => {
                join_tunnels(client, endpoint, flow).await
            }
            (Self::Tcp(client), Self::Tunnel(endpoint)) => relay(client, endpoint, flow).await,
            (Self::Tcp(client), Self::Tcp(endpoint)) => copy_tcp(client, endpoint, flow).await,
            (Self::Tunnel(client), Self::Tcp(endpoint)) => {
                turned(relay(endpoint, client, flow).await)
            }
            (Self::Tunnel(client), Self::Tls(endpoint)) => {
                turned(relay(*endpoint, client, flow).await)
            }
            (Self::Tcp(client), Self::Tls(endpoint)) => copy_tcp(client, *endpoint, flow).await,
            (Self::Tls(client), Self::Tunnel(endpoint)) => relay(*client, endpoint, flow).await,
            (Self::Tls(client), Self::Tcp(endpoint)) => copy_tcp(*client, endpoint, flow).await,
            (Self::Tls(client), Self::Tls(endpoint)) => copy_tcp(*client, *endpoint, flow).await,
        }
    }
}

/// The same end of a relay, seen from the other side.
fn turned(end: RelayEnd) -> RelayEnd {
    RelayEnd {
        sent: end.received,
        received: end.sent,
        end: end.end,
    }
}

/// A connection as a byte stream: a tunnel or a socket, on either side of the waypoint.
pub(crate) enum HttpIo {
    Tunnel(TunnelIo),
    Tcp(TcpStream),
    Tls(Box<Originated>),
}

/// TLS that the waypoint makes to an endpoint.
pub(crate) struct Originated(pub(crate) OriginatedIo<HttpIo>);

impl AppIo for Originated {
    fn poll_readable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Bytes of the socket are no bytes of the application: a read tells.
        Poll::Ready(Ok(()))
    }

    fn reset_on_drop(&self) {
        if let HttpIo::Tcp(stream) = self.0.get_ref().0 {
            let _already_gone = stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Originated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Originated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl From<Stream> for HttpIo {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Tunnel(tunnel) => Self::Tunnel(tunnel.into()),
            Stream::Tcp(stream) => Self::Tcp(stream),
            Stream::Tls(stream) => Self::Tls(stream),
        }
    }
}

impl AsyncRead for HttpIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(&mut **io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for HttpIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(&mut **io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(&mut **io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}
