//! A running `karst lab`, for the demo and the benchmarks: start, edit its YAML, run commands in its pods, capture,
//! tear down. Everything is done through the shipped binaries and the system's own tools.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{pcap::Capture, release, shell};

/// How long a change of the YAML may take to be in force before a proof fails.
pub(crate) const SETTLE: Duration = Duration::from_secs(20);

/// tcpdump's ring. Each slot holds the largest packet that there can be, so that the default has only a few of them.
const RING_KIB: &str = "65536";

/// A node's interface towards the other nodes.
const NODE_LINK: &str = "eth0";

/// A pod of the lab, as its YAML has it.
#[derive(Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
}

impl Pod {
    /// As `karst lab` takes it.
    pub(crate) fn path(self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A lab, taken down when dropped, unless kept.
pub(crate) struct Lab {
    name: String,
    /// Our copy of the example's YAML: edits never touch the repository.
    folder: PathBuf,
    keep: bool,
    guard: Option<Child>,
}

/// What runs in a pod: process id and start time (in clock ticks since boot).
pub(crate) type Processes = Vec<(u64, u64)>;

impl Lab {
    /// Copies the example's folder and starts the lab from the copy.
    pub(crate) fn up(name: &str, example: &str) -> Result<Self> {
        let mut lab = Self::prepare(name, example)?;
        lab.start()?;
        Ok(lab)
    }

    /// Copies the example's folder and starts nothing yet. What an earlier run left under this name goes.
    pub(crate) fn prepare(name: &str, example: &str) -> Result<Self> {
        ensure!(
            karst().is_file(),
            "{} is missing: run without --no-build once",
            karst().display()
        );
        let folder = shell::root().join("target").join(format!("lab-{name}"));
        let _ = fs::remove_dir_all(&folder);
        copy(&shell::root().join(example), &folder)?;
        let lab = Self {
            name: name.to_owned(),
            folder,
            keep: false,
            guard: None,
        };
        shell::succeeds(&mut lab.command("down"));
        Ok(lab)
    }

    /// Starts what was prepared, showing the progress, and waits until every pod is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.guard = Some(self.guard()?);
        let mut up = self.command("up");
        up.arg(&self.folder).stderr(Stdio::piped());
        let mut running = up.spawn().context("starting karst")?;
        let mut said = String::new();
        for line in BufReader::new(running.stderr.take().context("its output is piped")?).lines() {
            let line = line?;
            println!("    {line}");
            said = line;
        }
        if !running.wait()?.success() {
            bail!("the lab did not start: {said}");
        }
        Ok(())
    }

    /// A process that takes the lab down when this one ends without having said that it is done, however it ends.
    fn guard(&self) -> Result<Child> {
        let script = r#"read -r done || exec "$0" lab down --name "$1""#;
        let mut guard = Command::new("sh");
        guard.args(["-c", script]).arg(karst()).arg(&self.name);
        guard.stdin(Stdio::piped()).process_group(0);
        guard.spawn().context("starting the lab's guard")
    }

    /// The lab is no longer ours to take down.
    fn dismiss_guard(&mut self) {
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        if let Some(mut input) = guard.stdin.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = guard.wait();
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(karst());
        command.args(["lab", verb, "--name", &self.name]);
        command
    }

    /// The lab's state folder.
    pub(crate) fn state(&self) -> PathBuf {
        Path::new("/run/karst/lab").join(&self.name)
    }

    /// What `karst lab status` says of a pod.
    fn pod(&self, pod: Pod) -> Result<Value> {
        let status = self.status()?;
        let all = status["pods"]
            .as_array()
            .context("the status lists no pods")?;
        let mut found = all
            .iter()
            .filter(|one| one["namespace"] == pod.namespace && one["name"] == pod.name);
        found
            .next()
            .cloned()
            .with_context(|| format!("there is no pod {}", pod.path()))
    }

    /// The pod's network namespace.
    pub(crate) fn netns(&self, pod: Pod) -> Result<PathBuf> {
        Ok(netns_path(&self.pod(pod)?))
    }

    /// Every address of a namespace's pods.
    pub(crate) fn addresses(&self, namespace: &str) -> Result<Vec<IpAddr>> {
        let status = self.status()?;
        let pods = status["pods"].as_array().into_iter().flatten();
        let addresses = pods
            .filter(|pod| pod["namespace"] == namespace)
            .filter_map(|pod| pod["addresses"].as_array())
            .flatten()
            .filter_map(|address| address.as_str()?.parse().ok());
        Ok(addresses.collect())
    }

    /// The pod's first IPv4 address.
    pub(crate) fn address(&self, pod: Pod) -> Result<Ipv4Addr> {
        let pod = self.pod(pod)?;
        let addresses = pod["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        addresses
            .filter_map(|address| address.parse().ok())
            .next()
            .context("the pod has no IPv4 address")
    }

    /// Changes one file of the YAML and, when the lab runs, applies it. A change that changes nothing is an error: the proof would be void.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.folder.join(file);
        let before =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let after = change(&before);
        if before == after {
            bail!("the edit of {file} changes nothing: the example and its proof no longer fit");
        }
        fs::write(&path, after)?;
        if self.guard.is_some() {
            self.apply()?;
        }
        Ok(())
    }

    /// Adds a file and applies it.
    pub(crate) fn add(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(file), text)?;
        self.apply()
    }

