//! Application to tunnel.
//!
//! ```text
//!   Reading ──EOF──► finish ──► Finished
//!      └──peer reset with NO_ERROR or CANCEL──► Discarding ──EOF or timer──► Finished
//! ```

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use tokio::time::{Sleep, sleep};

use super::{AppIo, End, Flow, chunks::Chunks};
use crate::{MAX_FRAME, error::StreamError, stream::TunnelWriter};

/// How long bytes that the peer no longer wants are read and thrown away. Closing a socket with unread bytes makes the
/// kernel send a reset, which could destroy the answer that the application has not yet read.
const DISCARD_TIME: Duration = Duration::from_secs(5);

pub(super) struct Uplink {
    writer: TunnelWriter,
    chunks: Chunks,
    /// Read from the application, not yet taken by the tunnel.
    pending: Bytes,
    state: State,
}

enum State {
    Reading,
    Discarding(Pin<Box<Sleep>>),
    Finished,
}

impl Uplink {
    pub(super) fn new(writer: TunnelWriter) -> Self {
        Self {
            writer,
            chunks: Chunks::default(),
            pending: Bytes::new(),
            state: State::Reading,
        }
    }

    /// `peer_done`: nothing more comes from the tunnel, so a reset has to be asked for.
    pub(super) fn poll<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
        flow: &Flow,
        peer_done: bool,
    ) -> Poll<Result<(), End>> {
        loop {
            match &mut self.state {
                State::Finished => return Poll::Ready(Ok(())),
                State::Discarding(timer) => {
                    let over = timer.as_mut().poll(cx).is_ready();
                    if over || ready!(discard(&mut self.chunks, cx, app)) {
                        self.state = State::Finished;
                    }
                }
                State::Reading => ready!(self.poll_reading(cx, app, flow, peer_done))?,
            }
        }
    }

    fn poll_reading<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
        flow: &Flow,
        peer_done: bool,
    ) -> Poll<Result<(), End>> {
        if !self.pending.is_empty() {
            let sent = ready!(self.writer.poll_send(cx, &mut self.pending));
            return Poll::Ready(sent.or_else(|error| self.stopped(error)));
        }
        if peer_done && let Poll::Ready(error) = self.writer.poll_closed(cx) {
            return Poll::Ready(self.stopped(error));
        }
        let max = self.writer.chunk_max();
        let bytes = ready!(self.chunks.poll_next(cx, app, max)).map_err(End::App)?;
        if bytes.is_empty() {
            self.state = State::Finished;
            return Poll::Ready(self.writer.finish().or_else(|error| self.stopped(error)));
        }
        flow.add_sent(bytes.len());
        self.pending = bytes;
        Poll::Ready(Ok(()))
    }

    /// The peer does not want our bytes any more. With these codes it is done and content.
    fn stopped(&mut self, error: StreamError) -> Result<(), End> {
        let StreamError::Reset(Reason::NO_ERROR | Reason::CANCEL) = error else {
            return Err(End::Tunnel(error));
        };
        self.pending = Bytes::new();
        self.state = State::Discarding(Box::pin(sleep(DISCARD_TIME)));
        Ok(())
    }

    pub(super) fn reset(&mut self) {
        self.writer.reset();
    }
}

/// Reads and drops some bytes; true at the end.
fn discard<A: AppIo>(chunks: &mut Chunks, cx: &mut Context<'_>, app: &mut A) -> Poll<bool> {
    let read = ready!(chunks.poll_next(cx, app, MAX_FRAME as usize));
    Poll::Ready(read.map_or(true, |bytes| bytes.is_empty()))
}
