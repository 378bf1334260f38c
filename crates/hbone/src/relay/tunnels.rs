//! Two tunnels, one on each side of a waypoint: frames go over as they came, without a copy.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{End, Flow, RelayEnd};
use crate::{
    error::StreamError,
    stream::{Tunnel, TunnelReader, TunnelWriter},
};

/// Chunks that one direction moves before others get their turn.
const TURN: usize = 16;

/// Moves bytes between two tunnels until both directions have ended or one side has failed. `flow` counts from the first
/// tunnel's side: what it sent is `sent`.
pub async fn join_tunnels(first: Tunnel, second: Tunnel, flow: &Flow) -> RelayEnd {
    let (first_reader, first_writer) = first.into_split();
    let (second_reader, second_writer) = second.into_split();
    let mut there = Direction::new(first_reader, second_writer);
    let mut back = Direction::new(second_reader, first_writer);
    let end = poll_fn(|cx| {
        if flow.is_cut(cx) {
            return Poll::Ready(End::Cut);
        }
        let sent = there.poll(cx, |bytes| flow.add_sent(bytes));
        let received = back.poll(cx, |bytes| flow.add_received(bytes));
        match (sent, received) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                Poll::Ready(End::Tunnel(error))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    })
    .await;
    if !matches!(end, End::Finished) {
        there.writer.reset();
        back.writer.reset();
    }
    flow.end(end)
}

struct Direction {
    reader: TunnelReader,
    writer: TunnelWriter,
    chunk: Bytes,
    /// Bytes of the chunk whose credit has not been given back.
    owed: usize,
    ended: bool,
}

impl Direction {
    fn new(reader: TunnelReader, writer: TunnelWriter) -> Self {
        Self {
            reader,
            writer,
            chunk: Bytes::new(),
            owed: 0,
            ended: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        count: impl Fn(usize),
    ) -> Poll<Result<(), StreamError>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        for _chunk in 0..TURN {
            let sent = self.writer.poll_send(cx, &mut self.chunk);
            let gone = self.owed - self.chunk.len();
            self.owed = self.chunk.len();
            self.reader.release(gone);
            count(gone);
            ready!(sent)?;
            match ready!(self.reader.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    self.owed = bytes.len();
                    self.chunk = bytes;
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    self.ended = true;
                    return Poll::Ready(self.writer.finish());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
