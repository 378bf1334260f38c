//! Rules about files: each is named by a `mod`, says what it is, and has a room's name.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    Findings,
    workspace::{Package, Workspace},
};

/// Names that hide rooms: name the idea instead.
const NO_ROOMS: &[&str] = &[
    "utils", "util", "common", "helpers", "helper", "misc", "types", "manager",
];

/// Where generated code lies: it has no heads and its own file names.
const GENERATED: &str = "src/gen";

/// Files that no target reaches: they are not compiled, and their tests are not run. Generated code is included through
/// macros, so there it is enough that some file names it.
pub(super) fn orphans(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in &workspace.packages {
        let reached = reached(package);
        let lost = package
            .sources
            .keys()
            .filter(|file| !reached.contains(*file) && !included(package, file));
        findings.extend(lost.map(|file| {
            let file = package.place().join(file);
            format!(
                "{}: no `mod` line reaches it, so it is not compiled",
                file.display()
            )
        }));
    }
    findings
}

fn included(package: &Package, file: &Path) -> bool {
    let quoted = format!(
        "\"{}\"",
        file.file_name().unwrap_or_default().to_string_lossy()
    );
    file.starts_with(GENERATED) && package.sources.values().any(|text| text.contains(&quoted))
}

fn reached(package: &Package) -> BTreeSet<PathBuf> {
    let roots = package
        .targets
        .iter()
        .filter_map(|target| target.src_path.strip_prefix(package.folder()).ok());
    let mut waiting: Vec<(PathBuf, bool)> = roots.map(|root| (root.to_owned(), true)).collect();
    let mut reached = BTreeSet::new();
    while let Some((file, is_root)) = waiting.pop() {
        let Some(text) = package.sources.get(&file) else {
            continue;
        };
        if !reached.insert(file.clone()) {
            continue;
        }
        for named in named_files(text, &file, is_root) {
            waiting.push((named, false));
        }
    }
    reached
}

/// The files that a file's `mod`, `#[path]` and `include!` lines name, whether they exist or not.
fn named_files(text: &str, file: &Path, is_root: bool) -> Vec<PathBuf> {
    let beside = file.parent().unwrap_or_else(|| Path::new(""));
    let below = if is_root {
        beside.to_owned()
    } else {
        file.with_extension("")
    };
    let mut named = Vec::new();
    for line in text.lines().map(str::trim) {
        for (_, rest) in [line.split_once("include!(\""), line.split_once("path = \"")]
            .into_iter()
            .flatten()
        {
            named.extend(rest.split('"').next().map(|path| plain(&beside.join(path))));
        }
        if let Some(module) = module_of(line) {
            named.push(below.join(format!("{module}.rs")));
            named.push(below.join(module).join("mod.rs"));
        }
    }
    named
}

/// The name in `mod name;`, with any visibility.
fn module_of(line: &str) -> Option<&str> {
    let declared = match line.find("mod ") {
        Some(0) => line,
        Some(at) if line.starts_with("pub") => &line[at..],
        _ => return None,
    };
    declared
        .strip_prefix("mod ")?
        .split(';')
        .next()
        .filter(|_| line.contains(';'))
        .map(|name| name.trim_start_matches("r#"))
}

/// A path without `..` and `.`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Files that do not begin by saying what they are.
pub(super) fn heads(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in &workspace.packages {
        let written = package
            .sources
            .iter()
            .filter(|(file, _)| !file.starts_with(GENERATED));
        let headless = written.filter(|(_, text)| {
            let first = text.lines().find(|line| {
                !line.is_empty() && !line.starts_with("#![") && !line.contains("SPDX")
            });
            !first.is_some_and(|line| line.starts_with("//!"))
        });
        findings.extend(headless.map(|(file, _)| {
            format!(
                "{}: its first line must say, after //!, what the file is",
                package.place().join(file).display()
            )
        }));
    }
    findings
}

/// Files and folders whose name says nothing.
pub(super) fn rooms(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in &workspace.packages {
        for file in package
            .sources
            .keys()
            .filter(|file| !file.starts_with(GENERATED))
        {
            let mut parts = file.iter().map(|part| part.to_string_lossy());
            if let Some(part) = parts.find(|part| NO_ROOMS.contains(&part.trim_end_matches(".rs")))
            {
                findings.push(format!(
                    "{}: {part} hides what is in it: name the idea",
                    package.place().join(file).display()
                ));
            }
        }
    }
    findings
}

/// Metric fields that are declared and then never touched by any line.
pub(super) fn metrics(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in &workspace.packages {
        for (file, text) in &package.sources {
            for field in text.lines().filter_map(metric_field) {
                let touch = format!(".{field}");
                let touched = workspace
                    .packages
                    .iter()
                    .flat_map(|package| package.sources.values());
                if !touched.into_iter().any(|text| has_word(text, &touch)) {
                    findings.push(format!(
                        "{}: metric {field} is declared and never counted",
                        package.place().join(file).display()
                    ));
                }
            }
        }
    }
    findings
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let after = text[at + word.len()..].chars().next();
        !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The field's name in a line such as `pub(crate) opened: Family<Labels, Counter>,`.
fn metric_field(line: &str) -> Option<&str> {
    let (name, kind) = line.trim().strip_suffix(',')?.split_once(": ")?;
    let metric = ["Counter", "Gauge", "Histogram", "Family<"]
        .iter()
        .any(|metric| kind == *metric || (metric.ends_with('<') && kind.starts_with(metric)));
    let name = name.rsplit(' ').next()?;
    (metric && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mod_lines_name_files_below_their_own() {
        let named = named_files(
            "pub(crate) mod pool;\nmod inline {\n}\n// mod no;\n",
            Path::new("src/a.rs"),
            false,
        );
        assert_eq!(
            named,
            [
                PathBuf::from("src/a/pool.rs"),
                PathBuf::from("src/a/pool/mod.rs")
            ]
        );
        assert_eq!(
            named_files("mod b;", Path::new("src/lib.rs"), true)[0],
            Path::new("src/b.rs")
        );
    }

    #[test]
    fn included_files_are_named_too() {
        let named = named_files("include!(\"../gen/x.rs\");", Path::new("src/a/b.rs"), false);
        assert_eq!(named, [PathBuf::from("src/gen/x.rs")]);
    }

    #[test]
    fn metric_fields_are_found() {
        assert_eq!(
            metric_field("    pub(crate) opened: Family<Labels, Counter>,"),
            Some("opened")
        );
        assert_eq!(metric_field("    depth: Gauge,"), Some("depth"));
        assert_eq!(metric_field("    name: String,"), None);
    }
}
