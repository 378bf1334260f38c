//! The installer on made-up nodes.

use super::*;
use crate::plugin::layout::configuration;

const CONFLIST: &str = "{\"cniVersion\": \"1.0.0\",\n  \"name\": \"lab\", \"plugins\": [{\"type\": \"ptp\"}, {\"type\": \"portmap\"}]}\n";
const CONF: &str = "{\"cniVersion\": \"0.3.1\", \"name\": \"cbr0\",   \"type\": \"ptp\"}\n";

/// A node with one configuration, and a plugin to install.
struct Node {
    root: tempfile::TempDir,
    installer: Installer,
}

impl Node {
    fn new(conf_name: &str, text: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["etc/cni/net.d", "opt/cni/bin"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("opt/cni/bin/ptp"), "").unwrap();
        fs::write(root.path().join("karst-cni"), "plugin 1").unwrap();
        let node = Self {
            installer: Installer {
                places: Places {
                    host_root: root.path().to_owned(),
                    conf_dir: None,
                    bin_dir: None,
                },
                entry: Entry {
                    run_dir: "/run/karst".to_owned(),
                    exclude_namespaces: vec!["kube-system".to_owned()],
                },
                source: root.path().join("karst-cni"),
            },
            root,
        };
        node.write(conf_name, text);
        node
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.root.path().join("etc/cni/net.d").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).unwrap()
    }

    /// Every file of the node with its text.
    fn everything(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        for dir in ["etc/cni/net.d", "opt/cni/bin"] {
            for entry in fs::read_dir(self.root.path().join(dir)).unwrap() {
                let path = entry.unwrap().path();
                let text = fs::read(&path).unwrap();
                files.push((path, text));
            }
        }
        files.sort();
        files
    }

    /// What the container runtime would read.
    fn in_use(&self) -> String {
        let dir = self.root.path().join("etc/cni/net.d");
        fs::read_to_string(configuration(&dir).unwrap()).unwrap()
    }
}

#[test]
fn installing_and_removing_leaves_the_node_as_it_was() {
    for (name, text) in [("10-lab.conflist", CONFLIST), ("10-lab.conf", CONF)] {
        let node = Node::new(name, text);
        let before = node.everything();
        assert_eq!(node.installer.ensure().unwrap(), Ensured::PutThere);
        assert!(node.in_use().contains("karst-cni"), "{name}");
        assert_eq!(node.installer.ensure().unwrap(), Ensured::AlreadyThere);
        node.installer.remove().unwrap();
        assert_eq!(node.everything(), before, "{name}");
        node.installer.remove().unwrap();
        assert_eq!(node.everything(), before, "twice");
    }
}

#[test]
fn the_executable_can_be_run_and_is_replaced_by_a_newer_one() {
    let node = Node::new("10-lab.conflist", CONFLIST);
    node.installer.ensure().unwrap();
    let path = node.root.path().join("opt/cni/bin/karst-cni");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o755
    );
    fs::write(&node.installer.source, "plugin 2").unwrap();
    assert_eq!(node.installer.ensure().unwrap(), Ensured::PutThere);
    assert_eq!(fs::read_to_string(&path).unwrap(), "plugin 2");
}

#[test]
fn a_chain_that_another_program_rewrites_is_repaired_and_its_new_version_is_what_comes_back() {
    let node = Node::new("10-lab.conflist", CONFLIST);
    node.installer.ensure().unwrap();
    let newer = CONFLIST.replace("portmap", "bandwidth");
    node.write("10-lab.conflist", &newer);
    assert_eq!(node.installer.ensure().unwrap(), Ensured::PutThere);
    assert!(node.in_use().contains("karst-cni") && node.in_use().contains("bandwidth"));
    node.installer.remove().unwrap();
    assert_eq!(node.read("10-lab.conflist"), newer);
}

#[test]
fn a_plugin_that_chained_itself_behind_us_stays_when_we_go() {
    let node = Node::new("10-lab.conflist", CONFLIST);
    node.installer.ensure().unwrap();
    let mut list: serde_json::Value = serde_json::from_str(&node.in_use()).unwrap();
    list["plugins"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"type": "later"}));
    node.write("10-lab.conflist", &list.to_string());
    assert_eq!(node.installer.ensure().unwrap(), Ensured::AlreadyThere);
    node.installer.remove().unwrap();
    let left = node.read("10-lab.conflist");
    assert!(
        left.contains("later") && left.contains("portmap") && !left.contains("karst"),
        "{left}"
    );
}

#[test]
fn a_single_configuration_that_comes_back_is_converted_again() {
    let node = Node::new("10-lab.conf", CONF);
    node.installer.ensure().unwrap();
    node.write("10-lab.conf", CONF);
    assert_eq!(node.installer.ensure().unwrap(), Ensured::PutThere);
    assert!(node.in_use().contains("karst-cni"));
    node.installer.remove().unwrap();
    assert_eq!(node.read("10-lab.conf"), CONF);
    assert!(!node.conf("10-lab.conflist").exists());
}

#[test]
fn a_new_configuration_that_sorts_first_gets_the_plugin() {
    let node = Node::new("10-lab.conflist", CONFLIST);
    node.installer.ensure().unwrap();
    node.write("05-cilium.conflist", &CONFLIST.replace("lab", "cilium"));
    assert_eq!(node.installer.ensure().unwrap(), Ensured::PutThere);
    assert!(node.in_use().contains("karst-cni") && node.in_use().contains("cilium"));
    node.installer.remove().unwrap();
    assert_eq!(node.read("10-lab.conflist"), CONFLIST);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let node = Node::new("10-lab.conflist", CONFLIST);
    // Stands for a read-only mount: root writes through permissions.
    let aside = node.conf(".10-lab.conflist.karst-original.karst-new");
    fs::create_dir(&aside).unwrap();
    let error = node.installer.ensure().unwrap_err().to_string();
    assert!(
        error.contains("10-lab.conflist") && error.contains("writable"),
        "{error}"
    );
    assert_eq!(node.read("10-lab.conflist"), CONFLIST, "left as it was");
}

#[tokio::test]
async fn the_agent_is_ready_when_the_plugin_is_in_and_says_why_it_is_not() {
    let node = Node::new("10-lab.conflist", "{}");
    let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
    let registry = karst_telemetry::metrics::Registry::new();
    let metrics = Arc::new(Metrics::register(&registry));
    let keep = node
        .installer
        .clone()
        .keep(readiness.clone(), metrics, shutdown.clone());
    let watch = async {
        while readiness.is_ready() {
            tokio::task::yield_now().await;
        }
        let why = readiness.pending().join("");
        assert!(
            why.contains("CNI chain") && why.contains("10-lab.conflist"),
            "{why}"
        );
        // Another program repairs its file: noticed, not only found at the next look.
        node.write("10-lab.conflist", CONFLIST);
        readiness.ready().await;
        assert!(node.in_use().contains("karst-cni"));
        // And overwrites it later.
        node.write("10-lab.conflist", CONFLIST);
        while !node.in_use().contains("karst-cni") {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    tokio::join!(keep, watch);
}
