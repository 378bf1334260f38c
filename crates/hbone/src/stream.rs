//! A tunnel: one CONNECT stream, as a reader and a writer of bytes.
//!
//! Both halves are plain poll functions over `h2`, so that the relay can drive both directions from one task. Credit of
//! the flow control window is given back as the bytes leave for the application, never before: a slow application
//! slows its peer, and a stream holds at most one window of memory.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::{MAX_FRAME, error::StreamError, request::Baggage};

/// Bytes that all streams of a connection together may have waiting to be sent, roughly; a stream's share bounds its
/// chunks. 16 MiB is what the peer's connection window would let be in flight.
const SEND_SHARE_TOTAL: usize = 16 << 20;

/// Chunk that every stream may send however many there are.
const CHUNK_MIN: usize = 16 << 10;

/// Streams that are open on one connection. Each holds one [`StreamPermit`] until both halves are dropped.
#[derive(Debug, Default)]
pub(crate) struct StreamLoad {
    open: AtomicUsize,
    abandoned: AtomicUsize,
}

impl StreamLoad {
    /// The peer reset a stream that had cost us work and had not been answered.
    pub(crate) fn count_abandoned(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// Streams abandoned since the last call.
    pub(crate) fn take_abandoned(&self) -> usize {
        self.abandoned.swap(0, Ordering::Relaxed)
    }

    /// Largest chunk that one stream should hand over at once, in bytes.
    fn chunk_max(&self) -> usize {
        let streams = self.open.load(Ordering::Relaxed).max(1);
        (SEND_SHARE_TOTAL / streams).clamp(CHUNK_MIN, MAX_FRAME as usize)
    }
}

/// Accounts for one stream; `on_close` runs once, when the last half is dropped.
pub(crate) struct StreamPermit {
    load: Arc<StreamLoad>,
    on_close: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl StreamPermit {
    pub(crate) fn new(
        load: Arc<StreamLoad>,
        on_close: Option<Box<dyn FnOnce() + Send + Sync>>,
    ) -> Arc<Self> {
        load.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { load, on_close })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.load.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

/// An open tunnel.
pub struct Tunnel {
    reader: TunnelReader,
    writer: TunnelWriter,
    peer_baggage: Option<Baggage>,
}

impl Tunnel {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        permit: Arc<StreamPermit>,
        peer_baggage: Option<Baggage>,
    ) -> Self {
        Self {
            reader: TunnelReader {
                recv,
                front: Bytes::new(),
                lent: 0,
                _permit: permit.clone(),
            },
            writer: TunnelWriter {
                send,
                open: true,
                permit,
            },
            peer_baggage,
        }
    }

    /// What the server said about the destination workload; `None` on the server's side.
    pub fn peer_baggage(&self) -> Option<&Baggage> {
        self.peer_baggage.as_ref()
    }

    pub fn into_split(self) -> (TunnelReader, TunnelWriter) {
        (self.reader, self.writer)
    }

    /// The first bytes of the peer, at least `wanted` of them unless the stream ends before; they stay unread.
    ///
    /// # Errors
    /// As [`TunnelReader::data`].
    pub fn poll_peek(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<&Bytes, StreamError>> {
        while self.reader.front.len() < wanted {
            let seen = std::mem::take(&mut self.reader.front);
            match self.reader.poll_data(cx) {
                Poll::Ready(Some(Ok(more))) if seen.is_empty() => self.reader.front = more,
                Poll::Ready(Some(Ok(more))) => self.reader.front = [seen, more].concat().into(),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => {
                    self.reader.front = seen;
                    break;
                }
                Poll::Pending => {
                    self.reader.front = seen;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(&self.reader.front))
    }
}

/// Bytes that come out of a tunnel.
pub struct TunnelReader {
    recv: RecvStream,
    /// Bytes that were read and put back.
    front: Bytes,
    /// Bytes that [`TunnelReader::data`] handed out and not yet gave credit back for.
    lent: usize,
    _permit: Arc<StreamPermit>,
}

impl TunnelReader {
    /// The next bytes, `None` at the end of the stream. Gives back the credit of the bytes returned before.
    ///
    /// # Errors
    /// The peer reset the stream or the connection failed. A reset with NO_ERROR or CANCEL is the end, not an error:
    /// some peers end a finished tunnel so. Bytes received before it are returned first.
    pub async fn data(&mut self) -> Option<Result<Bytes, StreamError>> {
        let lent = std::mem::take(&mut self.lent);
        self.release(lent);
        let next = poll_fn(|cx| self.poll_data(cx)).await;
        if let Some(Ok(bytes)) = &next {
            self.lent = bytes.len();
        }
        next
    }

    /// Like [`TunnelReader::data`]; the caller gives credit back with [`TunnelReader::release`].
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if !self.front.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.front))));
        }
        loop {
            return match ready!(self.recv.poll_data(cx)) {
                // The frame that only carries END_STREAM.
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => Poll::Ready(Some(Ok(bytes))),
                Some(Err(error)) if is_normal_end(&error) => Poll::Ready(None),
                Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
                None => Poll::Ready(None),
            };
        }
    }

    /// Puts bytes back that [`TunnelReader::poll_data`] gave: the next read gives them again. Their credit has not been
    /// given back yet.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.front.is_empty(), "put back once, in one piece");
        self.front = bytes;
    }

    /// Lets the peer send `bytes` more.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            // Fails only for more than was received, which no caller does.
            let released = self.recv.flow_control().release_capacity(bytes);
            debug_assert!(released.is_ok(), "released more than was received");
        }
    }

    /// Whether the peer has said that no more bytes follow, and all have been read.
    pub fn is_end(&self) -> bool {
        self.front.is_empty() && self.recv.is_end_stream()
    }
}

