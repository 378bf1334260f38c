//! The body of a response on its way to the client, and the record of the request that ends with it.

use std::{
    error::Error,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use karst_telemetry::metrics::http::{RequestFlag, RequestProtocol};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{body::RequestBodyError, record::Record};
use crate::upstream::{Exchange, Http2Load};

/// Where a response's body comes from.
pub(crate) enum Content {
    /// The waypoint's own words.
    Fixed(Option<Bytes>),
    Http1(Box<Exchange>),
    Http2(Incoming, Http2Load),
}

/// The body, counted; with its last byte the request is over.
pub(crate) struct Answer {
    content: Content,
    record: Option<Box<Record>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the endpoint broke off its response")]
    Upstream(#[source] hyper::Error),
    #[error("the response was not complete within the time of the request")]
    Timeout,
    #[error("policy changed and does not allow the request any more")]
    Revoked,
}

impl Answer {
    pub(super) fn new(
        content: Content,
        record: Option<Box<Record>>,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            content,
            record,
            deadline: deadline.map(|at| Box::pin(sleep_until(at))),
        }
    }

    /// The end of a response that policy does not allow any more: a gRPC client is told, others see it break off.
    fn poll_revoked(&mut self, cx: &Context<'_>) -> Poll<Result<Frame<Bytes>, BodyError>> {
        let Some(record) = &mut self.record else {
            return Poll::Pending;
        };
        let Poll::Ready(refusal) = record.poll_revoked(cx) else {
            return Poll::Pending;
        };
        // The endpoint learns that nobody listens.
        self.content = Content::Fixed(None);
        let end = if record.protocol == RequestProtocol::Grpc {
            let trailers = refusal.into_trailers();
            record.trailers(&trailers);
            Ok(Frame::trailers(trailers))
        } else {
            Err(BodyError::Revoked)
        };
        if let Some(mut record) = self.record.take() {
            record.finish();
        }
        Poll::Ready(end)
    }

    fn broken(&mut self, flag: RequestFlag, error: BodyError) -> BodyError {
        if let Some(mut record) = self.record.take() {
            record.broken(flag, &error);
            record.finish();
        }
        error
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        let Some(record) = &mut self.record else {
            return;
        };
        if let Some(data) = frame.data_ref() {
            record.response_bytes += data.len() as u64;
        } else if let Some(trailers) = frame.trailers_ref() {
            record.trailers(trailers);
        }
    }
}

impl Content {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::Fixed(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Http1(exchange) => exchange.poll_frame(cx),
            Self::Http2(incoming, _) => Pin::new(incoming).poll_frame(cx),
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Self::Fixed(text) => text.is_none(),
            Self::Http1(exchange) => exchange.is_end_stream(),
            Self::Http2(incoming, _) => incoming.is_end_stream(),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(end) = this.poll_revoked(cx) {
            return Poll::Ready(Some(end));
        }
        match this.content.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.count(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let error =
                    this.broken(RequestFlag::UpstreamTermination, BodyError::Upstream(error));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                if let Some(mut record) = this.record.take() {
                    record.finish();
                }
                Poll::Ready(None)
            }
            Poll::Pending => match this.deadline.as_mut().map(|at| at.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => {
                    this.deadline = None;
                    let error = this.broken(RequestFlag::UpstreamTimeout, BodyError::Timeout);
                    Poll::Ready(Some(Err(error)))
                }
                _ => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Fixed(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Content::Http1(exchange) => exchange.size_hint(),
            Content::Http2(incoming, _) => incoming.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        if !self.content.is_end() {
            record.left();
        }
        record.finish();
    }
}

/// Whether an error of a request's body is the client's: it went away while it was sending.
pub(super) fn is_of_client(error: &hyper::Error) -> bool {
    error.is_user()
        && error.source().is_some_and(|source| {
            matches!(source.downcast_ref(), Some(RequestBodyError::Client(_)))
        })
}
