//! The cluster that the rung brought up: kubectl, karst, its nodes and what runs in its pods.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use karst_test_node::Capture;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::until;

/// Which cluster, as for `cargo xtask cluster`.
const ID_VARIABLE: &str = "KARST_CLUSTER_ID";
/// Where the binaries are; the rung sets it.
const BINARIES_VARIABLE: &str = "KARST_BIN_DIR";

/// How long the API server and kubectl may take for one call, in seconds.
const CALL: &str = "--request-timeout=30s";

/// A cluster that runs.
pub struct Cluster {
    id: String,
}

impl Cluster {
    /// The cluster that the rung brought up; all tests share it.
    pub fn get() -> &'static Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            let id = std::env::var(ID_VARIABLE).unwrap_or_else(|_| "0".to_owned());
            let cluster = Self { id };
            assert!(
                cluster.kubeconfig().is_file(),
                "no cluster {} runs: `cargo xtask test cluster` brings one up, tests and ends it; by hand, \
                 `cargo xtask cluster up --karst` comes first",
                cluster.id
            );
            cluster
        })
    }

    fn folder() -> PathBuf {
        root().join("target/cluster")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        Self::folder().join(&self.id).join("admin.conf")
    }

    /// What the API server has noted of our service accounts' requests, one JSON object per line.
    pub fn audit_log(&self) -> String {
        let file = Self::folder().join(&self.id).join("log/audit.log");
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// The folder of the cluster's state: keys, logs, what etcd has.
    pub fn state(&self) -> PathBuf {
        Self::folder().join(&self.id)
    }

    /// Helm, for this cluster.
    pub fn helm(&self) -> Command {
        let mut command = self.xtask();
        command.current_dir(root());
        command.args(["helm", "--"]);
        command
    }

    /// Whether a process of the control plane runs: `etcd`, `apiserver`.
    pub fn runs(&self, process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid(process)));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Sends it a signal.
    pub fn signal(&self, process: &str, signal: Signal) {
        let pid = Pid::from_raw(self.pid(process)).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    fn pid(&self, process: &str) -> i32 {
        let record = self.state().join("pid").join(process);
        let record = std::fs::read(&record).unwrap_or_else(|error| panic!("{process}: {error}"));
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        let pid = record["pid"].as_i64().expect("a number");
        pid.try_into().expect("a process id")
    }

    /// Starts what does not run, and waits until the API server answers.
    pub fn up(&self) {
        run(self.xtask().args(["up", "--no-build"]));
    }

    /// The node's link on the host, through which everything goes that it exchanges with others.
    pub fn link(&self, node: &str) -> String {
        format!("kc{}-{node}", self.id)
    }

    /// Captures what a node exchanges with everybody else.
    pub fn capture(&self, node: &str, filter: &str) -> Capture {
        Capture::by(Command::new("tcpdump"), &self.link(node), filter)
    }

    /// kubectl, to which a test adds words.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(Self::folder().join("bin/kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// The user's command.
    pub fn karst(&self) -> Command {
        let mut command = Command::new(binary("karst"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// What `kubectl get` says, as JSON.
    pub fn object(&self, words: &[&str]) -> Value {
        let mut get = self.kubectl();
        let said = run(get.args([CALL, "get", "-o", "json"]).args(words));
        serde_json::from_slice(&said.stdout).expect("kubectl prints JSON")
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) {
        let mut apply = self.kubectl();
        apply.args([CALL, "apply", "-f", "-"]);
        feed(&mut apply, yaml);
    }

    /// Applies YAML, to this namespace where it names none.
    pub fn apply_in(&self, namespace: &str, yaml: &str) {
        let mut apply = self.kubectl();
        apply.args([CALL, "-n", namespace, "apply", "-f", "-"]);
        feed(&mut apply, yaml);
    }

    /// What the API server has against YAML; nothing if it takes all of it. Nothing is changed.
    pub fn dry_run(&self, yaml: &str) -> String {
        let mut apply = self.kubectl();
        apply.args([
            CALL,
            "apply",
            "--dry-run=server",
            "--server-side",
            "--force-conflicts",
        ]);
        let mut child = apply
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut input = child.stdin.take().expect("piped");
        input
            .write_all(yaml.as_bytes())
            .expect("kubectl reads its input");
        drop(input);
        let said = child.wait_with_output().expect("kubectl ends");
        match said.status.success() {
            true => String::new(),
            false => String::from_utf8_lossy(&said.stderr).into_owned(),
        }
    }

    /// Applies a file of the repository.
    pub fn apply_file(&self, path: &str) {
        let file = root().join(path);
        let yaml = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.apply(&yaml);
    }

    /// Runs a command in a pod to its end; it may fail.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let mut exec = self.exec_command(pod, command);
        exec.output().expect("kubectl starts")
    }

    /// Starts a command in a pod, with its output kept.
    pub fn spawn(&self, pod: &str, command: &[&str]) -> Child {
        let mut exec = self.exec_command(pod, command);
        exec.stdout(Stdio::piped()).spawn().expect("kubectl starts")
    }

    /// A pod is `namespace/name`, or `namespace/deploy/name` for one of a deployment's.
    fn exec_command(&self, pod: &str, command: &[&str]) -> Command {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        let mut exec = self.kubectl();
        exec.args(["-n", namespace, "exec", name, "--"])
            .args(command);
        exec
    }

    /// A command that runs what is added to it inside a node.
    pub fn node(&self, node: &str) -> Command {
        let mut command = self.xtask();
        command.args(["exec", node, "--"]);
        command
    }

    /// Ends all of a node's processes, starts it again, and returns when each of its pods runs again and is ready.
    pub fn reboot(&self, node: &str) {
        let pods = format!("--field-selector=spec.nodeName={node}");
        let of_the_node = ["pods", "-A", &pods];
        let before = restarts(&self.object(&of_the_node));
        run(self.xtask().args(["reboot", node]));
        // What the API server says of them was true before the node's end: only a restart is news.
        until(&format!("the pods of {node} run again"), || {
            let pods = self.object(&of_the_node);
            let again = restarts(&pods);
            let restarted = before
                .iter()
                .all(|(pod, count)| again.get(pod).is_none_or(|now| now > count));
            let ready = pods["items"].as_array()?.iter().all(is_ready);
            (restarted && ready).then_some(())
        });
    }

    /// The tool itself rather than through cargo, which would wait for any build that goes on. Cargo builds it without
    /// optimisation, whatever Karst's own programs are.
    fn xtask(&self) -> Command {
        let mut command = Command::new(root().join("target/debug/xtask"));
        command.args(["cluster", "--id", &self.id]);
        command
    }

    /// What `karst workloads` says of a namespace; nothing while no controller answers.
    pub fn workloads(&self, namespace: &str) -> Option<Vec<Value>> {
        let mut ask = self.karst();
        ask.args(["workloads", namespace, "-o", "json"]);
        let said = ask.output().expect("karst starts");
        serde_json::from_slice(&said.stdout).ok()
    }

    /// What the agents have logged lately.
    pub fn agent_logs(&self) -> String {
        let mut logs = self.kubectl();
        let agents = ["-l", "app.kubernetes.io/name=karst-agent"];
        logs.args(["-n", "karst-system", "logs", "--since=5m", "--tail=-1"]);
        String::from_utf8_lossy(&run(logs.args(agents)).stdout).into_owned()
    }

    /// Waits until every pod of a namespace is ready.
    pub fn wait_ready(&self, namespace: &str) {
        until(&format!("all pods of {namespace} are ready"), || {
            let pods = self.object(&["pods", "-n", namespace]);
            let pods = pods["items"].as_array()?;
            (!pods.is_empty() && pods.iter().all(is_ready)).then_some(())
        });
    }

    /// The pods of a namespace, in order: name, UID and restarts. The same before and after means that none was
    /// replaced and none began anew.
    pub fn lives(&self, namespace: &str) -> Vec<(String, String, u64)> {
        let pods = self.object(&["pods", "-n", namespace]);
        let restarts = restarts(&pods);
        restarts
            .into_iter()
            .map(|((name, uid), restarts)| (name, uid, restarts))
            .collect()
    }
}

/// Restarts of each pod of a list, by name and UID.
fn restarts(pods: &Value) -> BTreeMap<(String, String), u64> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.map(|pod| {
        let containers = pod["status"]["containerStatuses"].as_array();
        let restarts = containers.into_iter().flatten();
        let restarts = restarts.filter_map(|one| one["restartCount"].as_u64());
        let name = text(&pod["metadata"]["name"]);
        ((name, text(&pod["metadata"]["uid"])), restarts.sum())
    })
    .collect()
}

/// A program that cargo has built.
fn binary(name: &str) -> PathBuf {
    let folder = std::env::var(BINARIES_VARIABLE).map(PathBuf::from);
    folder
        .unwrap_or_else(|_| root().join("target/debug"))
        .join(name)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// The workspace's root folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/cluster lies in the workspace")
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command that must succeed, with this text as its input.
fn feed(command: &mut Command, text: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(text.as_bytes())
        .expect("the program reads its input");
    drop(input);
    let status = child.wait().expect("the program ends");
    assert!(status.success(), "{command:?} failed: {status}\n{text}");
}