/// RST_STREAM with NO_ERROR or CANCEL from the peer: how Envoy and others close a tunnel whose data is delivered.
pub(crate) fn is_normal_end(error: &h2::Error) -> bool {
    error.is_reset()
        && error.is_remote()
        && matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL))
}

/// Bytes that go into a tunnel. Dropped without [`TunnelWriter::finish`], it resets the stream.
pub struct TunnelWriter {
    send: SendStream<Bytes>,
    /// Neither finished nor reset by us.
    open: bool,
    permit: Arc<StreamPermit>,
}

impl TunnelWriter {
    /// Sends all of `data`, waiting for the peer's window.
    ///
    /// # Errors
    /// The stream or its connection is closed; `data` is lost then.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_send(cx, &mut data)).await
    }

    /// Sends as much of `data` as the window and the send buffer take; `Ready` when nothing is left of it.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        while !data.is_empty() {
            self.send.reserve_capacity(data.len());
            let mut capacity = self.send.capacity();
            if capacity == 0 {
                capacity = match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(error)) => return Poll::Ready(Err(error.into())),
                    None => return Poll::Ready(Err(self.why_closed(cx))),
                };
            }
            let part = data.split_to(capacity.min(data.len()));
            if !part.is_empty() && self.send.send_data(part, false).is_err() {
                return Poll::Ready(Err(self.why_closed(cx)));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction: an empty DATA frame with END_STREAM.
    ///
    /// # Errors
    /// The stream is already closed; where the peer has reset it, with the peer's reason.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.open = false;
        let sent = self.send.send_data(Bytes::new(), true);
        // Nobody is woken: the stream is closed already, and the reason is there or never comes.
        sent.map_err(|_closed| self.why_closed(&mut Context::from_waker(Waker::noop())))
    }

    /// Ends both directions at once, as a TCP reset does. RFC 9113, section 8.5 names the code for it.
    pub fn reset(&mut self) {
        self.open = false;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// `Ready` when the peer has reset the stream or the connection has failed.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Reset(reason)),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// Largest chunk that this stream should send at once now, in bytes: its share of the connection.
    pub fn chunk_max(&self) -> usize {
        self.permit.load.chunk_max()
    }

    fn why_closed(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_closed(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Closed,
        }
    }
}

impl Drop for TunnelWriter {
    /// A tunnel that is dropped half way was cut: the peer must not take it for a finished one.
    fn drop(&mut self) {
        if self.open {
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}
