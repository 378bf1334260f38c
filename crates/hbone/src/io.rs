//! A tunnel as an ordinary byte stream, for codecs that want to read and write one: the waypoint's HTTP on both sides.
//!
//! Reads copy out of the received frames and give their credit back as they do; a write becomes one chunk of the stream
//! and is taken as soon as the one before has gone into the window.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    error::StreamError,
    stream::{Tunnel, TunnelReader, TunnelWriter},
};

/// A tunnel that is read and written like a socket. Dropped before a shutdown it resets the stream.
pub struct TunnelIo {
    reader: TunnelReader,
    writer: TunnelWriter,
    /// Received, not read yet.
    front: Bytes,
    /// Written, not yet taken by the stream's window.
    unsent: Bytes,
    ended: bool,
    finished: bool,
}

impl From<Tunnel> for TunnelIo {
    fn from(tunnel: Tunnel) -> Self {
        let (reader, writer) = tunnel.into_split();
        Self {
            reader,
            writer,
            front: Bytes::new(),
            unsent: Bytes::new(),
            ended: false,
            finished: false,
        }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.front.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.reader.poll_data(cx)) {
                Some(Ok(bytes)) => this.front = bytes,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => this.ended = true,
            }
        }
        let taken = this.front.len().min(buf.remaining());
        buf.put_slice(&this.front[..taken]);
        this.front.advance(taken);
        if this.front.is_empty() {
            // Frees the frame, which an empty slice would hold.
            this.front = Bytes::new();
        }
        this.reader.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl TunnelIo {
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.poll_send(cx, &mut self.unsent).map_err(broken)
    }

    /// Hands one chunk over; what the window does not take now stays here.
    fn send(&mut self, cx: &mut Context<'_>, chunk: Bytes) -> Poll<io::Result<usize>> {
        let taken = chunk.len();
        self.unsent = chunk;
        match self.poll_unsent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        let part = &buf[..buf.len().min(this.writer.chunk_max())];
        this.send(cx, Bytes::copy_from_slice(part))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        let all: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut room = all.min(this.writer.chunk_max());
        let mut chunk = BytesMut::with_capacity(room);
        for buf in bufs {
            let part = &buf[..buf.len().min(room)];
            chunk.put_slice(part);
            room -= part.len();
        }
        this.send(cx, chunk.freeze())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unsent(cx))?;
        if !this.finished {
            this.finished = true;
            this.writer.finish().map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
