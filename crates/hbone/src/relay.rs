//! Moves bytes between an application's socket and a tunnel, or between two sockets, until both directions have ended.
//!
//! Each direction ends by itself (half close). A reset on one side becomes a reset on the other. One future polls both
//! directions: a message costs no hop between tasks here. Idle, a relay holds no buffer: small reads go through one
//! scratch buffer of the thread, large ones through buffers that grow with the flow, 16 KB, 256 KB, 1 MB.

use std::{
    future::poll_fn,
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    error::StreamError,
    stream::{Tunnel, TunnelReader},
};

mod chunks;
mod copy;
mod outflow;
mod tunnels;
mod uplink;

pub use copy::copy_tcp;
pub use tunnels::join_tunnels;

use outflow::Outflow;
use uplink::Uplink;

/// An application's side of a relay: a byte stream that can say when it is readable, and can be reset.
pub trait AppIo: AsyncRead + AsyncWrite + Unpin {
    /// `Ready` when a read would find bytes, the end or an error. May be ready without need, never pending for ever.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes dropping it a reset (TCP RST), not an orderly end.
    fn reset_on_drop(&self);
}

impl AppIo for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn reset_on_drop(&self) {
        // Fails only on a socket that is already gone, where there is nothing left to reset.
        let _already_gone = self.set_zero_linger();
    }
}

/// Live view of a relay: how much it has moved, and the means to cut it. Shared by the relay and whoever watches it.
#[derive(Debug, Default)]
pub struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Flow {
    /// The flow of a tunnel that already holds `sent` bytes of the application.
    pub fn after_sending(sent: u64) -> Self {
        Self {
            sent: AtomicU64::new(sent),
            ..Self::default()
        }
    }

    /// Bytes from the first side (the application) to the second (the tunnel).
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the second side to the first.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the relay with a reset on both sides: a policy no longer allows it, or time is up. From any thread.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Arranges to be woken by [`Flow::cut`]; true when it has been called.
    fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.cut.load(Ordering::Acquire)
    }

    fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn end(&self, end: End) -> RelayEnd {
        RelayEnd {
            sent: self.sent(),
            received: self.received(),
            end,
        }
    }
}

/// How a relay went.
#[derive(Debug)]
pub struct RelayEnd {
    pub sent: u64,
    pub received: u64,
    pub end: End,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both directions were closed in order.
    Finished,
    /// The first side was reset or failed; the other side was reset.
    App(io::Error),
    /// The second side, a plain socket, was reset or failed.
    Upstream(io::Error),
    /// The tunnel was reset or failed.
    Tunnel(StreamError),
    /// [`Flow::cut`].
    Cut,
}

/// Moves bytes between an application and a tunnel until both directions have ended or one has failed.
///
/// Counts into `flow`, which may be watched and cut from outside.
pub async fn relay<A: AppIo>(mut app: A, tunnel: Tunnel, flow: &Flow) -> RelayEnd {
    let (reader, writer) = tunnel.into_split();
    let mut up = Uplink::new(writer);
    let mut down = Downlink {
        reader,
        out: Outflow::default(),
        ended: false,
        closed: false,
    };
    let end = poll_fn(|cx| {
        if flow.is_cut(cx) {
            return Poll::Ready(End::Cut);
        }
        let down_done = match down.poll(cx, &mut app, flow) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            done => done.is_ready(),
        };
        match up.poll(cx, &mut app, flow, down.ended) {
            Poll::Ready(Err(end)) => Poll::Ready(end),
            Poll::Ready(Ok(())) if down_done => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    })
    .await;
    if !matches!(end, End::Finished) {
        up.reset();
        app.reset_on_drop();
    }
    flow.end(end)
}

/// Tunnel to application.
struct Downlink {
    reader: TunnelReader,
    out: Outflow,
    /// The tunnel has no more bytes for us.
    ended: bool,
    /// And the application has been told.
    closed: bool,
}

impl Downlink {
    fn poll<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
        flow: &Flow,
    ) -> Poll<Result<(), End>> {
        loop {
            while !self.out.is_empty() {
                let written = ready!(self.out.poll_write(cx, app)).map_err(End::App)?;
                self.reader.release(written);
                flow.add_received(written);
            }
            if self.ended && !self.closed {
                ready!(self.out.poll_shutdown(cx, app));
                self.closed = true;
            }
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.reader.poll_data(cx)) {
                Some(Ok(bytes)) => self.out.put(bytes),
                Some(Err(error)) => return Poll::Ready(Err(End::Tunnel(error))),
                None => self.ended = true,
            }
        }
    }
}
