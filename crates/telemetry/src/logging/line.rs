//! The form of one log line, text or JSON. Field order is the order in which the event names its fields.
//!
//! Text from peers reaches log lines: control characters are escaped in both forms, so that nobody forges a line.

use std::fmt::{self, Write as _};

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

use super::Format;

/// Writes events in the chosen form.
pub(super) struct Line {
    format: Format,
}

impl Line {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
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
        let mut fields = Fields {
            format: self.format,
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut fields);
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

fn now() -> Result<String, fmt::Error> {
    let mut time = String::with_capacity(32);
    Rfc3339.format_time(&mut Writer::new(&mut time))?;
    Ok(time)
}

/// Collects an event's fields in the form of the line.
struct Fields {
    format: Format,
    message: String,
    rest: String,
}

impl Fields {
    fn put(&mut self, field: &Field, value: &str, kind: Kind) {
        let written = match (self.format, kind) {
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

fn needs_quotes(value: &str) -> bool {
    value.is_empty()
        || value
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

/// A JSON string, quotes included.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// The message of a text line: readable, but on one line.
fn escaped(value: &str) -> String {
    if value.chars().any(char::is_control) {
        return value.escape_debug().to_string();
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{Format, captured};

    fn after_time(line: &str) -> &str {
        line.split_once('\t').unwrap().1
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
