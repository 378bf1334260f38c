//! Large reads under TLS.
//!
//! `rustls` asks its socket for 4 to 16 KB at a time: at 20 Gbit/s that is a system call per record, and they cost more
//! than the cipher. [`BulkIo`] stands between socket and `rustls` and reads ahead: nothing while messages are small (the
//! read goes straight through), then 64 KB, 256 KB and 1 MB as reads keep coming back full. Its buffer exists only while
//! it holds bytes, so that an idle connection has none.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Read-ahead sizes in bytes; the first is none at all.
const STEPS: [usize; 4] = [0, 64 << 10, 256 << 10, 1 << 20];

/// A socket that reads ahead in growing steps. Writes pass through.
pub struct BulkIo<T> {
    io: T,
    buffer: BytesMut,
    /// Start of what is not yet handed on.
    start: usize,
    /// Index into [`STEPS`].
    step: usize,
}

impl<T> BulkIo<T> {
    pub fn new(io: T) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            start: 0,
            step: 0,
        }
    }

    pub fn get_ref(&self) -> &T {
        &self.io
    }

    fn hand_on(&mut self, out: &mut ReadBuf<'_>) {
        let n = out.remaining().min(self.buffer.len() - self.start);
        out.put_slice(&self.buffer[self.start..self.start + n]);
        self.start += n;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// A full read means that more waits; one that fills less than a quarter means that the flow has slowed.
    fn adapt(&mut self, read: usize, room: usize) {
        if read == room {
            self.step = (self.step + 1).min(STEPS.len() - 1);
        } else if read < room / 4 {
            self.step = self.step.saturating_sub(1);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for BulkIo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buffered = self.buffer.len() - self.start;
        f.debug_struct("BulkIo")
            .field("io", &self.io)
            .field("buffered", &buffered)
            .finish_non_exhaustive()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for BulkIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.buffer.is_empty() {
            this.hand_on(out);
            return Poll::Ready(Ok(()));
        }
        let ahead = STEPS[this.step];
        if ahead <= out.remaining() {
            let room = out.remaining();
            let filled = out.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, out))?;
            this.adapt(out.filled().len() - filled, room);
            return Poll::Ready(Ok(()));
        }
        this.buffer.reserve(ahead);
        let Poll::Ready(read) = poll_read_buf(Pin::new(&mut this.io), cx, &mut this.buffer) else {
            this.buffer = BytesMut::new();
            return Poll::Pending;
        };
        let read = read?;
        this.adapt(read, ahead);
        this.hand_on(out);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BulkIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
