//! The form of one log line, text or JSON. Field order is the order in which the event names its fields.
//!
//! Text from peers reaches log lines: control characters are escaped in both forms, so that nobody forges a line.

use std::{
    fmt::{self, Write as _},
    time::Instant,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime as Rfc3339},
    },
    registry::LookupSpan,
};

use super::{
    Format,
    limit::{Admitted, Limit},
};

/// Writes events in the chosen form.
pub(super) struct Line {
    format: Format,
    limit: Limit,
}

/// The target of lines that are written as they are.
const RAW: &str = "access.line";

impl Line {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            limit: Limit::default(),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        _ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let suppressed = match self.limit.admit(event.metadata(), Instant::now()) {
            Admitted::No => return Ok(()),
            Admitted::Yes { suppressed } => suppressed,
        };
        let mut fields = Fields {
            format: self.format,
            raw: event.metadata().target() == RAW,
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut fields);
        if event.metadata().target() == RAW {
            return writeln!(writer, "{}", fields.message);
        }
        if suppressed > 0 {
            // Writing into a String cannot fail.
            let _ = match self.format {
                Format::Text => write!(fields.rest, "\tsuppressed={suppressed}"),
                Format::Json => write!(fields.rest, ",\"suppressed\":{suppressed}"),
            };
        }
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let target = event.metadata().target();
        let Fields { message, rest, .. } = &fields;
        match self.format {
            Format::Text => writeln!(writer, "{}\t{level}\t{target}\t{message}{rest}", now()?),
            Format::Json => writeln!(
                writer,
                r#"{{"level":"{level}","time":"{}","scope":{},"message":{message}{rest}}}"#,
                now()?,
                quoted(target),
                message = if message.is_empty() { "\"\"" } else { message },
            ),
        }
    }
}

/// A moment as RFC 3339 has it, UTC, with milliseconds.
pub(crate) fn time(at: std::time::SystemTime) -> String {
    let since = at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(std::time::Duration::ZERO);
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, date) = civil(day);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The date of a day since the epoch, in the Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, date)
}

fn now() -> Result<String, fmt::Error> {
    let mut time = String::with_capacity(32);
    Rfc3339.format_time(&mut Writer::new(&mut time))?;
    Ok(time)
}

/// Collects an event's fields in the form of the line.
struct Fields {
    format: Format,
    /// The message is the whole line.
    raw: bool,
    message: String,
    rest: String,
}

impl Fields {
    fn put(&mut self, field: &Field, value: &str, kind: Kind) {
        let written = match (self.format, kind) {
            (_, Kind::Text) if self.raw => escaped(value),
            (_, Kind::Bare) => value.to_owned(),
            (Format::Json, Kind::Text) => quoted(value),
            (Format::Text, Kind::Text) if field.name() == "message" => escaped(value),
            (Format::Text, Kind::Text) if needs_quotes(value) => quoted(value),
            (Format::Text, Kind::Text) => value.to_owned(),
        };
        if field.name() == "message" {
            self.message = written;
            return;
        }
        // Writing into a String cannot fail.
        let _ = match self.format {
            Format::Text => write!(self.rest, "\t{}={written}", field.name()),
            Format::Json => write!(self.rest, ",{}:{written}", quoted(field.name())),
        };
    }
}

/// Whether a value is text, which is quoted where it must be, or a number or truth value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bare,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"), Kind::Text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value, Kind::Text);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value.to_string(), Kind::Bare);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value.to_string(), Kind::Bare);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value.to_string(), Kind::Bare);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(
            field,
            &crate::error_chain::Chain(value).to_string(),
            Kind::Text,
        );
    }
}

/// Whether a terminal, or whoever reads lines, could take it for something else than text: control characters of both
/// sets, line separators, and what turns the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty()
        || value
            .chars()
            .any(|c| c.is_whitespace() || is_unsafe(c) || c == '"' || c == '=')
}

/// A JSON string, quotes included.
fn quoted(value: &str) -> String {
    json_line(&serde_json::Value::from(value))
}

/// JSON on one line, in which what JSON itself leaves as it is and a terminal does not is escaped too.
pub(crate) fn json_line(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if !text.chars().any(is_unsafe) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unsafe(c) {
            // All of them are below 0x10000.
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// The message of a text line: readable, but on one line.
pub(crate) fn escaped(value: &str) -> String {
    if !value.chars().any(is_unsafe) {
        return value.to_owned();
    }
    let mut out = String::with_capacity(value.len() + 16);
    for c in value.chars() {
        match is_unsafe(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Format, captured};

    fn after_time(line: &str) -> &str {
        line.split_once('\t').unwrap().1
    }

    #[test]
    fn a_moment_is_written_as_the_standard_has_it() {
        use std::time::{Duration, UNIX_EPOCH};
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_795_270_000, "2026-11-21T14:06:40.007Z"),
        ] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(7);
            assert_eq!(super::time(at), expected);
        }
    }

    #[test]
    fn nothing_reaches_a_terminal() {
        let hostile = "a\u{1b}[31m\u{9b}2J\u{202e}x\u{2028}y\u{7}\r";
        for format in [Format::Text, Format::Json] {
            let line = captured(format, "info", |_| {
                tracing::info!(host = hostile, "seen {hostile}");
                tracing::info!(target: "access.line", "{hostile}");
            });
            let bad = |c: char| {
                (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202e}' | '\u{2028}')
            };
            assert!(!line.chars().any(bad), "{line:?}");
            assert_eq!(line.lines().count(), 2, "{line:?}");
        }
    }

    #[test]
    fn text_is_tab_separated() {
        let line = captured(Format::Text, "info", |_| {
            tracing::info!(target: "t", peer = "a b", port = 80, "hello");
        });
        assert_eq!(after_time(&line), "info\tt\thello\tpeer=\"a b\"\tport=80\n");
    }

    #[test]
    fn json_parses_and_keeps_types() {
        let line = captured(Format::Json, "info", |_| {
            tracing::info!(target: "t", peer = "a\"b", port = 80, ok = true, "hello");
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["peer"], "a\"b");
        assert_eq!(value["port"], 80);
        assert_eq!(value["ok"], true);
        assert_eq!(
            (&value["message"], &value["scope"]),
            (&"hello".into(), &"t".into())
        );
    }

    #[test]
    fn a_peer_cannot_forge_a_line() {
        let forged = "x\n2026\tinfo\taccess\tconnection complete";
        let text = captured(Format::Text, "info", |_| {
            tracing::info!(host = forged, "seen {forged}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let json = captured(Format::Json, "info", |_| {
            tracing::info!(host = forged, "seen {forged}")
        });
        assert_eq!(json.lines().count(), 1, "{json}");
    }
}
