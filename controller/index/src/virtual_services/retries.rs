//! When a request is sent again: Envoy's names for failures in the model's words.

use std::time::Duration;

use karst_k8s_api::istio::virtual_service::Retries;
use karst_model::route::RetryPolicy;

use super::{Findings, values};

/// More tries would only be a storm.
const ATTEMPTS_MAX: i32 = 100;
/// What is tried again where nobody says: what was never sent, and what a gRPC server did not take up.
const DEFAULT: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// The policy, and the time of each try.
pub(super) fn lower(
    place: &str,
    source: &Retries,
    findings: &mut Findings,
) -> Result<(RetryPolicy, Option<Duration>), String> {
    let attempts = source.attempts.unwrap_or(0);
    let bounded = u32::try_from(attempts).ok();
    let attempts = bounded
        .filter(|_| attempts <= ATTEMPTS_MAX)
        .ok_or_else(|| {
            format!("{place}.attempts: {attempts} is not between 0 and {ATTEMPTS_MAX}")
        })?;
    if source.attempts.is_none() {
        findings.idle(format!("{place}.attempts is left out, which means none"));
    }
    let mut policy = RetryPolicy {
        attempts,
        on_connection_failure: false,
        remote_localities: source.retry_remote_localities.unwrap_or(false),
        avoid_previous: source.retry_ignore_previous_hosts.unwrap_or(true),
        ..RetryPolicy::default()
    };
    policy.backoff = values::limit(&format!("{place}.backoff"), source.backoff.as_ref())?;
    let conditions = source
        .retry_on
        .as_deref()
        .filter(|text| !text.trim().is_empty());
    for name in conditions.unwrap_or(DEFAULT).split(',') {
        condition(place, name.trim(), &mut policy, findings)?;
    }
    let each = values::limit(
        &format!("{place}.perTryTimeout"),
        source.per_try_timeout.as_ref(),
    )?;
    Ok((policy, each))
}

/// Source: Envoy, "x-envoy-retry-on" and "x-envoy-retry-grpc-on". What was never sent is tried again under any name.
fn condition(
    place: &str,
    name: &str,
    policy: &mut RetryPolicy,
    findings: &mut Findings,
) -> Result<(), String> {
    match name {
        "5xx" => {
            policy.on_server_error = true;
            policy.on_connection_failure = true;
        }
        "gateway-error" => {
            policy.statuses.extend([502, 503, 504]);
            policy.on_connection_failure = true;
        }
        "reset" => policy.on_connection_failure = true,
        "connect-failure" | "refused-stream" | "reset-before-request" => {}
        "retriable-4xx" => policy.statuses.push(409),
        // The codes stand beside it.
        "retriable-status-codes" => {}
        "cancelled" => policy.grpc_statuses.push(1),
        "deadline-exceeded" => policy.grpc_statuses.push(4),
        "resource-exhausted" => policy.grpc_statuses.push(8),
        "internal" => policy.grpc_statuses.push(13),
        "unavailable" => policy.grpc_statuses.push(14),
        "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure" => {
            findings.idle(format!("{place}.retryOn: {name} has no effect"));
        }
        number => {
            let status = number.parse::<i64>().map_err(|_no_number| {
                format!("{place}.retryOn: {name:?} is neither a condition of Envoy nor a status")
            })?;
            let field = format!("{place}.retryOn");
            policy
                .statuses
                .push(values::status(&field, status, 100..=599)?);
        }
    }
    Ok(())
}
