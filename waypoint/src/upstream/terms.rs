//! How long a connection may be used, and the place that it takes among the connections of its set of endpoints.

use std::{sync::Arc, time::Duration};

use karst_model::traffic::Connections;
use tokio::time::Instant;

use super::IDLE_TIMEOUT;
use crate::services::{Cluster, Taken};

/// Requests that wait for a connection where nobody has said how many.
pub(super) const PENDING_MAX: u32 = 1024;

pub(super) struct Terms {
    since: Instant,
    max_age: Option<Duration>,
    max_requests: Option<u32>,
    pub(super) idle: Duration,
    pub(super) max_streams: Option<u32>,
    permit: Option<Taken>,
}

impl Terms {
    pub(super) fn new(cluster: Option<&Arc<Cluster>>, permit: Option<Taken>) -> Self {
        let limits = cluster.map(|cluster| &cluster.policy.connections);
        let of = |field: fn(&Connections) -> Option<u32>| {
            limits.and_then(field).filter(|number| *number > 0)
        };
        Self {
            since: Instant::now(),
            max_age: limits.and_then(|limits| limits.max_age),
            max_requests: of(|limits| limits.max_requests_per_connection),
            idle: limits
                .and_then(|limits| limits.idle_timeout)
                .unwrap_or(IDLE_TIMEOUT),
            max_streams: of(|limits| limits.max_streams),
            permit,
        }
    }

    /// Whether it may take another request after so many.
    pub(super) fn allow(&self, served: u32) -> bool {
        self.max_requests.is_none_or(|max| served < max)
            && self.max_age.is_none_or(|max| self.since.elapsed() < max)
    }

    /// Whether somebody waits for its place.
    pub(super) fn is_wanted(&self) -> bool {
        let permit = self.permit.as_ref();
        permit.is_some_and(|permit| permit.live().pending.used() > 0)
    }

    /// Tells those who wait that it can take a request.
    pub(super) fn freed(&self) {
        if let Some(permit) = &self.permit {
            permit.live().freed.notify_waiters();
        }
    }
}
