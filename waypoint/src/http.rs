//! HTTP between a client and the endpoints of a service. [`phases`] is the life of a request; the rest of this folder is
//! what its phases need.

mod answer;
mod authenticate;
mod body;
mod client;
mod external;
mod filter;
mod forward;
mod judge;
mod limit;
mod mirror;
mod phases;
mod record;
mod refusal;
mod revoke;
mod send;
mod serve;
mod session;
mod stick;
mod target;
mod upgrade;

use std::future::Future;

use hyper::rt::Executor;
use karst_runtime::supervise;

pub(crate) use self::{
    body::RequestBody,
    client::Client,
    external::Asks,
    serve::{Conversation, Version, serve},
};

/// What one peer may make us hold. Sizes in bytes.
pub(crate) mod limits {
    use std::time::Duration;

    /// All header fields of one message.
    pub(crate) const HEADER_LIST: u32 = 96 << 10;
    /// Unparsed bytes of an HTTP/1 connection: one head of [`HEADER_LIST`] with its request line.
    pub(crate) const BUFFER: usize = (HEADER_LIST as usize) + (16 << 10);
    /// Requests at once on one HTTP/2 connection of a client.
    pub(crate) const STREAMS: u32 = 200;
    /// Streams that the peer reset before we looked at them, and streams that we reset, remembered at once: beyond it
    /// the connection ends with ENHANCE_YOUR_CALM (rapid reset, CVE-2023-44487).
    pub(crate) const RESET_STREAMS: usize = 50;
    /// Flow control window of one stream and of the connection of a client.
    pub(crate) const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
    /// How long a client may take to send the head of a request; also how long an HTTP/1 connection may be without one.
    pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
    /// Requests that a client may give up before their answer: this many at once, and as many again in that time.
    pub(crate) const ABANDONED: usize = 1000;
    pub(crate) const ABANDONED_TIME: Duration = Duration::from_secs(10);
    /// How long an HTTP/1 connection without a request may go on in a drain.
    pub(crate) const DRAIN_IDLE: Duration = Duration::from_secs(5);
    /// HTTP/2 pings, and how long their answer may take.
    pub(crate) const PING: Duration = Duration::from_secs(30);
    pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);
}

/// Runs the tasks of HTTP/2 connections on the thread that they are on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExec;

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        supervise::spawn_local_connection("h2 stream", async move {
            task.await;
        });
    }
}
