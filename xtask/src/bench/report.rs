//! The outcome as JSON rows, and as the table between two marks of `docs/performance.md`.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Sample, machine};
use crate::shell;

const PAGE: &str = "docs/performance.md";
const END: &str = "<!-- end of table -->";

/// One row.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) id: &'static str,
    #[serde(skip)]
    what: &'static str,
    karst: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_op: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_cpu_us_per_op: Option<f64>,
    unit: &'static str,
}

impl Row {
    /// The mesh beside plain TCP.
    pub(super) fn compared(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        karst: Sample,
        direct: Sample,
    ) -> Self {
        Self {
            id,
            what,
            unit,
            karst: karst.value,
            baseline: Some("direct"),
            direct: Some(direct.value),
            ratio: Some(karst.value / direct.value),
            cpu_us_per_op: Some(karst.cpu_us_per_op),
            direct_cpu_us_per_op: Some(direct.cpu_us_per_op),
        }
    }

    /// A time in the mesh beside the same outside.
    pub(super) fn timed(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        karst: f64,
        direct: f64,
    ) -> Self {
        Self {
            baseline: Some("direct"),
            direct: Some(direct),
            ratio: Some(karst / direct),
            ..Self::alone(id, what, unit, karst)
        }
    }

    /// A figure beside that of another implementation at the same work.
    pub(super) fn against(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        karst: f64,
        other: &'static str,
        theirs: f64,
    ) -> Self {
        Self {
            baseline: Some(other),
            direct: Some(theirs),
            ratio: Some(karst / theirs),
            ..Self::alone(id, what, unit, karst)
        }
    }

    /// What rows are sorted by.
    pub(super) fn number(&self) -> Option<u32> {
        let digits = self
            .id
            .trim_matches(|letter: char| !letter.is_ascii_digit());
        digits.parse().ok()
    }

    /// A figure that stands for itself.
    pub(super) fn alone(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        karst: f64,
    ) -> Self {
        Self {
            id,
            what,
            unit,
            karst,
            baseline: None,
            direct: None,
            ratio: None,
            cpu_us_per_op: None,
            direct_cpu_us_per_op: None,
        }
    }

    fn line_beside(&self) -> String {
        format!(
            "| {} | {} | {} {} | {} | {} | {} |\n",
            self.id,
            self.what,
            significant(self.karst),
            self.unit,
            self.baseline.unwrap_or("-"),
            self.direct.map_or_else(|| "-".to_owned(), significant),
            self.ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
        )
    }

    fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
        format!(
            "| {} | {} | {} | {} {} | {} | {} | {} |\n",
            self.id,
            self.what,
            number(self.direct),
            significant(self.karst),
            self.unit,
            self.ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x")),
            number(self.direct_cpu_us_per_op),
            number(self.cpu_us_per_op),
        )
    }
}

/// Three significant digits: more would claim more than one run shows.
pub(super) fn significant(value: f64) -> String {
    let digits = if value > 0.0 {
        value.log10().floor() as i32
    } else {
        0
    };
    let decimals = usize::try_from(2 - digits).unwrap_or(0);
    format!("{value:.decimals$}")
}

/// One JSON object per row.
pub(super) fn print(rows: &[Row]) -> Result<()> {
    let lines: Vec<String> = rows
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    print_lines(lines.into_iter())
}

/// The result of a benchmark that somebody reads by program.
#[expect(clippy::print_stdout, reason = "the rows are this command's result")]
pub(super) fn print_lines(lines: impl Iterator<Item = String>) -> Result<()> {
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

/// What was measured where: the line above a table.
pub(super) fn provenance() -> String {
    let commit = shell::capture(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_default();
    format!("Commit {}, {}.", commit.trim(), machine())
}

/// Replaces the table of a benchmark that compares with plain TCP.
pub(super) fn write(name: &str, rows: &[Row], rounds: usize, seconds: u64) -> Result<()> {
    let mut table = format!(
        "{} Medians of {rounds} interleaved rounds of {seconds} s.\n\n\
         | id | work | direct | Karst | ratio | CPU direct, us/op | CPU Karst, us/op |\n|---|---|---|---|---|---|---|\n",
        provenance(),
    );
    table.extend(rows.iter().map(Row::line));
    replace(name, &table)
}

/// Replaces the table of a benchmark that compares with other implementations.
pub(super) fn write_beside(name: &str, rows: &[Row], rounds: usize, seconds: u64) -> Result<()> {
    let mut table = format!(
        "{} Medians of {rounds} interleaved rounds of {seconds} s.\n\n\
         | id | work | Karst | beside | its figure | ratio |\n|---|---|---|---|---|---|\n",
        provenance(),
    );
    table.extend(rows.iter().map(Row::line_beside));
    replace(name, &table)
}

/// Replaces the table of `cargo xtask bench NAME` in the page, and prints it.
#[expect(clippy::print_stdout, reason = "the table is this command's result")]
pub(super) fn replace(name: &str, table: &str) -> Result<()> {
    let begin = format!("<!-- table: written by cargo xtask bench {name} -->");
    let page = fs::read_to_string(PAGE).with_context(|| format!("reading {PAGE}"))?;
    let (before, rest) = page
        .split_once(&begin)
        .with_context(|| format!("{PAGE} lacks the mark {begin}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{PAGE} lacks the mark {END}"))?;
    println!("{table}");
    fs::write(PAGE, format!("{before}{begin}\n{table}{END}{after}"))
        .with_context(|| format!("writing {PAGE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (36.04, "36.0"),
            (0.1934, "0.193"),
            (13712.0, "13712"),
            (0.0, "0.00"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn a_row_is_printed_as_the_interface_promises() {
        let sample = |value| Sample {
            value,
            cpu_us_per_op: 2.0,
        };
        let row = Row::compared("P1", "one stream", "Gbit/s", sample(10.0), sample(20.0));
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["baseline"], "direct");
        assert_eq!(
            (&json["karst"], &json["direct"], &json["ratio"]),
            (&10.0.into(), &20.0.into(), &0.5.into())
        );
        assert_eq!(json["unit"], "Gbit/s");
    }
}
