//! Whether a failed request is sent again, and when.
//!
//! Without a retry policy only what provably never reached a backend is sent again. With one (GEP-1731), its author has
//! said which failures of the rule's requests may be repeated, whatever their method. Nothing is repeated once its body
//! is gone, once its response has begun, or when its time is up. Sending it again is the waypoint's.

use std::time::Duration;

use karst_model::route::RetryPolicy;

/// Tries after the first of a request that no backend has seen, without a policy.
const UNSENT_ATTEMPTS: u32 = 2;
/// The first pause where the policy names none.
const BACKOFF_DEFAULT: Duration = Duration::from_millis(25);
/// Pauses double until they are this many times the first.
const BACKOFF_FACTOR_MAX: u32 = 10;
/// The longest pause, whatever is configured.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// One try that failed, before anything of its response went to the client.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Tries made so far, this one included.
    pub number: u32,
    pub failure: Failure,
    pub body: Body,
    /// Time that is left of the request's timeout; `None`: no timeout.
    pub remaining: Option<Duration>,
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No backend has seen it: the connection was refused, or the stream was refused unprocessed (REFUSED_STREAM, above
    /// the last stream of a GOAWAY).
    NotSent,
    /// The connection failed or the stream was reset after the request was sent.
    Reset,
    /// The try's own timeout passed.
    Timeout,
    /// The backend answered this.
    Status(u16),
    /// The backend answered with this status of gRPC, and nothing else.
    Grpc(u8),
}

/// Whether the request's body can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none, or all that was sent is kept.
    Replayable,
    /// Part of it was sent and is not kept.
    Gone,
}

/// What to do after a try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Give the client this failure.
    Stop(Why),
    /// Wait so long, then send it to another endpoint if there is one.
    After(Duration),
}

/// Why it is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It may not be repeated after this failure.
    NotRetriable,
    /// All tries are made.
    Exhausted,
    BodyGone,
    /// The pause would take longer than what is left of the timeout.
    NoTime,
}

/// Decides about one failed try. `random` is drawn evenly from all of `u64`, for the jitter.
pub fn decide(policy: Option<&RetryPolicy>, attempt: &Attempt, random: u64) -> Retry {
    let Some(allowed) = attempts(policy, attempt.failure) else {
        return Retry::Stop(Why::NotRetriable);
    };
    if attempt.number > allowed {
        return Retry::Stop(Why::Exhausted);
    }
    if attempt.body == Body::Gone {
        return Retry::Stop(Why::BodyGone);
    }
    let pause = match policy {
        // Another endpoint may well be up: there is nothing to wait for.
        None => Duration::ZERO,
        Some(policy) => backoff(policy.backoff, attempt.number, random),
    };
    match attempt.remaining {
        Some(remaining) if pause >= remaining => Retry::Stop(Why::NoTime),
        _ => Retry::After(pause),
    }
}

/// Tries after the first that this failure allows; `None`: it allows none at all.
fn attempts(policy: Option<&RetryPolicy>, failure: Failure) -> Option<u32> {
    let Some(policy) = policy else {
        return (failure == Failure::NotSent).then_some(UNSENT_ATTEMPTS);
    };
    let retriable = match failure {
        Failure::NotSent => true,
        Failure::Reset | Failure::Timeout => policy.on_connection_failure,
        Failure::Status(status) => {
            policy.statuses.contains(&status) || (policy.on_server_error && status >= 500)
        }
        Failure::Grpc(status) => policy.grpc_statuses.contains(&status),
    };
    retriable.then_some(policy.attempts)
}

/// The pause before the nth retry: doubling, with up to half of it on top, never below what is configured.
fn backoff(configured: Option<Duration>, retry: u32, random: u64) -> Duration {
    let base = configured.unwrap_or(BACKOFF_DEFAULT).min(BACKOFF_MAX);
    let factor = 1_u32
        .checked_shl(retry.saturating_sub(1))
        .map_or(BACKOFF_FACTOR_MAX, |factor| factor.min(BACKOFF_FACTOR_MAX));
    let pause = base.saturating_mul(factor);
    let jitter = (pause.as_nanos() / 2).saturating_mul(u128::from(random)) >> 64;
    (pause + Duration::from_nanos(jitter as u64)).min(BACKOFF_MAX.max(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32, failure: Failure) -> Attempt {
        Attempt {
            number,
            failure,
            body: Body::Replayable,
            remaining: None,
        }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            attempts: 3,
            statuses: vec![503],
            backoff: Some(Duration::from_millis(100)),
            on_connection_failure: true,
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn without_a_policy_only_what_was_never_sent_is_sent_again() {
        let outcome = |number, failure| decide(None, &attempt(number, failure), 0);
        assert_eq!(outcome(1, Failure::NotSent), Retry::After(Duration::ZERO));
        assert_eq!(outcome(3, Failure::NotSent), Retry::Stop(Why::Exhausted));
        for failure in [Failure::Reset, Failure::Timeout, Failure::Status(503)] {
            assert_eq!(outcome(1, failure), Retry::Stop(Why::NotRetriable));
        }
    }

    #[test]
    fn a_policy_names_what_is_repeated_and_how_often() {
        let outcome = |number, failure| decide(Some(&policy()), &attempt(number, failure), 0);
        for failure in [Failure::Status(503), Failure::Reset, Failure::Timeout] {
            assert!(matches!(outcome(3, failure), Retry::After(_)));
            assert_eq!(outcome(4, failure), Retry::Stop(Why::Exhausted));
        }
        assert_eq!(
            outcome(1, Failure::Status(500)),
            Retry::Stop(Why::NotRetriable)
        );
        let silent = RetryPolicy {
            on_connection_failure: false,
            ..policy()
        };
        let reset = decide(Some(&silent), &attempt(1, Failure::Reset), 0);
        assert_eq!(reset, Retry::Stop(Why::NotRetriable));
    }

    #[test]
    fn pauses_are_never_shorter_than_configured_and_grow() {
        for (number, random, expected_ms) in
            [(1, 0, 100), (1, u64::MAX, 149), (2, 0, 200), (3, 0, 400)]
        {
            let Retry::After(pause) =
                decide(Some(&policy()), &attempt(number, Failure::Reset), random)
            else {
                panic!("try {number}");
            };
            assert_eq!(
                pause.as_millis(),
                expected_ms,
                "try {number}, random {random}"
            );
        }
        assert_eq!(
            backoff(Some(Duration::from_secs(1)), u32::MAX, 0),
            Duration::from_secs(10)
        );
        assert_eq!(backoff(Some(Duration::MAX), 7, u64::MAX), BACKOFF_MAX);
        assert_eq!(backoff(Some(Duration::ZERO), 7, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_body_that_is_gone_and_time_that_is_up_end_it() {
        let gone = Attempt {
            body: Body::Gone,
            ..attempt(1, Failure::NotSent)
        };
        assert_eq!(
            decide(Some(&policy()), &gone, 0),
            Retry::Stop(Why::BodyGone)
        );
        let late = Attempt {
            remaining: Some(Duration::from_millis(100)),
            ..attempt(1, Failure::Reset)
        };
        assert_eq!(decide(Some(&policy()), &late, 0), Retry::Stop(Why::NoTime));
    }
}
