//! Single values of routes: durations, hosts, paths, names, numbers. Each error is a sentence for the route's author.

use std::{sync::Arc, time::Duration};

use karst_model::route::{HostMatch, ValueMatch};
use karst_routing::pattern;

use super::Fault;

/// Parts of a duration, and digits of each part (GEP-2257).
const DURATION_PARTS_MAX: usize = 4;
const DURATION_DIGITS_MAX: usize = 5;

/// A duration as GEP-2257 writes it: `1h30m`, `500ms`. Zero stands for no limit.
pub(super) fn duration(field: &str, text: &str) -> Result<Duration, Fault> {
    read_duration(text).ok_or_else(|| {
        Fault::unsupported(format!(
            "{field}: {text:?} is no duration such as 10s, 500ms or 1h30m"
        ))
    })
}

fn read_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        parts += 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > DURATION_DIGITS_MAX || parts > DURATION_PARTS_MAX {
            return None;
        }
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let (part, after) = if let Some(after) = unit.strip_prefix("ms") {
            (Duration::from_millis(number), after)
        } else if let Some(after) = unit.strip_prefix('h') {
            (Duration::from_secs(number * 3600), after)
        } else if let Some(after) = unit.strip_prefix('m') {
            (Duration::from_secs(number * 60), after)
        } else {
            (Duration::from_secs(number), unit.strip_prefix('s')?)
        };
        total += part;
        rest = after;
    }
    (parts > 0).then_some(total)
}

/// The hosts of a route.
pub(super) fn hosts(texts: &[String]) -> Result<Vec<HostMatch>, Fault> {
    texts.iter().map(|text| host(text)).collect()
}

fn host(text: &str) -> Result<HostMatch, Fault> {
    let wrong = |why: &str| Err(Fault::unsupported(format!("hostname {text:?} {why}")));
    if text.parse::<std::net::IpAddr>().is_ok() {
        return wrong("is an address");
    }
    match text.strip_prefix('*') {
        Some(rest) if rest.strip_prefix('.').is_some_and(is_dns_name) => {
            Ok(HostMatch::Suffix(rest.into()))
        }
        None if is_dns_name(text) => Ok(HostMatch::Exact(text.into())),
        _ => wrong("is no DNS name in lower case, with `*.` at most at its start"),
    }
}

/// Labels of RFC 1123 in lower case, with dots between them.
pub(super) fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        label.len() <= 63
            && ends.iter().all(|end| end.is_some_and(fine))
            && label.bytes().all(|byte| fine(byte) || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A path to compare with: what the API's schema asks of `Exact` and `PathPrefix`.
pub(super) fn path(text: &str) -> Result<Arc<str>, Fault> {
    let wrong = |why: &str| Err(Fault::unsupported(format!("path {text:?} {why}")));
    if !text.starts_with('/') {
        return wrong("does not begin with /");
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            return wrong(&format!("contains {part}"));
        }
    }
    if text.ends_with("/..") || text.ends_with("/.") {
        return wrong("ends with dots");
    }
    if !is_path_text(text) {
        return wrong("holds a character that must be percent-encoded");
    }
    Ok(text.into())
}

fn is_path_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let hex = bytes.get(at + 1..at + 3);
                if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                    return false;
                }
                at += 2;
            }
            byte if byte.is_ascii_alphanumeric() => {}
            byte if b"-/._~!$&'()*+,;=:@".contains(byte) => {}
            _ => return false,
        }
        at += 1;
    }
    true
}

/// A regular expression, if the matcher can use it.
pub(super) fn regex(text: &str) -> Result<Arc<str>, Fault> {
    pattern::check(text)
        .map(|()| text.into())
        .map_err(|error| Fault::unsupported(error.to_string()))
}

/// The value of a header or query match.
pub(super) fn value(kind: Option<&str>, name: &str, text: &str) -> Result<ValueMatch, Fault> {
    match kind {
        _ if text.is_empty() => Err(Fault::unsupported(format!(
            "{name:?} is compared with nothing"
        ))),
        None | Some("Exact") => Ok(ValueMatch::Exact(text.into())),
        Some("RegularExpression") => regex(text).map(ValueMatch::Regex),
        Some(other) => Err(Fault::unsupported(format!(
            "type {other:?} of the match of {name:?} is neither Exact nor RegularExpression"
        ))),
    }
}

/// The name of a header: a token of RFC 9110.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, Fault> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !text.is_empty() && text.bytes().all(token) {
        true => Ok(text.to_ascii_lowercase().into()),
        false => Err(Fault::unsupported(format!(
            "{text:?} is not the name of a header"
        ))),
    }
}

/// A number within bounds.
pub(super) fn number<N: TryFrom<i64>>(
    field: &str,
    value: i64,
    bounds: std::ops::RangeInclusive<i64>,
) -> Result<N, Fault> {
    let fits = bounds.contains(&value).then(|| N::try_from(value).ok());
    fits.flatten().ok_or_else(|| {
        Fault::unsupported(format!(
            "{field}: {value} is not between {} and {}",
            bounds.start(),
            bounds.end()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        let read = |text: &str| read_duration(text).map(|one| one.as_millis());
        assert_eq!(read("0s"), Some(0));
        assert_eq!(read("1h30m10s500ms"), Some(5_410_500));
        assert_eq!(read("99999h"), Some(99_999 * 3_600_000));
        assert_eq!(read("1m1m"), Some(120_000));
        for bad in [
            "",
            "1",
            "s",
            "1.5s",
            "-1s",
            "100000s",
            "1h1h1h1h1h",
            "1d",
            "1 s",
            "1us",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn hosts_are_dns_names_with_a_star_in_front() {
        let read = |text: &str| host(text).ok();
        assert_eq!(
            read("a.example.com"),
            Some(HostMatch::Exact("a.example.com".into()))
        );
        assert_eq!(
            read("*.example.com"),
            Some(HostMatch::Suffix(".example.com".into()))
        );
        for bad in [
            "",
            "*",
            "*example.com",
            "a.*.com",
            "A.com",
            "10.0.0.1",
            "::1",
            "a..b",
            "-a.b",
            "a:80",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_are_what_the_schema_of_the_api_takes() {
        for good in ["/", "/a/b", "/a%20b", "/a/", "/a.b~c!$&'()*+,;=:@"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in [
            "", "a", "//", "/a//b", "/./a", "/a/../b", "/a/..", "/a/.", "/%2f", "/a#b", "/a b",
            "/%zz", "/%2", "/ä", "/a?b",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
