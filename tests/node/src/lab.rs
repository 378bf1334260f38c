//! A running lab, taken down when dropped.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::until;

/// Labs of one test process get different names.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A lab from a copy of a fixture's YAML, so that tests may edit it.
pub struct Lab {
    name: String,
    folder: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Ran {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output; panics with everything if the command failed.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.ok(), "the command failed: {self:?}");
        self.stdout
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code(),
        }
    }
}

/// A shipped binary: from `KARST_BIN_DIR`, or beside the test's own folder.
pub fn binary(name: &str) -> PathBuf {
    let dir = env::var_os("KARST_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let own = env::current_exe().expect("a running test has a path");
            own.ancestors()
                .nth(2)
                .expect("target/<profile>/deps/test")
                .to_path_buf()
        });
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run the tests by `cargo xtask test node`, which builds it",
        path.display()
    );
    path
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/node lies two below")
        .to_path_buf()
}

impl Lab {
    /// Copies `fixture` (a folder, relative to the repository) and starts it with the mesh; waits until every pod that
    /// should be in the mesh is known everywhere as being in it.
    pub fn up(fixture: &str) -> Self {
        let lab = Self::copy(fixture);
        lab.karst(&["up", lab.path()]).success();
        lab.wait_enrolled();
        lab
    }

    /// The same with pods and services that have IPv6 addresses alone.
    pub fn up_ipv6_only(fixture: &str) -> Self {
        let lab = Self::copy(fixture);
        lab.karst(&["up", "--ipv6-only", lab.path()]).success();
        lab.wait_enrolled();
        lab
    }

    /// The same without waiting for anything but ready pods.
    pub fn start(fixture: &str) -> Self {
        let lab = Self::copy(fixture);
        lab.karst(&["up", lab.path()]).success();
        lab
    }

    /// Copies the fixture and starts nothing.
    fn copy(fixture: &str) -> Self {
        let folder = TempDir::with_prefix("karst-node-").expect("a temporary folder");
        for entry in fs::read_dir(repository().join(fixture)).expect("the fixture is a folder") {
            let entry = entry.expect("a readable folder");
            fs::copy(entry.path(), folder.path().join(entry.file_name()))
                .expect("a copy of the fixture");
        }
        let name = format!(
            "t{}x{}",
            std::process::id() % 100_000,
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Self { name, folder }
    }

    /// The folder with the lab's YAML.
    pub fn path(&self) -> &str {
        self.folder.path().to_str().expect("a plain path")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn karst_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("karst"));
        command
            .arg("lab")
            .args(args)
            .env("KARST_LAB", &self.name)
            .stdin(Stdio::null());
        command
    }

    /// `karst lab ARGS` for this lab.
    pub fn karst(&self, args: &[&str]) -> Ran {
        self.karst_command(args)
            .output()
            .expect("karst starts")
            .into()
    }

