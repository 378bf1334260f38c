//! Rules about documents: every relative link leads somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::Findings;
use crate::shell;

/// Links of the repository's Markdown files that name a file or heading that is not there.
pub(super) fn links() -> Result<Findings> {
    let listed = shell::capture(Command::new("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.md",
    ]))?;
    let mut findings = Findings::new();
    for file in listed.lines().map(PathBuf::from) {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for target in targets(&text) {
            if let Some(wrong) = wrong(&file, &text, target) {
                findings.push(format!("{}: link {target}: {wrong}", file.display()));
            }
        }
    }
    Ok(findings)
}

/// What stands in the parentheses of `[text](target)`, outside code blocks.
fn targets(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let links = line
            .match_indices("](")
            .filter_map(|(at, _)| line[at + 2..].split(')').next());
        found.extend(links);
    }
    found
}

fn wrong(file: &Path, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let linked = file.parent().unwrap_or_else(|| Path::new("")).join(path);
    if !path.is_empty() && !linked.exists() {
        return Some("there is no such file".to_owned());
    }
    let there = match path {
        "" => text.to_owned(),
        _ => fs::read_to_string(&linked).unwrap_or_default(),
    };
    let known = heading.is_empty()
        || there
            .lines()
            .any(|line| line.starts_with('#') && slug(line) == heading);
    (!known).then(|| format!("there is no heading {heading}"))
}

/// A heading as links name it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_code_blocks_are_not_links() {
        assert_eq!(
            targets("[a](b.md) [c](d#e)\n```\n[x](y)\n```\n"),
            ["b.md", "d#e"]
        );
    }

    #[test]
    fn headings_become_slugs() {
        assert_eq!(slug("## Life of a connection"), "life-of-a-connection");
        assert_eq!(slug("# `xtask`, twice"), "xtask-twice");
    }
}
