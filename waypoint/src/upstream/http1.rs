//! One HTTP/1 connection to an endpoint. It has no task: whoever waits for its response drives it, so that a request
//! costs no hop between tasks; without a request nothing happens on it, and whoever takes it next looks whether it lives.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Weak,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::{
        TrySendError,
        http1::{Builder, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use karst_runtime::supervise;

use super::{KeptKey, Pools, keep, terms::Terms};
use crate::{
    http::{RequestBody, limits},
    stream::HttpIo,
};

/// hyper does not name the type.
type Driver = dyn Future<Output = Result<(), hyper::Error>>;

/// A connection that may take a request.
pub(crate) struct Http1 {
    sender: SendRequest<RequestBody>,
    driver: Pin<Box<Driver>>,
    /// The driver has ended: it must not be polled again.
    ended: bool,
    /// It has carried a request before: its end may come at any time.
    pub(crate) reused: bool,
    /// Requests so far.
    served: u32,
    home: Home,
}

/// Where a connection goes after its response.
pub(super) struct Home {
    pub(super) kept: Weak<Pools>,
    pub(super) key: KeptKey,
    pub(super) terms: Terms,
}

impl Http1 {
    pub(super) async fn handshake(io: HttpIo, home: Home) -> Result<Self, hyper::Error> {
        let (sender, driver) = Builder::new()
            .preserve_header_case(true)
            .max_buf_size(limits::BUFFER)
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Self {
            sender,
            driver: Box::pin(driver.with_upgrades()),
            ended: false,
            reused: false,
            served: 0,
            home,
        })
    }

    /// Whether it may take a request: what happened meanwhile is looked at now.
    pub(super) async fn is_alive(&mut self) -> bool {
        self.reused = true;
        poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(!self.ended && self.sender.is_ready())
        })
        .await
            && self.terms().allow(self.served)
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.home.terms
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended && self.driver.as_mut().poll(cx).is_ready() {
            // Its error is also the request's, which tells it.
            self.ended = true;
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn exchange(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Exchange>, TrySendError<Request<RequestBody>>> {
        let tunnels = request.method() == Method::CONNECT;
        let response = {
            let mut sent = std::pin::pin!(self.sender.try_send_request(request));
            poll_fn(|cx| {
                if !self.ended && self.driver.as_mut().poll(cx).is_ready() {
                    self.ended = true;
                }
                sent.as_mut().poll(cx)
            })
            .await?
        };
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || (tunnels && response.status().is_success());
        let mut response = response.map(|body| Exchange {
            body,
            connection: Some(self),
        });
        // A body that has ended is never polled.
        if response.body().is_end_stream() && !upgraded {
            poll_fn(|cx| {
                response.body_mut().settle(cx);
                Poll::Ready(())
            })
            .await;
        }
        Ok(response)
    }

    /// Goes on by itself: the response has made it something else than HTTP.
    pub(crate) fn detach(self) {
        if !self.ended {
            let (driver, home) = (self.driver, self.home);
            supervise::spawn_local_connection("upgraded upstream connection", async move {
                // It takes its place until it ends.
                let _home = home;
                if let Err(error) = driver.await {
                    tracing::debug!(%error, "an upgraded upstream connection ended");
                }
            });
        }
    }
}

/// The body of a response, and the connection that it comes from.
pub(crate) struct Exchange {
    body: Incoming,
    connection: Option<Http1>,
}

impl Exchange {
    /// The connection of a response that upgraded it.
    pub(crate) fn into_connection(mut self) -> Option<Http1> {
        self.connection.take()
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(connection) = &mut self.connection {
            connection.drive(cx);
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.settle(cx);
        }
        frame
    }

    /// The response is complete: the connection goes home if nothing else is under way on it.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_>) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        connection.drive(cx);
        if connection.ended || !connection.sender.is_ready() {
            return;
        }
        connection.served = connection.served.saturating_add(1);
        if !connection.terms().allow(connection.served) {
            return;
        }
        if let Some(pools) = connection.home.kept.upgrade() {
            keep(&pools, connection.home.key, connection);
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
