//! The task of one client connection: moves frames, pings, and lets the connection go when it has long been idle.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::client::Connection;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Shared, state::ConnId};
use crate::keepalive::{Beat, Keepalive, KeepaliveConfig};

/// Dropped, also by a panic, it takes its connection out of the pool.
pub(super) struct Driver<Io: AsyncRead + AsyncWrite + Unpin> {
    connection: Connection<Io, Bytes>,
    keepalive: Keepalive,
    entry: PoolEntry,
}

struct PoolEntry {
    shared: Arc<Shared>,
    id: ConnId,
}

impl Drop for PoolEntry {
    fn drop(&mut self) {
        self.shared.closed(self.id);
    }
}

/// The TLS alert that ended a connection. `h2` keeps the text of an error of its transport and not the error; the words
/// before the alert's name are rustls's (a test holds us to them).
fn alert_of(error: &h2::Error) -> Option<String> {
    let text = error.get_io()?.to_string();
    text.strip_prefix("received fatal alert: ")
        .map(str::to_owned)
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    pub(super) fn new(
        mut connection: Connection<Io, Bytes>,
        cfg: KeepaliveConfig,
        shared: Arc<Shared>,
        id: ConnId,
    ) -> Self {
        let pings = connection
            .ping_pong()
            .expect("the handle is taken once, here");
        Self {
            connection,
            keepalive: Keepalive::new(pings, cfg),
            entry: PoolEntry { shared, id },
        }
    }

    pub(super) async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match Pin::new(&mut self.connection).poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "client connection failed");
                    if let Some(alert) = alert_of(&error) {
                        self.entry.shared.refused(self.entry.id, alert);
                    }
                    return Poll::Ready(());
                }
                Poll::Pending => {}
            }
            match self.keepalive.poll(cx) {
                Poll::Ready(Beat::Sent) => self.entry.shared.retire_if_idle(self.entry.id),
                Poll::Ready(Beat::TimedOut) => {
                    tracing::debug!("peer does not answer pings: client connection dropped");
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
