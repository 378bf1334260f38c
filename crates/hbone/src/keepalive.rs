//! Pings on an HTTP/2 connection: a peer that vanished without a word (a deleted pod's namespace is gone before anyone
//! could say goodbye) is noticed, and state on the way stays warm.
//!
//! No task of its own: the connection's one future polls it, so it ends with the connection.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Times of the pings.
#[derive(Clone, Copy, Debug)]
pub struct KeepaliveConfig {
    /// From the last pong to the next ping.
    pub interval: Duration,
    /// From a ping to giving up.
    pub timeout: Duration,
}

impl Default for KeepaliveConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(20),
        }
    }
}

/// What a poll of the keepalive has to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// A ping was sent: a good moment for housekeeping.
    Sent,
    /// The peer did not answer in time.
    TimedOut,
}

pub(crate) struct Keepalive {
    pings: PingPong,
    cfg: KeepaliveConfig,
    timer: Pin<Box<Sleep>>,
    waiting_for_pong: bool,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, cfg: KeepaliveConfig) -> Self {
        Self {
            pings,
            cfg,
            timer: Box::pin(sleep(cfg.interval)),
            waiting_for_pong: false,
        }
    }

    /// Never ends by itself except with [`Beat::TimedOut`]; a failed connection is the connection future's to report.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        if self.waiting_for_pong && self.pings.poll_pong(cx).is_ready() {
            self.waiting_for_pong = false;
            self.rearm(self.cfg.interval);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.waiting_for_pong {
            return Poll::Ready(Beat::TimedOut);
        }
        if self.pings.send_ping(Ping::opaque()).is_ok() {
            self.waiting_for_pong = true;
            self.rearm(self.cfg.timeout);
        } else {
            self.rearm(self.cfg.interval);
        }
        // Whoever is told polls again, and that registers the timer and the pong.
        Poll::Ready(Beat::Sent)
    }

    fn rearm(&mut self, after: Duration) {
        self.timer.as_mut().reset(Instant::now() + after);
    }
}
