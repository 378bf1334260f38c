//! The reference pages of the documentation, made from the program itself, and the test that they are fresh:
//! `KARST_CODEGEN=write cargo test -p karst-cli reference` writes them.

use std::{fmt::Write as _, fs, path::Path};

use clap::CommandFactory as _;

use crate::args::Args;

/// Columns of the help text.
const WIDTH: usize = 100;

fn check(page: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/reference")
        .join(page);
    if std::env::var("KARST_CODEGEN").as_deref() == Ok("write") {
        fs::write(&path, fresh).unwrap();
        return;
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        present == fresh,
        "docs/reference/{page} is stale: run `KARST_CODEGEN=write cargo test -p karst-cli reference`"
    );
}

#[test]
fn commands() {
    let mut page = String::from(
        "# Commands of `karst`\n\nMade from the program's own help; installed as `kubectl-karst`, it answers as `kubectl karst`.\n",
    );
    describe(Args::command().term_width(WIDTH), "karst", &mut page);
    check("commands.md", &page);
}

fn describe(mut command: clap::Command, name: &str, page: &mut String) {
    command = command.bin_name(name.to_owned());
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    writeln!(
        page,
        "\n## `{name}`\n\n```text\n{}\n```",
        lines.join("\n").trim_end()
    )
    .unwrap();
    let shown = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for sub in shown.cloned().collect::<Vec<_>>() {
        let name = format!("{name} {}", sub.get_name());
        describe(sub.term_width(WIDTH), &name, page);
    }
}

#[test]
fn values() {
    let text = include_str!("../../manifests/chart/values.yaml");
    let mut page = String::from(
        "# Values of the chart\n\nMade from `manifests/chart/values.yaml`. For Helm (`--set`, `--values`) and for `karst install` alike.\n\n| value | default | meaning |\n|---|---|---|\n",
    );
    for row in rows(text) {
        writeln!(page, "{row}").unwrap();
    }
    check("values.md", &page);
}

/// A row for each value that has a comment above it. What is below such a value belongs to its default.
fn rows(text: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut comment = String::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(said) = line.strip_prefix('#') {
            comment = format!("{comment} {}", said.trim());
            continue;
        }
        let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with('-')) else {
            comment.clear();
            continue;
        };
        path.retain(|(outer, _)| *outer < indent);
        let mut default = value.trim().to_owned();
        if !comment.is_empty() {
            while let Some(below) = lines.next_if(|below| {
                let deeper = below.len() - below.trim_start().len() > indent;
                deeper && !below.trim_start().starts_with('#')
            }) {
                default = format!("{default} {}", below.trim());
            }
            let name: String = path.iter().map(|(_, key)| format!("{key}.")).collect();
            let default = match default.trim() {
                "" | "\"\"" => "empty".to_owned(),
                default => format!("`{default}`"),
            };
            rows.push(format!(
                "| `{name}{key}` | {default} | {} |",
                comment.trim()
            ));
        }
        path.push((indent, key.to_owned()));
        comment.clear();
    }
    rows
}
