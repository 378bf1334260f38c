//! The body of a request on its way to an endpoint: what the client sends, or kept bytes.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Bytes of a body that are kept for another try or for a mirror.
const KEPT_MAX: usize = 64 << 10;

/// A request's body for one try.
pub(crate) enum RequestBody {
    Empty,
    /// Shared with the next try, which goes on where this one stopped, or begins again with what was kept.
    Client(Reading),
    /// A copy.
    Kept(std::vec::IntoIter<Bytes>),
}

/// Holds a body back until the endpoint wants it (RFC 9110, section 10.1.1). The client is told to go on when the body is
/// read first.
#[derive(Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn is_closed(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        !self.open.load(Ordering::Acquire)
    }
}

/// One try's place in a client's body.
pub(crate) struct Reading {
    source: Rc<Source>,
    gate: Option<Arc<Gate>>,
    /// Kept chunks that this try has had.
    had: usize,
    try_number: u32,
}

/// The client's body, for all tries.
pub(crate) struct Source {
    incoming: RefCell<Incoming>,
    hint: SizeHint,
    kept: RefCell<Kept>,
    bytes: Cell<u64>,
    /// Frames were taken from the client.
    started: Cell<bool>,
    ended: Cell<bool>,
    /// Only the newest try may read.
    current: Cell<u32>,
    /// Nobody may read any more.
    cut: Cell<bool>,
    /// Of who waits for the client.
    reader: RefCell<Option<Waker>>,
}

/// Why the body of a request ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    #[error("the client broke off its request")]
    Client(#[source] hyper::Error),
    #[error("the waypoint has answered the request itself")]
    Cut,
}

#[derive(Default)]
struct Kept {
    wanted: bool,
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Something was taken that is not kept.
    overflowed: bool,
    /// Of a body that was peeked to its end.
    trailers: Option<http::HeaderMap>,
}

/// What a request's body is.
pub(crate) enum ClientBody {
    Empty,
    Source(Rc<Source>),
}

impl ClientBody {
    pub(crate) fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Source(Rc::new(Source {
            hint: incoming.size_hint(),
            incoming: RefCell::new(incoming),
            kept: RefCell::default(),
            bytes: Cell::new(0),
            started: Cell::new(false),
            ended: Cell::new(false),
            current: Cell::new(0),
            cut: Cell::new(false),
            reader: RefCell::default(),
        }))
    }

    /// Keeps what is read from now on, for another try.
    pub(super) fn keep(&self) {
        if let Self::Source(source) = self {
            source.kept.borrow_mut().wanted = true;
        }
    }

    /// Waits until `max` bytes are there or the body has ended, and keeps them for the first try. The bytes, and whether
    /// they are all.
    pub(super) async fn peek(&self, max: usize) -> Result<(Bytes, bool), hyper::Error> {
        let Self::Source(source) = self else {
            return Ok((Bytes::new(), true));
        };
        loop {
            if source.ended.get() || source.kept.borrow().bytes >= max {
                return Ok((source.kept.borrow().joined(), source.ended.get()));
            }
            let frame = poll_fn(|cx| source.poll_peeked(cx)).await;
            if let Some(frame) = frame {
                frame?;
            }
        }
    }

    /// The body for the next try; behind a gate where the client waits to be told to send it.
    pub(crate) fn next_try(&self, gate: Option<Arc<Gate>>) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Source(source) => {
                let try_number = source.current.get() + 1;
                source.current.set(try_number);
                RequestBody::Client(Reading {
                    source: source.clone(),
                    gate,
                    had: 0,
                    try_number,
                })
            }
        }
    }

    /// No endpoint gets any more of it.
    pub(super) fn cut(&self) {
        if let Self::Source(source) = self {
            source.cut.set(true);
            if let Some(reader) = source.reader.borrow_mut().take() {
                reader.wake();
            }
        }
    }

    /// Whether another try can send all of it.
    pub(crate) fn is_replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Source(source) => {
                let kept = source.kept.borrow();
                !source.started.get() || (kept.wanted && !kept.overflowed)
            }
        }
    }

    /// Bytes that the client has sent.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Source(source) => source.bytes.get(),
        }
    }

    /// The whole of it, where it has ended and was kept.
    pub(crate) fn copy(&self) -> Option<RequestBody> {
        match self {
            Self::Empty => Some(RequestBody::Empty),
            Self::Source(source) => {
                let kept = source.kept.borrow();
                let whole = source.ended.get() && kept.wanted && !kept.overflowed;
                whole.then(|| RequestBody::Kept(kept.chunks.clone().into_iter()))
            }
        }
    }
}