    /// Takes a file away and applies that.
    pub(crate) fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.folder.join(file))?;
        self.apply()
    }

    fn apply(&self) -> Result<()> {
        shell::capture(self.command("apply").arg(&self.folder))
            .context("applying the YAML")
            .map(drop)
    }

    /// `karst lab status` as JSON.
    pub(crate) fn status(&self) -> Result<Value> {
        let status = shell::capture(self.command("status").args(["--output", "json"]))?;
        serde_json::from_str(&status).context("reading the status of the lab")
    }

    /// Waits until every agent knows every pod of a namespace as reachable by HBONE, or none, and no pod is on its way in
    /// or out, so that policy decides every plain connection.
    pub(crate) fn wait_enrolled(&self, namespace: &str, wanted: bool) -> Result<()> {
        let what = if wanted { "enrolled" } else { "released" };
        shell::wait_for(&format!("pods of {namespace} are {what}"), SETTLE, || {
            let status = self.status().ok()?;
            let pods = status["pods"]
                .as_array()?
                .iter()
                .filter(|pod| pod["namespace"] == namespace)
                .count();
            let expected = if wanted { pods } else { 0 };
            let nodes = status["nodes"].as_array()?;
            let settled = |node: &Value| {
                let dump = agent_state(node)?;
                let open = dump["capturedPods"].as_array()?.iter();
                let moving = open.filter(|pod| pod["plaintextOpen"] == true).count();
                Some(tunnelled(&dump, namespace)? == expected && moving == 0)
            };
            nodes
                .iter()
                .all(|node| settled(node).unwrap_or(false))
                .then_some(())
        })
    }

    /// Runs a command in a pod and gives what it prints; an exit status other than 0 is an error.
    pub(crate) fn exec(&self, pod: Pod, command: &[&str]) -> Result<String> {
        shell::capture(self.command("exec").arg(pod.path()).arg("--").args(command))
    }

    /// Starts a command in a pod, as the pod's user, its input and output piped.
    pub(crate) fn spawn(&self, pod: Pod, command: &[&str]) -> Result<Child> {
        let mut spawned = self.command("exec");
        spawned.arg(pod.path()).arg("--").args(command);
        spawned
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        spawned
            .spawn()
            .with_context(|| format!("starting {}", shell::line(&spawned)))
    }

    /// A command in a pod's network namespace.
    pub(crate) fn inside(&self, pod: Pod, command: &[&str]) -> Result<Command> {
        let mut inside = Command::new("nsenter");
        inside
            .arg(format!("--net={}", self.netns(pod)?.display()))
            .args(command);
        Ok(inside)
    }

    /// The processes of a pod, each with its start time.
    pub(crate) fn processes(&self, pod: Pod) -> Result<Processes> {
        let pod = self.pod(pod)?;
        let pids = pod["pids"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64);
        let mut processes: Processes = pids
            .filter_map(|pid| Some((pid, start_time(pid)?)))
            .collect();
        processes.sort_unstable();
        Ok(processes)
    }

    /// The process of each node's agent.
    pub(crate) fn agents(&self) -> Result<Vec<u64>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().into_iter().flatten();
        Ok(nodes
            .filter_map(|node| node["agent"]["pid"].as_u64())
            .collect())
    }

    /// All that a node's agent has logged, line by line.
    pub(crate) fn agent_log(&self, node: &str) -> Result<String> {
        let file = self.state().join(format!("logs/agent-{node}.log"));
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Begins to capture TCP on a node's link to the other nodes.
    pub(crate) fn listen(&self, node: &str) -> Result<Listening> {
        let file = self.state().join(format!("{node}.pcap"));
        let mut tcpdump = self.command("exec");
        tcpdump.args(["--node", node, "--", "tcpdump", "-n", "-U", "-Z", "root"]);
        tcpdump.args(["--immediate-mode", "-s", "0", "-B", RING_KIB]);
        tcpdump.args(["-i", NODE_LINK, "-w"]);
        tcpdump.arg(&file).arg("tcp").stderr(Stdio::piped());
        let mut child = tcpdump.spawn().context("starting tcpdump")?;
        let mut said = BufReader::new(child.stderr.take().context("its messages are piped")?);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                bail!("tcpdump did not start on {NODE_LINK} of {node}");
            }
        }
        Ok(Listening { child, said, file })
    }

    /// Takes the lab down and says what it left behind.
    pub(crate) fn down(mut self) -> Result<Vec<String>> {
        let ran = self.everything_running();
        self.keep = true;
        shell::capture(&mut self.command("down")).context("taking the lab down")?;
        self.dismiss_guard();
        let _ = fs::remove_dir_all(&self.folder);
        let mut left = self.leftovers();
        let still = |&&(pid, start): &&(u64, u64)| start_time(pid) == Some(start);
        left.extend(
            ran.iter()
                .filter(still)
                .map(|(pid, _)| format!("process {pid}")),
        );
        Ok(left)
    }

    /// Controller, agents and the pods' processes.
    fn everything_running(&self) -> Processes {
        let Ok(status) = self.status() else {
            return Vec::new();
        };
        let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
        let agents = list("nodes")
            .into_iter()
            .map(|node| node["agent"]["pid"].clone());
        let pods = list("pods").into_iter().flat_map(|pod| {
            let pids = pod["pids"].as_array();
            pids.cloned().unwrap_or_default()
        });
        let pids = agents
            .chain(pods)
            .chain([status["controller"]["pid"].clone()]);
        pids.filter_map(|pid| pid.as_u64())
            .filter_map(|pid| Some((pid, start_time(pid)?)))
            .collect()
    }

    /// Namespaces, pins, cgroups and state of this lab that exist.
    fn leftovers(&self) -> Vec<String> {
        let ours = format!("karst-{}", self.name);
        let pins = format!("{}-", self.name);
        let below = |folder: &str, start: &str| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let start = start.to_owned();
            entries.map(|entry| entry.path()).filter(move |path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&start))
            })
        };
        let mut left: Vec<PathBuf> = below("/run/netns", &ours).collect();
        left.extend(below("/sys/fs/bpf/karst", &pins));
        left.extend(below("/sys/fs/cgroup/unified", &ours).chain(below("/sys/fs/cgroup", &ours)));
        left.extend(Some(self.state()).filter(|state| state.exists()));
        left.iter().map(|path| path.display().to_string()).collect()
    }

    /// Leaves the lab running; gives the folder of its YAML.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.dismiss_guard();
        self.folder.clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            shell::succeeds(&mut self.command("down"));
        }
        self.dismiss_guard();
    }
}

