//! The workspace as cargo describes it, and the text of its sources.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::shell;

/// All packages of the workspace.
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
}

/// A package, as far as the rules need it.
#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
    /// Path from the package's folder -> text, for every Rust file. Filled after parsing.
    #[serde(skip)]
    pub(crate) sources: BTreeMap<PathBuf, String>,
}

/// A dependency as the manifest has it.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) rename: Option<String>,
    /// `None` for a normal one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

/// A library, binary, test or example.
#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Workspace {
    /// Asks cargo, then reads every source file.
    pub(crate) fn load() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }
        let mut command = shell::cargo();
        let json =
            shell::capture(command.args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let Metadata { mut packages } =
            serde_json::from_str(&json).context("reading cargo's description")?;
        let folders: Vec<PathBuf> = packages
            .iter()
            .map(|package| package.folder().to_owned())
            .collect();
        for package in &mut packages {
            package.read_sources(&folders)?;
        }
        Ok(Self { packages })
    }

    /// The integration tests that `wanted` takes, as (package, test) names.
    pub(crate) fn integration_tests(
        &self,
        wanted: impl Fn(&Package, &str) -> bool,
    ) -> Vec<(&str, &str)> {
        let mut tests = Vec::new();
        for package in &self.packages {
            let own = package
                .targets
                .iter()
                .filter(|target| target.kind.iter().any(|kind| kind == "test"));
            let names = own
                .map(|target| target.name.as_str())
                .filter(|name| wanted(package, name));
            tests.extend(names.map(|name| (package.name.as_str(), name)));
        }
        tests
    }
}

impl Package {
    /// The folder that holds its manifest.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    /// Its folder as seen from the workspace's root.
    pub(crate) fn place(&self) -> &Path {
        self.folder()
            .strip_prefix(shell::root())
            .unwrap_or_else(|_| self.folder())
    }

    /// The text of its manifest.
    pub(crate) fn manifest(&self) -> String {
        fs::read_to_string(&self.manifest_path).unwrap_or_default()
    }

    fn read_sources(&mut self, packages: &[PathBuf]) -> Result<()> {
        let mut folders = vec![self.folder().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in
                fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?
            {
                let path = entry?.path();
                let skipped = path.ends_with("target")
                    || path.ends_with("corpus")
                    || path.ends_with("programs");
                if path.is_dir() && !skipped && !packages.contains(&path) {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    // A file may vanish or be half-written while somebody edits: it is then checked the next time.
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    let inside = path.strip_prefix(self.folder()).unwrap_or(&path).to_owned();
                    self.sources.insert(inside, text);
                }
            }
        }
        Ok(())
    }
}
