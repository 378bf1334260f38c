//! docs/reference/telemetry.md is what the code says: every metric, label, span attribute, log field and response flag.
//! `KARST_CODEGEN=write` writes it instead.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use karst_telemetry::{access_log, metrics, request_log, span};
use regex::Regex;

/// Programs, and what they share, with their sources.
const SOURCES: [(&str, &[&str]); 5] = [
    (
        "Agents and waypoints",
        &[
            "crates/telemetry/src",
            "crates/hbone/src",
            "crates/identity/src",
            "crates/discovery/src",
            "crates/link/src",
        ],
    ),
    ("Agents", &["agent/src"]),
    ("Waypoints", &["waypoint/src"]),
    ("Controller", &["controller/src"]),
    ("All programs", &["crates/runtime/src"]),
];

/// Metrics that no line with a name and a help registers.
const READ_WHEN_SCRAPED: [(&str, &str, &str); 1] = [(
    "Agents",
    "karst_kernel_events",
    "What the kernel programs did with connections, by event",
)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() && name != "tests" {
            sources(&path, all);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            all.push(path);
        }
    }
}

/// Names with their help, as the sources register them.
fn registered(folders: &[&str]) -> BTreeMap<String, String> {
    let pattern =
        r#""((?:istio|karst|workload_manager)_[a-z0-9_]+)"\s*,\s*(?:help:\s*)?"((?:[^"\\]|\\.)+)""#;
    let pattern = Regex::new(pattern).unwrap();
    let mut files = Vec::new();
    folders
        .iter()
        .for_each(|folder| sources(&root().join(folder), &mut files));
    let mut all = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        // What only tests register is nobody's metric.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for found in pattern.captures_iter(text) {
            let is_help = found[2].starts_with(char::is_uppercase);
            if is_help && !found[1].ends_with("_series") {
                all.insert(found[1].to_owned(), found[2].to_owned());
            }
        }
    }
    all
}

/// Values of an enum of flags with what their documentation says.
fn flags(file: &str, name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let body = text.split(&format!("pub enum {name} {{")).nth(1).unwrap();
    let body = body.split("\n}").next().unwrap();
    let docs: BTreeMap<String, String> = Regex::new(r"///\s*(.+)\n(?:\s*#\[.*\]\n)?\s*(\w+),")
        .unwrap()
        .captures_iter(body)
        .map(|found| (found[2].to_owned(), found[1].to_owned()))
        .collect();
    let values = text.split(&format!("impl {name} {{")).nth(1).unwrap();
    let values = values.split("\n}").next().unwrap();
    let pattern = Regex::new(r#"Self::(\w+) => "([^"]+)""#).unwrap();
    let row = |found: regex::Captures<'_>| {
        let meaning = docs.get(&found[1]).cloned();
        (
            found[2].to_owned(),
            meaning.unwrap_or_else(|| "Nothing went wrong".to_owned()),
        )
    };
    pattern.captures_iter(values).map(row).collect()
}

fn table<'a>(
    out: &mut String,
    head: [&str; 2],
    rows: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    writeln!(out, "| {} | {} |\n|---|---|", head[0], head[1]).unwrap();
    for (name, text) in rows {
        writeln!(out, "| `{name}` | {} |", text.trim_end_matches('.')).unwrap();
    }
    out.push('\n');
}

fn pairs<'a>(
    rows: impl IntoIterator<Item = &'a (String, String)>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    rows.into_iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
}

fn page() -> String {
    let mut out = String::from(
        "# Telemetry: every name\n\nGenerated from the code by `KARST_CODEGEN=write cargo test -p karst-telemetry --test reference`. How to use it: \
         [Telemetry](../operate/telemetry.md).\n\nA counter is shown without its `_total`. A label whose value is not known is `unknown`.\n\n## Metrics\n\n",
    );
    let of_metrics = ["metric", "what it counts"];
    for (program, folders) in SOURCES {
        let all: Vec<(String, String)> = registered(folders).into_iter().collect();
        let mut all = all;
        let read_when_scraped = READ_WHEN_SCRAPED.iter().filter(|(of, ..)| *of == program);
        all.extend(
            read_when_scraped.map(|(_, name, help)| ((*name).to_owned(), (*help).to_owned())),
        );
        if !all.is_empty() {
            writeln!(out, "### {program}\n").unwrap();
            table(&mut out, of_metrics, pairs(&all));
        }
    }
    let bounds = ["karst_metric_series", "karst_request_series"].map(|name| {
        let row = |part: &str, text: &str| (format!("{name}_{part}"), text.to_owned());
        [
            row("in_use", "Label sets in use"),
            row(
                "overflow",
                "Counted without names because the bound on label sets was reached",
            ),
            row(
                "folded",
                "Label sets that nobody counted in any more: their counts are in the one without names",
            ),
        ]
    });
    out.push_str("### Bounds of label sets\n\n");
    table(&mut out, of_metrics, pairs(bounds.iter().flatten()));
    writeln!(
        out,
        "## Labels\n\nOf connections (`istio_tcp_*`), in this order:\n\n{}\n\nOf requests (`istio_request*`, `istio_response_bytes`), in this order:\n\n{}\n",
        names(&metrics::tcp::LABELS),
        names(&metrics::http::LABELS)
    )
    .unwrap();
    out.push_str("## Attributes of spans\n\n");
    table(&mut out, ["attribute", "value"], span::ATTRIBUTES);
    out.push_str("## Fields of access logs\n\nOf connections:\n\n");
    table(&mut out, ["field", "value"], access_log::FIELDS);
    out.push_str("Of requests:\n\n");
    table(&mut out, ["field", "value"], request_log::FIELDS);
    out.push_str("## Response flags\n\nOf connections:\n\n");
    let of_connections = flags("crates/telemetry/src/metrics/tcp.rs", "ResponseFlags");
    table(&mut out, ["flag", "meaning"], pairs(&of_connections));
    out.push_str("Of requests:\n\n");
    let of_requests = flags("crates/telemetry/src/metrics/http.rs", "RequestFlag");
    table(&mut out, ["flag", "meaning"], pairs(&of_requests));
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn names(labels: &[&str]) -> String {
    let quoted: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    quoted.join(", ")
}

#[test]
fn the_page_is_fresh() {
    let path = root().join("docs/reference/telemetry.md");
    let page = page();
    if std::env::var("KARST_CODEGEN").as_deref() == Ok("write") {
        fs::write(path, page).unwrap();
        return;
    }
    let old = fs::read_to_string(path).unwrap_or_default();
    assert!(
        old == page,
        "docs/reference/telemetry.md is stale: run `KARST_CODEGEN=write cargo test -p karst-telemetry --test reference`"
    );
}

#[test]
fn what_the_sources_register_is_found() {
    let all = registered(&["agent/src"]);
    assert!(all.contains_key("karst_no_original_destination"), "{all:?}");
    let flags = flags("crates/telemetry/src/metrics/http.rs", "RequestFlag");
    let no_route = ("NR".to_owned(), "No route matched.".to_owned());
    assert!(flags.contains(&no_route), "{flags:?}");
}
