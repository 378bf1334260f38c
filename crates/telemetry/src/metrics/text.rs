//! Lines of OpenMetrics that are written directly: label sets are kept as text, so that a scrape copies them.

use std::fmt::Write as _;

use super::series::Counts;

/// The value of a label that is not known.
pub(super) const UNKNOWN: &str = "unknown";
/// Longest value of a label that a user's expression makes, in bytes.
const VALUE_BYTES_MAX: usize = 128;

/// A page that grows.
#[derive(Debug, Default)]
pub struct Lines(pub String);

/// How full a table of label sets is.
pub(super) fn fullness(name: &str, of: &str, counts: &Counts, out: &mut Lines) {
    let _ = write!(
        out.0,
        "# HELP {name}_in_use Label sets in use.\n# TYPE {name}_in_use gauge\n{name}_in_use {}\n\
         # HELP {name}_overflow {of} counted without names because the bound on label sets was reached.\n\
         # TYPE {name}_overflow counter\n{name}_overflow_total {}\n\
         # HELP {name}_folded Label sets that went into the one without names.\n\
         # TYPE {name}_folded counter\n{name}_folded_total {}\n",
        counts.sets, counts.overflowed, counts.folded
    );
}

/// Adds `name="value"`; nothing known is `unknown`.
pub(super) fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    // Writing into a String cannot fail.
    let _ = write!(out, "{name}=\"");
    escape(out, if value.is_empty() { UNKNOWN } else { value });
    out.push('"');
}

/// Adds a label whose value somebody from outside has a say in: bounded, and on one line.
pub(super) fn foreign_label(out: &mut String, name: &str, value: &str) {
    let mut end = value.len().min(VALUE_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let printable: String = value[..end]
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    label(out, name, &printable);
}

/// As OpenMetrics escapes the value of a label.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Whether a name may be a label's.
pub(super) fn is_label_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_end_its_label() {
        let mut out = String::new();
        label(&mut out, "a", "x\"} 1\ny{b=\"\\");
        foreign_label(&mut out, "b", "line\u{1b}[31m\nnext");
        assert_eq!(out, "a=\"x\\\"} 1\\ny{b=\\\"\\\\\",b=\"line?[31m?next\"");
        let mut long = String::new();
        foreign_label(&mut long, "c", &"ä".repeat(100));
        assert_eq!(long, format!("c=\"{}\"", "ä".repeat(64)));
    }

    #[test]
    fn names_of_labels_are_those_of_prometheus() {
        assert!(is_label_name("request_host") && is_label_name("_x1"));
        for wrong in ["", "1a", "a-b", "a b", "__name__", "ä"] {
            assert!(!is_label_name(wrong), "{wrong}");
        }
    }
}
