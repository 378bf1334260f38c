//! Until when a request may take, as its headers say and as they are told to the next.
//!
//! A caller that is itself waited for only so long says so, and nobody works longer for it than it waits: Envoy writes
//! `x-envoy-expected-rq-timeout-ms` for the next hop, gRPC has `grpc-timeout`. Both are read as upper bounds of a route's own
//! timeout, and both are written with what is left. Source: Envoy, "x-envoy-expected-rq-timeout-ms"; gRPC over HTTP/2,
//! "Timeout".

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits of a timeout of gRPC.
const GRPC_DIGITS_MAX: usize = 8;

/// How long the caller waits, as far as it says. What cannot be read says nothing.
pub fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let expected = text(EXPECTED).and_then(milliseconds);
    let grpc = text(GRPC).and_then(grpc_timeout);
    expected.into_iter().chain(grpc).min()
}

/// The shorter of a route's timeout and the caller's.
pub fn shorter(route: Option<Duration>, caller: Option<Duration>) -> Option<Duration> {
    route.into_iter().chain(caller).min()
}

/// Tells the next hop how long it has, at least a millisecond. A `grpc-timeout` is written for gRPC alone.
pub fn put(headers: &mut HeaderMap, left: Duration) {
    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    headers.insert(EXPECTED, HeaderValue::from(left));
    let kind = headers.get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc && let Ok(value) = HeaderValue::try_from(grpc_text(left)) {
        headers.insert(GRPC, value);
    }
}

/// Zero means "no limit".
fn milliseconds(text: &str) -> Option<Duration> {
    let number: u64 = text.trim().parse().ok()?;
    (number > 0).then(|| Duration::from_millis(number))
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.bytes().last()?;
    let digits = text.get(..text.len() - 1)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() || digits.len() > GRPC_DIGITS_MAX || !plain {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn grpc_text(milliseconds: u64) -> String {
    match milliseconds {
        few @ 0..=99_999_999 => format!("{few}m"),
        more => format!("{}S", (more / 1000).min(99_999_999)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = list.iter();
        pairs
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn the_shorter_word_of_the_caller_counts() {
        let read = |list: &[_]| of(&headers(list)).map(|span| span.as_micros());
        let expected = "x-envoy-expected-rq-timeout-ms";
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[(expected, "250")]), Some(250_000));
        assert_eq!(
            read(&[(expected, "250"), ("grpc-timeout", "1S")]),
            Some(250_000)
        );
        assert_eq!(
            read(&[(expected, "2000"), ("grpc-timeout", "1S")]),
            Some(1_000_000)
        );
        assert!(read(&[("grpc-timeout", "99999999H")]).is_some());
        for nothing in ["0", "", "-1", "1s", "1e3"] {
            assert_eq!(read(&[(expected, nothing)]), None, "{nothing}");
        }
        for nothing in ["", "S", "100000000S", "1X", "-1S", "1 S"] {
            assert_eq!(read(&[("grpc-timeout", nothing)]), None, "{nothing}");
        }
    }

    #[test]
    fn what_is_left_is_told_and_read_again_as_no_more() {
        for left in [0, 1, 999, 99_999_999, 100_000_500, u64::MAX] {
            for kind in ["text/plain", "application/grpc+proto"] {
                let mut headers = headers(&[("content-type", kind)]);
                put(&mut headers, Duration::from_millis(left));
                let read = of(&headers).unwrap();
                assert!(read.as_millis() <= u128::from(left.max(1)), "{left} {kind}");
                let grpc = headers.contains_key("grpc-timeout");
                assert_eq!(grpc, kind.starts_with("application/grpc"));
            }
        }
    }
}