impl Source {
    /// A frame that no try has had: it is kept whatever its size.
    fn poll_peeked(&self, cx: &mut Context<'_>) -> Poll<Option<Result<(), hyper::Error>>> {
        let frame = Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx);
        let peeked = match frame {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => {
                self.ended.set(true);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        self.started.set(true);
        let mut kept = self.kept.borrow_mut();
        kept.wanted = true;
        match peeked.into_data() {
            Ok(data) => {
                self.bytes.set(self.bytes.get() + data.len() as u64);
                kept.bytes += data.len();
                kept.chunks.push(data);
            }
            Err(frame) => kept.trailers = frame.into_trailers().ok(),
        }
        if self.incoming.borrow().is_end_stream() {
            self.ended.set(true);
        }
        Poll::Ready(Some(Ok(())))
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.started.set(true);
                if let Some(data) = frame.data_ref() {
                    self.bytes.set(self.bytes.get() + data.len() as u64);
                    self.kept.borrow_mut().keep(data);
                }
            }
            Poll::Ready(None) => self.ended.set(true),
            _ => {}
        }
        if self.incoming.borrow().is_end_stream() {
            self.ended.set(true);
        }
        frame
    }

    /// Is polled again when the body is cut.
    fn wait(&self, cx: &Context<'_>) {
        match &mut *self.reader.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

impl Kept {
    fn joined(&self) -> Bytes {
        match &*self.chunks {
            [] => Bytes::new(),
            [only] => only.clone(),
            several => several.concat().into(),
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if !self.wanted || self.overflowed {
            return;
        }
        if self.bytes + data.len() > KEPT_MAX {
            self.overflowed = true;
            self.chunks = Vec::new();
            return;
        }
        self.bytes += data.len();
        self.chunks.push(data.clone());
    }
}

impl Reading {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if self.source.cut.get() {
            return Poll::Ready(Some(Err(RequestBodyError::Cut)));
        }
        if self.source.current.get() != self.try_number {
            // Another try has taken over; this one's connection is about to be dropped.
            return Poll::Pending;
        }
        if self.gate.as_ref().is_some_and(|gate| gate.is_closed(cx)) {
            self.source.wait(cx);
            return Poll::Pending;
        }
        let kept = {
            let kept = self.source.kept.borrow();
            kept.chunks.get(self.had).cloned()
        };
        if let Some(chunk) = kept {
            self.had += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(trailers) = self.source.kept.borrow_mut().trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = self.source.poll(cx);
        self.had = self.source.kept.borrow().chunks.len();
        if frame.is_pending() {
            self.source.wait(cx);
        }
        frame.map_err(RequestBodyError::Client)
    }

    fn is_end(&self) -> bool {
        let all_had = self.had >= self.source.kept.borrow().chunks.len();
        all_had
            && self.source.kept.borrow().trailers.is_none()
            && self.source.incoming.borrow().is_end_stream()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(reading) => reading.poll(cx),
            Self::Kept(chunks) => Poll::Ready(chunks.next().map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(reading) => reading.is_end(),
            Self::Kept(chunks) => chunks.as_slice().is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(reading) if reading.had == 0 => reading.source.hint,
            Self::Client(_) => SizeHint::default(),
            Self::Kept(chunks) => {
                let left = chunks.as_slice().iter().map(|chunk| chunk.len() as u64);
                SizeHint::with_exact(left.sum())
            }
        }
    }
}
