//! What a set of endpoints allows a request, and what becomes of the endpoint that it went to.

use std::{sync::Arc, time::Duration};

use http::{Response, StatusCode};
use karst_model::traffic::RetryBudget;
use karst_routing::{breaker::retries_allowed, outlier::Outcome, retry::Failure};
use karst_telemetry::metrics::http::RequestFlag;
use tokio::time::{Instant, sleep};

use super::{
    answer::Content,
    forward::Tries,
    refusal::{Refusal, grpc_status_of},
    send::Failed,
};
use crate::services::{Cluster, Member, Taken, now};

/// How long a retry waits for its place in the budget, and how often.
const BUDGET_WAIT: Duration = Duration::from_millis(10);
const BUDGET_WAITS: u32 = 20;

/// A place among the requests of the set, where they are limited: answered at once where there is none.
pub(super) fn admit(cluster: Option<&Arc<Cluster>>) -> Result<Option<Taken>, Refusal> {
    let limited =
        cluster.and_then(|cluster| Some((cluster, cluster.policy.connections.max_requests?)));
    let Some((cluster, max)) = limited else {
        return Ok(None);
    };
    let taken = Taken::take(&cluster.live, |live| &live.requests, max);
    taken.map(Some).ok_or_else(|| {
        cluster.live.overflowed();
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            RequestFlag::Overflow,
            format!("requests to {} are limited to {max}", cluster.live.key),
        )
    })
}

/// Tells the set how a try went.
pub(super) fn observe(
    (cluster, member): (Option<&Arc<Cluster>>, Option<&Member>),
    began: Option<Instant>,
    tries: &Tries<'_>,
    sent: &Result<Response<Content>, Failed>,
) {
    let Some((cluster, member)) = cluster.zip(member) else {
        return;
    };
    if let Some(began) = began
        && sent.is_ok()
    {
        member.endpoint.took(now(), began.elapsed());
    }
    let Some(outlier) = &cluster.policy.outlier else {
        return;
    };
    let outcome = match sent {
        Ok(response) => Outcome::Status(status_of(response)),
        Err(failed) if failed.failure == Failure::Timeout && tries.caller_gave_up() => return,
        Err(failed) if failed.is_of_endpoint() => Outcome::Unreached,
        Err(_) => return,
    };
    cluster.live.observe(outlier, &member.health, outcome);
}

/// A gRPC response without a body says in its head that it failed.
fn status_of(response: &Response<Content>) -> u16 {
    let status = response.status().as_u16();
    match (status, grpc_status_of(response.headers())) {
        (200, Some(14)) => 503,
        (200, Some(4)) => 504,
        (200, Some(2 | 13 | 15)) => 500,
        _ => status,
    }
}

/// A place among the retries that the set allows at once, or `None` where there is none for a while.
pub(super) async fn may_try_again(
    cluster: Option<&Arc<Cluster>>,
    tries: &Tries<'_>,
) -> Option<Option<Taken>> {
    let Some(cluster) = cluster else {
        return Some(None);
    };
    let policy = &cluster.policy;
    // Who wrote a retry policy has said how much is retried.
    let budget = match policy.retry_budget {
        None if tries.has_policy() => None,
        budget => Some(budget.unwrap_or_default()),
    };
    let limit = || {
        let of_budget =
            budget.map(|budget: RetryBudget| retries_allowed(&budget, cluster.active()));
        of_budget
            .into_iter()
            .chain(policy.connections.max_retries)
            .min()
    };
    for _ in 0..BUDGET_WAITS {
        let Some(limit) = limit() else {
            return Some(None);
        };
        if let Some(taken) = Taken::take(&cluster.live, |live| &live.retries, limit) {
            return Some(Some(taken));
        }
        if limit == 0 || tries.is_over() {
            break;
        }
        sleep(BUDGET_WAIT).await;
    }
    cluster.live.overflowed();
    None
}
