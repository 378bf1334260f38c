//! Where a node keeps its CNI configuration and executables: each distribution has its own places.
//!
//! A place counts when it is in use: the configuration directory has a network configuration, the executable directory
//! has the executable of its first plugin. So nothing has to be known of the distribution, only where to look.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::plugin::chain::{self, ChainError};

/// Configuration directories: k3s, then what kubeadm, kind, RKE2, GKE, EKS, AKS use.
const CONF_DIRS: [&str; 2] = ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/etc/cni/net.d"];
/// Executable directories: k3s (two generations), GKE, then the usual one.
const BIN_DIRS: [&str; 4] = [
    "/var/lib/rancher/k3s/data/cni",
    "/var/lib/rancher/k3s/data/current/bin",
    "/home/kubernetes/bin",
    "/opt/cni/bin",
];
/// Links that are followed on one path at most.
const MAX_LINKS: usize = 40;

/// What is looked for, below `host_root`.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) host_root: PathBuf,
    pub(crate) conf_dir: Option<PathBuf>,
    pub(crate) bin_dir: Option<PathBuf>,
}

/// What was found, as paths of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The configuration that the container runtime uses: the first of its directory by name.
    pub(crate) conf_file: PathBuf,
    pub(crate) bin_dir: PathBuf,
}

/// Why the places were not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error(
        "no network configuration in {0}: the node's network plugin is not installed yet, or it keeps its \
        configuration elsewhere: name the directory with --cni-conf-dir"
    )]
    NoConfiguration(String),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be chained to", path.display())]
    Chain { path: PathBuf, source: ChainError },
    #[error(
        "the executable {plugin:?} of the node's network plugin is in none of {looked}: name the directory with \
        --cni-bin-dir"
    )]
    NoExecutables { plugin: String, looked: String },
}

impl Places {
    /// Looks for the places in use.
    pub(crate) fn find(&self) -> Result<Layout, LayoutError> {
        let conf_dirs = self.candidates(self.conf_dir.as_deref(), &CONF_DIRS);
        let conf_file = conf_dirs.iter().find_map(|dir| configuration(dir));
        let conf_file = conf_file.ok_or_else(|| LayoutError::NoConfiguration(shown(&conf_dirs)))?;
        let text = fs::read_to_string(&conf_file).map_err(|source| LayoutError::Read {
            path: conf_file.clone(),
            source,
        })?;
        let plugin = chain::first_type(&text).map_err(|source| LayoutError::Chain {
            path: conf_file.clone(),
            source,
        })?;
        let bin_dirs = self.candidates(self.bin_dir.as_deref(), &BIN_DIRS);
        let in_use = |dir: &&PathBuf| self.bin_dir.is_some() || dir.join(&plugin).exists();
        let bin_dir = bin_dirs.iter().find(in_use).cloned();
        let bin_dir = bin_dir.ok_or_else(|| LayoutError::NoExecutables {
            plugin,
            looked: shown(&bin_dirs),
        })?;
        Ok(Layout { conf_file, bin_dir })
    }

    /// Every configuration directory that exists: all are cleaned at removal.
    pub(crate) fn conf_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.candidates(self.conf_dir.as_deref(), &CONF_DIRS);
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// Every executable directory that exists.
    pub(crate) fn bin_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.candidates(self.bin_dir.as_deref(), &BIN_DIRS);
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    fn candidates(&self, named: Option<&Path>, known: &[&str]) -> Vec<PathBuf> {
        match named {
            Some(dir) => vec![below(&self.host_root, dir)],
            None => known
                .iter()
                .map(|dir| below(&self.host_root, Path::new(dir)))
                .collect(),
        }
    }
}

/// The configuration that container runtimes take: the first by name among these endings.
pub(crate) fn configuration(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            matches!(ending, Some("conf" | "conflist" | "json")) && path.is_file()
        })
        .collect();
    files.sort();
    files.into_iter().next()
}

