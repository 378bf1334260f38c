//! Two plain sockets: traffic to and from destinations outside the mesh, and the inbound side without a tunnel.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use super::{AppIo, End, Flow, RelayEnd, chunks::Chunks, outflow::Outflow};
use crate::MAX_FRAME;

/// Chunks that one direction moves before others get their turn.
const TURN: usize = 8;

/// Moves bytes between two sockets until both directions have ended or one side has failed.
pub async fn copy_tcp<A: AppIo, B: AppIo>(mut first: A, mut second: B, flow: &Flow) -> RelayEnd {
    let mut there = Direction::default();
    let mut back = Direction::default();
    let end = poll_fn(|cx| {
        if flow.is_cut(cx) {
            return Poll::Ready(End::Cut);
        }
        let sent = there.poll(cx, &mut first, &mut second, |bytes| flow.add_sent(bytes));
        let received = back.poll(cx, &mut second, &mut first, |bytes| {
            flow.add_received(bytes)
        });
        match (sent, received) {
            (Poll::Ready(Err(Failed::From(error))), _)
            | (_, Poll::Ready(Err(Failed::To(error)))) => Poll::Ready(End::App(error)),
            (Poll::Ready(Err(Failed::To(error))), _)
            | (_, Poll::Ready(Err(Failed::From(error)))) => Poll::Ready(End::Upstream(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    })
    .await;
    if !matches!(end, End::Finished) {
        first.reset_on_drop();
        second.reset_on_drop();
    }
    flow.end(end)
}

/// Which socket of a direction failed.
enum Failed {
    From(io::Error),
    To(io::Error),
}

#[derive(Default)]
struct Direction {
    chunks: Chunks,
    out: Outflow,
    state: State,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Moving,
    /// All is read.
    Ending,
    Ended,
}

impl Direction {
    fn poll<A: AppIo, B: AppIo>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut A,
        to: &mut B,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Failed>> {
        for _chunk in 0..TURN {
            while !self.out.is_empty() {
                count(ready!(self.out.poll_write(cx, to)).map_err(Failed::To)?);
            }
            match self.state {
                State::Moving => {
                    let bytes = ready!(self.chunks.poll_next(cx, from, MAX_FRAME as usize))
                        .map_err(Failed::From)?;
                    if bytes.is_empty() {
                        self.state = State::Ending;
                    }
                    self.out.put(bytes);
                }
                State::Ending => {
                    ready!(self.out.poll_shutdown(cx, to));
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
