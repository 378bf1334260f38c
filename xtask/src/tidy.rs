//! `tidy`: what compilers do not check. Each rule was a fault found in a real code base.
//!
//! Rules look at text and at cargo's own description of the workspace; each prints `file: what is wrong and what to do`.

mod documents;
mod manifests;
mod sources;
mod workspace;

use anyhow::{Result, bail};

pub(crate) use workspace::{Package, Workspace};

use crate::test;

/// What a rule found; empty is good.
type Findings = Vec<String>;

/// Runs every rule and prints every finding.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::load()?;
    let rules: [(&str, Findings); 11] = [
        ("edges", manifests::edges(&workspace)),
        ("doors", manifests::doors(&workspace)),
        ("lints", manifests::lints(&workspace)),
        ("unused dependencies", manifests::unused(&workspace)),
        (
            "unused workspace dependencies",
            manifests::unused_in_root(&workspace),
        ),
        ("files no mod names", sources::orphans(&workspace)),
        ("file heads", sources::heads(&workspace)),
        ("room names", sources::rooms(&workspace)),
        ("metrics never touched", sources::metrics(&workspace)),
        ("links", documents::links()?),
        ("test names", test::names_on_two_rungs(&workspace)),
    ];
    let mut found = 0;
    for (rule, findings) in &rules {
        for finding in findings {
            println!("tidy: {rule}: {finding}");
            found += 1;
        }
    }
    if found > 0 {
        bail!("tidy: {found} findings");
    }
    println!(
        "tidy: {} rules hold for {} packages",
        rules.len(),
        workspace.packages.len()
    );
    Ok(())
}