    /// Runs a command in a pod (`namespace/name`) to its end, as the pod's user.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Ran {
        self.karst(&[&["exec", pod, "--"], command].concat())
    }

    /// The same as root.
    pub fn exec_root(&self, pod: &str, command: &[&str]) -> Ran {
        self.karst(&[&["exec", "--root", pod, "--"], command].concat())
    }

    /// Runs a command in a node's network namespace.
    pub fn exec_node(&self, node: &str, command: &[&str]) -> Ran {
        self.karst(&[&["exec", "--node", node, "--"], command].concat())
    }

    /// Starts a command in a pod; the caller ends it.
    pub fn spawn(&self, pod: &str, command: &[&str]) -> Child {
        let mut spawned = self.karst_command(&[&["exec", pod, "--"], command].concat());
        spawned
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("karst starts")
    }

    /// Writes a file of the lab's YAML and applies everything.
    pub fn apply(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).expect("the lab's folder is writable");
        self.karst(&["apply", self.path()]).success();
    }

    /// Replaces text in a file of the lab's YAML and applies everything.
    #[track_caller]
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.folder.path().join(file);
        let text = fs::read_to_string(&path).expect("the file is there");
        assert!(text.contains(from), "{file} has no {from:?}");
        self.apply(file, &text.replace(from, to));
    }

    /// Removes a file of the lab's YAML and applies everything.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.folder.path().join(file)).expect("the file is there");
        self.karst(&["apply", self.path()]).success();
    }

    /// `karst lab status --output json`.
    pub fn status(&self) -> Value {
        let text = self.karst(&["status", "--output", "json"]).success();
        serde_json::from_str(&text).expect("status prints JSON")
    }

    /// One pod of the status.
    pub fn pod(&self, namespace: &str, name: &str) -> Value {
        let status = self.status();
        let pods = status["pods"].as_array().expect("a list of pods");
        let found = pods
            .iter()
            .find(|pod| pod["namespace"] == namespace && pod["name"] == name);
        found
            .unwrap_or_else(|| panic!("no pod {namespace}/{name} in {status}"))
            .clone()
    }

    /// The address that names the pod: its IPv4 one, where it has one.
    pub fn address(&self, namespace: &str, name: &str) -> String {
        let pod = self.pod(namespace, name);
        pod["addresses"][0].as_str().expect("an address").to_owned()
    }

    pub fn nodes(&self) -> Vec<String> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("a list of nodes").clone();
        nodes
            .iter()
            .map(|node| node["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// The process of a node's agent.
    pub fn agent(&self, node: &str) -> Pid {
        self.running_agent(node)
            .unwrap_or_else(|| panic!("no agent on node {node} in {}", self.status()))
    }

    /// `None` while there is none.
    pub fn running_agent(&self, node: &str) -> Option<Pid> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("a list of nodes");
        let found = nodes.iter().find(|found| found["name"] == node);
        let pid = found?["agent"]["pid"].as_i64()?;
        Pid::from_raw(pid.try_into().ok()?)
    }

    /// A page of a node's agent on its admin port.
    pub fn agent_page(&self, node: &str, page: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:15000{page}");
        let ran = self.exec_node(node, &["curl", "-s", "--max-time", "5", &url]);
        serde_json::from_str(&ran.stdout).ok()
    }

    /// A node's agent's log so far.
    pub fn agent_log(&self, node: &str) -> String {
        fs::read_to_string(format!(
            "/run/karst/lab/{}/logs/agent-{node}.log",
            self.name
        ))
        .unwrap_or_default()
    }

    /// What the controller says at a path of its admin port, on the link between nodes; nothing where it does not answer.
    pub fn controller_page(&self, page: &str) -> String {
        let netns = format!("karst-{}-.fabric", self.name);
        let url = format!("http://127.0.0.1:15014{page}");
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &netns,
            "curl",
            "-s",
            "--max-time",
            "5",
            &url,
        ]);
        Ran::from(command.output().expect("ip is installed")).stdout
    }

    /// The controller's log so far.
    pub fn controller_log(&self) -> String {
        fs::read_to_string(format!("/run/karst/lab/{}/logs/controller.log", self.name))
            .unwrap_or_default()
    }

    /// Pods (`namespace/name`) that an agent knows as reachable through HBONE.
    pub fn enrolled_as_seen_by(&self, node: &str) -> Option<Vec<String>> {
        let dump = self.agent_page(node, "/config_dump")?;
        let workloads = dump["workloads"].as_array()?.clone();
        let hbone = workloads
            .iter()
            .filter(|workload| workload["tunnel"] == "Hbone");
        let name = |w: &Value| {
            let part = |key: &str| w[key].as_str().unwrap_or("").to_owned();
            format!("{}/{}", part("namespace"), part("name"))
        };
        let mut seen: Vec<String> = hbone.map(name).collect();
        seen.sort();
        Some(seen)
    }

    /// Pods (`namespace/name`) of a node whose plain connections pass without policy, since they enter the mesh or leave
    /// it; none while the agent does not answer.
    pub fn plaintext_open(&self, node: &str) -> Option<Vec<String>> {
        let dump = self.agent_page(node, "/config_dump")?;
        let pods = dump["capturedPods"].as_array()?.clone();
        let open = pods.iter().filter(|pod| pod["plaintextOpen"] == true);
        Some(
            open.map(|pod| {
                format!(
                    "{}/{}",
                    pod["namespace"].as_str().unwrap_or(""),
                    pod["name"].as_str().unwrap_or("")
                )
            })
            .collect(),
        )
    }

    /// Waits until every agent knows exactly the right pods as enrolled, those of namespaces whose YAML says so, and lets
    /// policy decide what reaches them.
    pub fn wait_enrolled(&self) {
        let wanted = self.pods_that_should_be_enrolled();
        for node in self.nodes() {
            until(
                &format!("agent of {node} knows {wanted:?} as enrolled"),
                || {
                    let seen = self.enrolled_as_seen_by(&node)?;
                    (seen == wanted).then_some(())
                },
            );
        }
        for node in self.nodes() {
            until(&format!("no pod of {node} is on its way"), || {
                self.plaintext_open(&node)?.is_empty().then_some(())
            });
        }
    }

    /// Read from the YAML's namespaces alone; pod labels are the business of the tests that set them.
    fn pods_that_should_be_enrolled(&self) -> Vec<String> {
        let mut enrolled = Vec::new();
        for entry in fs::read_dir(self.folder.path()).expect("the lab's folder") {
            let text = fs::read_to_string(entry.expect("a file").path()).unwrap_or_default();
            for document in text.split("\n---") {
                let line = |key: &str| {
                    document
                        .lines()
                        .find_map(|l| l.trim().strip_prefix(key))
                        .map(str::trim)
                };
                if line("kind:") == Some("Namespace")
                    && line("istio.io/dataplane-mode:") == Some("ambient")
                {
                    enrolled.extend(line("name:").map(str::to_owned));
                }
            }
        }
        let status = self.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> = pods
            .iter()
            .map(|pod| {
                (
                    pod["namespace"].as_str().unwrap_or("").to_owned(),
                    pod["name"].as_str().unwrap_or("").to_owned(),
                )
            })
            .filter(|(namespace, _)| enrolled.contains(namespace))
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in ["a", "b", "n1", "n2"] {
                let log = self.agent_log(node);
                // What went well is most of it and explains nothing.
                let telling = log
                    .lines()
                    .filter(|line| !line.contains("connection complete") || line.contains("error"));
                let tail: Vec<_> = telling.rev().take(60).collect();
                if !tail.is_empty() {
                    eprintln!("agent of {node}, newest line first:\n{}", tail.join("\n"));
                }
            }
        }
        let down = self.karst(&["down"]);
        if !down.ok() && !std::thread::panicking() {
            panic!("the lab did not go away: {down:?}");
        }
    }
}
