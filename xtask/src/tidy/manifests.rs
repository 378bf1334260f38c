//! Rules about dependencies: which of ours may use which, which heavy ones have one door, which are named but unused.

use std::{fs, path::Path};

use super::{
    Findings,
    workspace::{Dependency, Package, Workspace},
};
use crate::shell;

/// Which of our packages a package may use; `ARCHITECTURE.md` draws the same picture. Packages under `tests/`,
/// `benches` and `fuzz` may use anything.
const EDGES: &[(&str, &[&str])] = &[
    ("karst-model", &[]),
    ("karst-k8s-api", &[]),
    ("karst-telemetry", &["karst-model"]),
    ("karst-netns", &[]),
    ("karst-ebpf-abi", &[]),
    ("xtask", &[]),
    ("karst-policy", &["karst-model", "karst-routing"]),
    ("karst-routing", &["karst-model"]),
    ("karst-proto", &["karst-model"]),
    (
        "karst-index",
        &[
            "karst-model",
            "karst-policy",
            "karst-routing",
            "karst-k8s-api",
        ],
    ),
    ("karst-files", &["karst-k8s-api"]),
    ("karst-runtime", &["karst-telemetry"]),
    ("karst-dns", &[]),
    (
        "karst-identity",
        &["karst-model", "karst-proto", "karst-runtime"],
    ),
    (
        "karst-discovery",
        &[
            "karst-model",
            "karst-proto",
            "karst-identity",
            "karst-runtime",
            "karst-telemetry",
        ],
    ),
    (
        "karst-hbone",
        &["karst-model", "karst-identity", "karst-runtime"],
    ),
    (
        "karst-link",
        &[
            "karst-model",
            "karst-proto",
            "karst-identity",
            "karst-runtime",
            "karst-telemetry",
        ],
    ),
    (
        "karst-path",
        &[
            "karst-model",
            "karst-policy",
            "karst-routing",
            "karst-discovery",
        ],
    ),
    ("karst-ebpf-loader", &["karst-ebpf-abi", "karst-netns"]),
    ("karst-ca", &["karst-model", "karst-identity"]),
    (
        "karst-lab",
        &["karst-model", "karst-netns", "karst-files", "karst-k8s-api"],
    ),
    (
        "karst-agent",
        &[
            "karst-model",
            "karst-path",
            "karst-policy",
            "karst-routing",
            "karst-proto",
            "karst-identity",
            "karst-hbone",
            "karst-discovery",
            "karst-link",
            "karst-runtime",
            "karst-telemetry",
            "karst-netns",
            "karst-ebpf-loader",
            "karst-ebpf-abi",
        ],
    ),
    (
        "karst-waypoint",
        &[
            "karst-model",
            "karst-path",
            "karst-policy",
            "karst-proto",
            "karst-routing",
            "karst-identity",
            "karst-hbone",
            "karst-discovery",
            "karst-dns",
            "karst-link",
            "karst-runtime",
            "karst-telemetry",
        ],
    ),
    (
        "karst-controller",
        &[
            "karst-discovery",
            "karst-path",
            "karst-index",
            "karst-files",
            "karst-ca",
            "karst-identity",
            "karst-k8s-api",
            "karst-proto",
            "karst-policy",
            "karst-runtime",
            "karst-telemetry",
            "karst-model",
        ],
    ),
    ("karst-cni", &["karst-model"]),
    (
        "karst-cli",
        &[
            "karst-model",
            "karst-discovery",
            "karst-path",
            "karst-policy",
            "karst-routing",
            "karst-index",
            "karst-files",
            "karst-proto",
            "karst-k8s-api",
            "karst-lab",
        ],
    ),
];

/// Where a heavy dependency may be used; packages under `tests/` may use all of them.
const DOORS: &[(&str, &[&str])] = &[
    ("kube", &["karst-controller", "karst-cli", "karst-k8s-api"]),
    ("aya", &["karst-ebpf-loader", "karst-ebpf-abi"]),
    ("aya-obj", &["karst-ebpf-loader"]),
    ("tonic-prost-build", &["karst-proto"]),
    ("protox", &["karst-proto"]),
    ("rcgen", &["karst-identity", "karst-ca"]),
    (
        "tokio-rustls",
        &[
            "karst-identity",
            "karst-hbone",
            "karst-agent",
            "karst-controller",
        ],
    ),
    ("hickory-proto", &["karst-agent", "karst-dns", "karst-lab"]),
    (
        "serde-saphyr",
        // The controller: parts of objects that a user keeps as text in a ConfigMap.
        &[
            "karst-files",
            "karst-k8s-api",
            "karst-lab",
            "karst-cli",
            "karst-controller",
        ],
    ),
];