/// tcpdump, writing what it sees to a file.
pub(crate) struct Listening {
    child: Child,
    said: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Listening {
    /// What it has written so far.
    pub(crate) fn so_far(&self) -> Result<Capture> {
        Capture::read(&self.file)
    }

    /// Ends it; a packet that the kernel had to drop is an error, since a proof would not have seen it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        shell::succeeds(Command::new("kill").args(["-INT", &id]));
        let mut said = String::new();
        self.said.read_to_string(&mut said)?;
        self.child.wait()?;
        if !said.contains("\n0 packets dropped by kernel") {
            bail!("tcpdump has not seen everything: {said}");
        }
        Ok(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test.
pub(crate) fn karst() -> PathBuf {
    release::folder().join("karst")
}

/// Field 22 of /proc/PID/stat, counted after the command's name in parentheses; none for a process that has ended and
/// only waits to be collected.
fn start_time(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let running = fields.next()? != "Z";
    fields.nth(18)?.parse().ok().filter(|_| running)
}

/// What the agent of a node holds.
fn agent_state(node: &Value) -> Option<Value> {
    let mut asked = Command::new("nsenter");
    asked.arg(format!("--net={}", netns_path(node).display()));
    asked.args(["curl", "-sf", "http://127.0.0.1:15000/config_dump"]);
    serde_json::from_str(&shell::capture(&mut asked).ok()?).ok()
}

/// How many workloads of a namespace the agent reaches by HBONE.
fn tunnelled(dump: &Value, namespace: &str) -> Option<usize> {
    let workloads = dump["workloads"].as_array()?.iter();
    Some(
        workloads
            .filter(|one| one["namespace"] == namespace && one["tunnel"] == "Hbone")
            .count(),
    )
}

/// The namespace that the status names, as a path.
fn netns_path(object: &Value) -> PathBuf {
    Path::new("/run/netns").join(object["netns"].as_str().unwrap_or_default())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .context("an entry of a folder has a name")?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
