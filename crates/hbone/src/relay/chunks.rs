//! Reading from a socket in chunks that fit the flow, without holding a buffer between reads.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;
use tokio_util::io::poll_read_buf;

use super::AppIo;

/// Chunk sizes in bytes.
const STEPS: [usize; 3] = [16 << 10, 256 << 10, 1 << 20];

thread_local! {
    /// What small reads of all relays of this thread go through; a read and the copy out of it happen in one poll.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; STEPS[0]].into_boxed_slice());
}

/// Chooses the size of each read by how full the last one was.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// Index into [`STEPS`].
    step: u8,
}

impl Chunks {
    /// The next bytes, at most `max` of them; empty at the end.
    pub(super) fn poll_next<A: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut A,
        max: usize,
    ) -> Poll<io::Result<Bytes>> {
        let room = STEPS[usize::from(self.step)].min(max);
        let bytes = if room <= STEPS[0] {
            ready!(small(cx, app, room))?
        } else {
            ready!(app.poll_readable(cx))?;
            let Poll::Ready(read) = large(cx, app, room) else {
                // Woken for nothing: the flow has paused.
                self.step = 0;
                return Poll::Pending;
            };
            read?
        };
        self.adapt(bytes.len(), room);
        Poll::Ready(Ok(bytes))
    }

    fn adapt(&mut self, read: usize, room: usize) {
        if read >= room {
            self.step = (self.step + 1).min(STEPS.len() as u8 - 1);
        } else if read < room / 4 {
            self.step = self.step.saturating_sub(1);
        }
    }
}

/// Reads through the thread's scratch buffer, so that a short message costs an allocation of its own length.
fn small<A: AppIo>(cx: &mut Context<'_>, app: &mut A, room: usize) -> Poll<io::Result<Bytes>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buf = ReadBuf::new(&mut scratch[..room]);
        ready!(Pin::new(app).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(Bytes::copy_from_slice(buf.filled())))
    })
}

/// Reads into a buffer of its own, which travels on as it is unless it is mostly empty.
fn large<A: AppIo>(cx: &mut Context<'_>, app: &mut A, room: usize) -> Poll<io::Result<Bytes>> {
    let mut buf = BytesMut::with_capacity(room);
    let read = ready!(poll_read_buf(Pin::new(app), cx, &mut buf))?;
    Poll::Ready(Ok(if read < room / 4 {
        Bytes::copy_from_slice(&buf)
    } else {
        buf.freeze()
    }))
}
