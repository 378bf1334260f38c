//! A running `karst lab`, for the demo and the benchmarks: start, edit its YAML, run commands in its pods, capture,
//! tear down. Everything is done through the shipped binaries and the system's own tools.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{pcap::Capture, shell};

/// How long a change of the YAML may take to be in force before a proof fails.
pub(crate) const SETTLE: Duration = Duration::from_secs(20);

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

/// A lab that is up; taken down when dropped, unless kept.
pub(crate) struct Lab {
    name: String,
    /// Our copy of the example's YAML: edits never touch the repository.
    folder: PathBuf,
    keep: bool,
}

/// What runs in a pod: process id and start time (in clock ticks since boot).
pub(crate) type Processes = Vec<(u64, u64)>;

impl Lab {
    /// Copies the example's folder and starts the lab from the copy.
    pub(crate) fn up(name: &str, example: &str, keep: bool) -> Result<Self> {
        let folder = shell::root().join("target").join(format!("lab-{name}"));
        let _ = fs::remove_dir_all(&folder);
        copy(&shell::root().join(example), &folder)?;
        let lab = Self {
            name: name.to_owned(),
            folder,
            keep,
        };
        // A lab left by an earlier run that was killed.
        shell::succeeds(&mut lab.command("down"));
        shell::capture(lab.command("up").arg(&lab.folder)).context("starting the lab")?;
        Ok(lab)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(shell::root().join("target/release/karst"));
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

    /// Changes one file of the YAML and applies it. A change that changes nothing is an error: the proof would be void.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.folder.join(file);
        let before =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let after = change(&before);
        if before == after {
            bail!("the edit of {file} changes nothing: the example and its proof no longer fit");
        }
        fs::write(&path, after)?;
        self.apply()
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

    /// Waits until every agent knows every pod of a namespace as reachable by HBONE, or none.
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
            let settled = |node: &Value| self.tunnelled(node, namespace) == Some(expected);
            nodes.iter().all(settled).then_some(())
        })
    }

    /// How many workloads of a namespace the agent of a node reaches by HBONE.
    fn tunnelled(&self, node: &Value, namespace: &str) -> Option<usize> {
        let mut asked = Command::new("nsenter");
        asked.arg(format!("--net={}", netns_path(node).display()));
        asked.args(["curl", "-sf", "http://127.0.0.1:15000/config_dump"]);
        let dump: Value = serde_json::from_str(&shell::capture(&mut asked).ok()?).ok()?;
        let workloads = dump["workloads"].as_array()?.iter();
        Some(
            workloads
                .filter(|one| one["namespace"] == namespace && one["protocol"] == "HBONE")
                .count(),
        )
    }

    /// Runs a command in a pod and gives what it prints; an exit status other than 0 is an error.
    pub(crate) fn exec(&self, pod: Pod, command: &[&str]) -> Result<String> {
        shell::capture(self.command("exec").arg(pod.path()).arg("--").args(command))
    }

    /// Starts a command in a pod's network namespace, as root and on the host's file system, its output piped.
    pub(crate) fn spawn(&self, pod: Pod, command: &[&str]) -> Result<Child> {
        let mut spawned = self.inside(pod, command)?;
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

    /// All that the lab's agents have logged, line by line.
    pub(crate) fn agent_log(&self) -> Result<String> {
        let mut text = String::new();
        for entry in fs::read_dir(self.state().join("logs"))? {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().contains("agent"))
            {
                text.push_str(&fs::read_to_string(&path).unwrap_or_default());
            }
        }
        Ok(text)
    }

    /// Captures what crosses the pod's link while `work` runs. Loopback is not on it: that never leaves the pod.
    pub(crate) fn capture<T>(
        &self,
        pod: Pod,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(Capture, T)> {
        let file = self
            .state()
            .join(format!("{}-{}.pcap", pod.namespace, pod.name));
        let _ = fs::remove_file(&file);
        let path = file.to_string_lossy().into_owned();
        let mut tcpdump = self.spawn(
            pod,
            &[
                "tcpdump", "-Z", "root", "-U", "-s", "0", "-i", "eth0", "-w", &path, "tcp",
            ],
        )?;
        let begun = shell::wait_for("tcpdump captures", Duration::from_secs(10), || {
            file.exists().then_some(())
        });
        let result = begun.and_then(|()| work());
        // The last packets of the work are written before tcpdump ends by an interrupt.
        std::thread::sleep(Duration::from_millis(200));
        shell::succeeds(Command::new("kill").args(["-INT", &tcpdump.id().to_string()]));
        tcpdump.wait()?;
        Ok((Capture::read(&file)?, result?))
    }

    /// Takes the lab down and says what it left behind.
    pub(crate) fn down(mut self) -> Result<Vec<String>> {
        self.keep = true;
        shell::capture(&mut self.command("down")).context("taking the lab down")?;
        let _ = fs::remove_dir_all(&self.folder);
        Ok(self.leftovers())
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

    /// Says how to go on with a lab that was kept.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.folder.clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            shell::succeeds(&mut self.command("down"));
        }
    }
}

/// Field 22 of /proc/PID/stat, counted after the command's name in parentheses.
fn start_time(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
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
