//! Writing one chunk after another to a socket, and its half close. What a write leaves over stays here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};

use super::AppIo;

#[derive(Debug, Default)]
pub(super) struct Outflow {
    chunk: Bytes,
}

impl Outflow {
    pub(super) fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// Takes the next chunk; the one before has been written.
    pub(super) fn put(&mut self, chunk: Bytes) {
        self.chunk = chunk;
    }

    /// Writes some of the chunk; how much it was.
    pub(super) fn poll_write<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
    ) -> Poll<io::Result<usize>> {
        let written = match std::task::ready!(Pin::new(app).poll_write(cx, &self.chunk))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => written,
        };
        self.chunk.advance(written);
        if self.chunk.is_empty() {
            // Frees the buffer, which an empty slice would hold.
            self.chunk = Bytes::new();
        }
        Poll::Ready(Ok(written))
    }

    /// Half close. A socket that is gone already is closed enough.
    pub(super) fn poll_shutdown<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
    ) -> Poll<()> {
        Pin::new(app).poll_shutdown(cx).map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "half close of a socket that is gone");
            }
        })
    }
}