/// `path` of the node as a path of this process. Links are followed within `root`: k3s has absolute ones.
fn below(root: &Path, path: &Path) -> PathBuf {
    let mut rest: Vec<_> = names(path);
    rest.reverse();
    let mut at = root.to_owned();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let next = at.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    at = root.to_owned();
                }
                let mut further = names(&target);
                further.reverse();
                rest.extend(further);
            }
            _ => at = next,
        }
    }
    at
}

/// The names on a path; `..` is left out, as no distribution's links need it and it could lead out of the root.
fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let normal = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    });
    normal.collect()
}

fn shown(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "ptp"}]}"#;

    /// A node's directory with these files.
    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host_root = root.path().to_owned();
        (
            root,
            Places {
                host_root,
                conf_dir: None,
                bin_dir: None,
            },
        )
    }

    /// Configuration file and executable directory that are found, below the node's root.
    fn check(files: &[(&str, &str)], conf: &str, bin: &str) {
        let (root, places) = node(files);
        let found = places.find().unwrap();
        assert_eq!(found.conf_file, root.path().join(conf));
        assert_eq!(found.bin_dir, root.path().join(bin));
    }

    #[test]
    fn the_layouts_of_distributions_are_found() {
        // kubeadm, kind.
        check(
            &[
                ("etc/cni/net.d/10-kindnet.conflist", CONF),
                ("opt/cni/bin/ptp", ""),
            ],
            "etc/cni/net.d/10-kindnet.conflist",
            "opt/cni/bin",
        );
        // GKE: executables apart, and an /opt/cni/bin that is not used.
        check(
            &[
                ("etc/cni/net.d/10-gke-ptp.conflist", CONF),
                ("home/kubernetes/bin/ptp", ""),
                ("opt/cni/bin/readme", ""),
            ],
            "etc/cni/net.d/10-gke-ptp.conflist",
            "home/kubernetes/bin",
        );
        // k3s, newer; an empty /etc/cni/net.d is left by other software.
        check(
            &[
                (
                    "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
                    CONF,
                ),
                ("var/lib/rancher/k3s/data/cni/ptp", ""),
                ("etc/cni/net.d/.keep", ""),
            ],
            "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
            "var/lib/rancher/k3s/data/cni",
        );
    }

    #[test]
    fn the_absolute_links_of_k3s_stay_below_the_root() {
        let (root, places) = node(&[
            (
                "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
                CONF,
            ),
            ("var/lib/rancher/k3s/data/4bde/bin/ptp", ""),
        ]);
        let data = root.path().join("var/lib/rancher/k3s/data");
        std::os::unix::fs::symlink("/var/lib/rancher/k3s/data/4bde", data.join("current")).unwrap();
        assert_eq!(places.find().unwrap().bin_dir, data.join("4bde/bin"));
    }

    #[test]
    fn the_first_configuration_by_name_counts() {
        let (root, places) = node(&[
            ("etc/cni/net.d/05-cilium.conflist", CONF),
            ("etc/cni/net.d/10-other.conflist", CONF),
            ("etc/cni/net.d/00-readme.txt", ""),
            ("opt/cni/bin/ptp", ""),
        ]);
        let expected = root.path().join("etc/cni/net.d/05-cilium.conflist");
        assert_eq!(places.find().unwrap().conf_file, expected);
    }

    #[test]
    fn what_is_missing_is_said_with_where_it_was_looked_for() {
        let (_root, places) = node(&[]);
        let error = places.find().unwrap_err().to_string();
        assert!(
            error.contains("etc/cni/net.d") && error.contains("--cni-conf-dir"),
            "{error}"
        );
        let (_root, places) = node(&[("etc/cni/net.d/10-x.conflist", CONF)]);
        let error = places.find().unwrap_err().to_string();
        assert!(
            error.contains("\"ptp\"") && error.contains("--cni-bin-dir"),
            "{error}"
        );
    }
}