/// Dependencies that no line of the package names, each with its reason.
const UNNAMED: &[(&str, &str)] = &[
    ("libfuzzer-sys", "compiled only under --cfg fuzzing"),
    ("prost", "named by generated code through derive paths"),
];

fn is_test(package: &Package) -> bool {
    ["tests", "benches", "fuzz"]
        .iter()
        .any(|folder| package.place().starts_with(folder))
}

fn shipped(package: &Package) -> impl Iterator<Item = &Dependency> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
}

/// Dependencies whose library has another name than their package.
const LIBRARY_NAMES: &[(&str, &str)] = &[("rustls-webpki", "webpki")];

/// Packages with a lint table of their own, each with its reason.
const OWN_LINTS: &[(&str, &str)] = &[(
    "karst-ebpf-abi",
    "also compiled by the kernel programs' tool chain, outside this workspace",
)];

/// Own packages used without an edge in the table.
pub(super) fn edges(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in workspace
        .packages
        .iter()
        .filter(|package| !is_test(package))
    {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!("{}: not in the table of xtask/src/tidy/manifests.rs; add it there and to ARCHITECTURE.md", package.name));
            continue;
        };
        for dependency in shipped(package) {
            let ours = workspace
                .packages
                .iter()
                .any(|other| other.name == dependency.name);
            if ours && !allowed.contains(&dependency.name.as_str()) {
                findings.push(format!("{} -> {}: no such edge; if it is right, add it to the table and to ARCHITECTURE.md", package.name, dependency.name));
            }
        }
    }
    findings
}

/// Heavy dependencies used outside their door.
pub(super) fn doors(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in workspace
        .packages
        .iter()
        .filter(|package| !is_test(package))
    {
        for dependency in shipped(package) {
            let door = DOORS.iter().find(|(name, _)| *name == dependency.name);
            if let Some((_, allowed)) =
                door.filter(|(_, allowed)| !allowed.contains(&package.name.as_str()))
            {
                findings.push(format!(
                    "{} -> {}: only {} may use it",
                    package.name,
                    dependency.name,
                    allowed.join(", ")
                ));
            }
        }
    }
    findings
}

/// Packages that did not opt in to the workspace's lints.
pub(super) fn lints(workspace: &Workspace) -> Findings {
    let lacking = workspace.packages.iter().filter(|package| {
        let manifest = package.manifest();
        let mut lines = manifest.lines().skip_while(|line| line.trim() != "[lints]");
        let opted_in = lines.nth(1).map(str::trim) == Some("workspace = true");
        !opted_in && !OWN_LINTS.iter().any(|(name, _)| *name == package.name)
    });
    lacking
        .map(|package| {
            format!(
                "{}: its Cargo.toml lacks `[lints] workspace = true`",
                package.name
            )
        })
        .collect()
}

/// Dependencies that no source line of their package names.
pub(super) fn unused(workspace: &Workspace) -> Findings {
    let mut findings = Findings::new();
    for package in &workspace.packages {
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            let library = LIBRARY_NAMES.iter().find(|(package, _)| package == name);
            let ident = library
                .map_or(name.as_str(), |(_, library)| library)
                .replace('-', "_");
            let named = package.sources.values().any(|text| names(text, &ident));
            let excused = UNNAMED.iter().any(|(excused, _)| excused == name);
            if !named && !excused {
                findings.push(format!(
                    "{}: {name} is in its Cargo.toml and in none of its files",
                    package.name
                ));
            }
        }
    }
    findings
}

/// Whether `ident` stands in `text` as a whole word outside line comments.
fn names(text: &str, ident: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .any(|line| {
            line.match_indices(ident).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + ident.len()..].chars().next();
                !before.is_some_and(word) && !after.is_some_and(word)
            })
        })
}

/// Entries of the root's `[workspace.dependencies]` that no package takes.
pub(super) fn unused_in_root(workspace: &Workspace) -> Findings {
    let root = fs::read_to_string(shell::root().join(Path::new("Cargo.toml"))).unwrap_or_default();
    let section = root
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1);
    let section = section.take_while(|line| !line.starts_with('['));
    let named = section
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "));
    let taken = |name: &str| {
        let mut all = workspace
            .packages
            .iter()
            .flat_map(|package| &package.dependencies);
        all.any(|dependency| dependency.rename.as_deref().unwrap_or(&dependency.name) == name)
    };
    named
        .map(|(name, _)| name.trim())
        .filter(|name| !taken(name))
        .map(|name| format!("Cargo.toml: no package uses {name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_as_a_whole_word_and_not_in_a_comment() {
        assert!(names("use h2::client;", "h2"));
        assert!(!names("use hh2::client;\n// h2 is nice", "h2"));
        assert!(!names("let h2c = 1;", "h2"));
    }
}
