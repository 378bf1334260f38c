//! A span of time as Istio's resources write it: `1.5s`, `250ms`, `1h30m`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What Go's `time.ParseDuration` takes, without a sign.
const PATTERN: &str = r"^(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*)$";

/// The text as given; whether it is a duration is checked by the API server and by admission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// The span, as Go's `time.ParseDuration` reads it; `None` for a text that is none, or more than a year.
    pub fn read(&self) -> Option<std::time::Duration> {
        const YEAR: f64 = 365.0 * 86_400.0;
        if self.0 == "0" {
            return Some(std::time::Duration::ZERO);
        }
        let (mut rest, mut total) = (self.0.as_str(), 0.0);
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, after) = rest.split_at(end);
            let number: f64 = number.parse().ok()?;
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
            let (unit, next) = after.split_at(end.unwrap_or(after.len()));
            total += number * seconds(unit)?;
            rest = next;
        }
        // Whole nanoseconds, so that 0.1s is 100 ms.
        let is_span = !self.0.is_empty() && total <= YEAR;
        is_span.then(|| std::time::Duration::from_nanos((total * 1e9).round() as u64))
    }
}

/// Seconds of a unit.
fn seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 64,
            // A pattern, not a CEL rule: a DestinationRule has so many durations that their cost passes the budget.
            "pattern": PATTERN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let read = |text: &str| Duration(text.to_owned()).read().map(|span| span.as_nanos());
        assert_eq!(read("1.5s"), Some(1_500_000_000));
        assert_eq!(read("1h30m"), Some(5_400_000_000_000));
        assert_eq!(read("0.1s"), Some(100_000_000));
        assert_eq!(read(".5ms"), Some(500_000));
        assert_eq!(read("7us3ns"), Some(7_003));
        assert_eq!(read("0"), Some(0));
        for wrong in ["", "1", "s", "-1s", "1 s", "1d", "1..2s", "9999999h", "1s2"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
