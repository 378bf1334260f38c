//! How results and progress reach the terminal: results on standard output, progress and errors on standard error,
//! colour only where a terminal shows it and NO_COLOR is not set.

use std::io::{self, IsTerminal as _, Write as _};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// A result as JSON, for programs.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// One line of result. A reader that has gone away (`| head`) ends the program quietly.
pub(crate) fn line(text: impl std::fmt::Display) {
    if writeln!(io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A result of several lines, which ends its last.
pub(crate) fn text(text: &str) {
    if write!(io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// One line about what is wrong with what was asked.
pub(crate) fn complaint(text: impl std::fmt::Display) {
    let _nobody_reads = writeln!(io::stderr(), "{text}");
}

/// One line of progress.
pub(crate) fn progress(text: &str) {
    let shown = if text.contains("error: ") {
        paint(text, "31")
    } else if text.contains("warning: ") {
        paint(text, "33")
    } else {
        text.to_owned()
    };
    let _nobody_reads = writeln!(io::stderr(), "{shown}");
}

/// The error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    let _nobody_reads = writeln!(io::stderr(), "{} {error:#}", paint("error:", "1;31"));
}

fn paint(text: &str, code: &str) -> String {
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Rows as columns, two spaces apart; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line(cells.join("  ").trim_end());
    }
}
