//! Single values of VirtualServices. Each error is a sentence for the author.

use std::{sync::Arc, time::Duration};

use karst_k8s_api::istio::{
    duration::Duration as Text,
    virtual_service::{Percent, StringMatch},
};
use karst_model::route::ValueMatch;
use karst_routing::pattern;

/// What shares are of.
const EVERYTHING: u32 = 1_000_000;

/// A span of time.
pub(super) fn duration(field: &str, text: &Text) -> Result<Duration, String> {
    text.read().ok_or_else(|| {
        format!(
            "{field}: {:?} is no duration such as 10s or 1h30m, or more than a year",
            text.0
        )
    })
}

/// A span of which zero means "no limit".
pub(super) fn limit(field: &str, text: Option<&Text>) -> Result<Option<Duration>, String> {
    let span = text.map(|text| duration(field, text)).transpose()?;
    Ok(span.filter(|span| *span > Duration::ZERO))
}

/// A share in millionths, from a percentage; `None`: nobody says.
pub(super) fn share(
    field: &str,
    percentage: Option<&Percent>,
    whole: Option<i64>,
) -> Result<Option<u32>, String> {
    let percent = match (percentage, whole) {
        // A percentage without a value is zero, as an unset number of protobuf is.
        (Some(percent), _) => percent.value.unwrap_or(0.0),
        (None, Some(whole)) => whole as f64,
        (None, None) => return Ok(None),
    };
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("{field}: {percent} is not between 0 and 100"));
    }
    let millionths = (percent * 10_000.0).round();
    // Within bounds, by the check above.
    Ok(Some((millionths as u32).min(EVERYTHING)))
}

/// One way to compare a text; one without any asks only that it is there.
pub(super) fn value(field: &str, source: &StringMatch) -> Result<ValueMatch, String> {
    let given = [&source.exact, &source.prefix, &source.regex];
    if given.into_iter().flatten().count() > 1 {
        return Err(format!(
            "{field}: exact, prefix and regex exclude one another"
        ));
    }
    Ok(match (&source.exact, &source.prefix, &source.regex) {
        (Some(exact), _, _) => ValueMatch::Exact(exact.as_str().into()),
        (_, Some(prefix), _) => ValueMatch::Prefix(prefix.as_str().into()),
        (_, _, Some(text)) => ValueMatch::Regex(regex(field, text)?),
        (None, None, None) => ValueMatch::Present,
    })
}

/// A regular expression, if the matcher can use it.
pub(super) fn regex(field: &str, text: &str) -> Result<Arc<str>, String> {
    pattern::check(text)
        .map(|()| text.into())
        .map_err(|error| format!("{field}: {error}"))
}

/// A port of a service.
pub(super) fn port(field: &str, number: Option<u32>) -> Result<Option<u16>, String> {
    let Some(number) = number.filter(|number| *number > 0) else {
        return Ok(None);
    };
    u16::try_from(number)
        .map(Some)
        .map_err(|_large| format!("{field}: {number} is not a port"))
}

/// A number of HTTP or gRPC within bounds.
pub(super) fn status(
    field: &str,
    number: i64,
    bounds: std::ops::RangeInclusive<i64>,
) -> Result<u16, String> {
    let fits = bounds.contains(&number).then(|| u16::try_from(number).ok());
    fits.flatten().ok_or_else(|| {
        format!(
            "{field}: {number} is not between {} and {}",
            bounds.start(),
            bounds.end()
        )
    })
}
