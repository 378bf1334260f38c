//! What `karst lab` does on the user's side: start the daemon, ask it, enter pods, read logs.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    LabError, cgroup,
    daemon::{Families, Options},
    down::{DaemonRecord, down},
    names::{LabName, netns_path},
    pod,
    status::{PodStatus, Reply, Request, Status},
};

/// How long the daemon may take to make the fabric and open its socket.
const DAEMON_START: Duration = Duration::from_secs(20);

/// How often a folder is made again whose parent another lab has just taken away.
const TRIES: u32 = 100;

/// Starts a lab from a directory of YAML and waits up to `wait` for its pods (zero does not wait). A lab that does not
/// come up in the daemon's first steps is taken away again; one whose pods are not ready stays, to be looked at.
pub fn up(
    lab: &LabName,
    dir: &Path,
    options: Options,
    wait: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Status, LabError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    if DaemonRecord::read(lab).is_some_and(|record| record.runs()) {
        return Err(LabError::AlreadyRunning {
            name: lab.to_string(),
        });
    }
    let dir = absolute(dir)?;
    // What a crash may have left under this name.
    down(lab)?;
    if let Err(error) = start_daemon(lab, options) {
        let _first_error_counts = down(lab);
        return Err(error);
    }
    let applied = ask(
        lab,
        &Request::Apply {
            dir,
            wait_seconds: wait.as_secs(),
        },
        progress,
    );
    if applied.is_err() && status(lab).is_ok_and(|status| status.nodes.is_empty()) {
        let _first_error_counts = down(lab);
    }
    applied
}

fn absolute(dir: &Path) -> Result<PathBuf, LabError> {
    dir.canonicalize()
        .map_err(LabError::io(format!("opening directory {}", dir.display())))
}

/// Makes a folder. The last lab takes the folders above its own with it, perhaps while this one is being made below them.
fn make_folder(folder: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        match fs::create_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    fs::create_dir_all(folder)
}

fn start_daemon(lab: &LabName, options: Options) -> Result<(), LabError> {
    let logs = lab.logs_dir();
    make_folder(&logs).map_err(LabError::io(format!("making {}", logs.display())))?;
    let log = daemon_log(lab);
    let file = File::create(&log).map_err(LabError::io(format!("making {}", log.display())))?;
    let second = file
        .try_clone()
        .map_err(LabError::io("duplicating a log file"))?;
    let karst = crate::mesh::bin_dir()?.join("karst");
    let mut command = Command::new(&karst);
    command.args([
        "lab-daemon",
        &lab.to_string(),
        "--mtu",
        &options.mtu.to_string(),
    ]);
    if options.families == Families::Ipv6 {
        command.arg("--ipv6-only");
    }
    if !options.mesh {
        command.arg("--no-mesh");
    }
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(second)
        .current_dir("/");
    let mut child = command
        .spawn()
        .map_err(LabError::io(format!("starting {}", karst.display())))?;
    let deadline = Instant::now() + DAEMON_START;
    while UnixStream::connect(lab.socket()).is_err() {
        let ended = child.try_wait().ok().flatten().is_some();
        if ended || Instant::now() > deadline {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::Daemon(format!(
                "the lab's daemon did not start: {}",
                said.trim()
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn daemon_log(lab: &LabName) -> PathBuf {
    lab.logs_dir().join("daemon.log")
}

fn ask(
    lab: &LabName,
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<Status, LabError> {
    let Ok(mut stream) = UnixStream::connect(lab.socket()) else {
        return Err(LabError::NotRunning {
            name: lab.to_string(),
        });
    };
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    stream
        .write_all(&line)
        .map_err(LabError::io("asking the lab's daemon"))?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(LabError::io("reading from the lab's daemon"))?;
        match serde_json::from_str(&line) {
            Ok(Reply::Progress(line)) => progress(&line),
            Ok(Reply::Done(status)) => return Ok(*status),
            Ok(Reply::Failed(error)) => return Err(LabError::Daemon(error)),
            Err(error) => {
                return Err(LabError::Daemon(format!(
                    "the daemon is of another version: {error}"
                )));
            }
        }
    }
    Err(LabError::DaemonGone {
        log: daemon_log(lab),
    })
}

/// Reads the directory again and makes the lab so.
pub fn apply(
    lab: &LabName,
    dir: &Path,
    wait: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Status, LabError> {
    ask(
        lab,
        &Request::Apply {
            dir: absolute(dir)?,
            wait_seconds: wait.as_secs(),
        },
        progress,
    )
}

pub fn status(lab: &LabName) -> Result<Status, LabError> {
    ask(lab, &Request::Status, &mut |_| {})
}

/// Whether a killed program stays dead until it is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    StartAgain,
    StayDead,
}

/// Kill -9 of a node's agent.
pub fn kill_agent(lab: &LabName, node: &str, after: After) -> Result<Status, LabError> {
    ask(
        lab,
        &Request::KillAgent {
            node: node.to_owned(),
            hold: after == After::StayDead,
        },
        &mut |_| {},
    )
}

/// SIGTERM for a node's agent and a new start, or the start of one that was kept dead.
pub fn restart_agent(lab: &LabName, node: &str) -> Result<Status, LabError> {
    ask(
        lab,
        &Request::RestartAgent {
            node: node.to_owned(),
        },
        &mut |_| {},
    )
}

/// Kill -9 of the controller.
pub fn kill_controller(lab: &LabName, after: After) -> Result<Status, LabError> {
    ask(
        lab,
        &Request::KillController {
            hold: after == After::StayDead,
        },
        &mut |_| {},
    )
}

/// SIGTERM for the controller and a new start.
pub fn restart_controller(lab: &LabName) -> Result<Status, LabError> {
    ask(lab, &Request::RestartController, &mut |_| {})
}

/// Finds a pod by `namespace/name`, by name, or by the name of its Deployment (its first pod).
pub fn find_pod<'a>(status: &'a Status, wanted: &str) -> Result<&'a PodStatus, LabError> {
    let exact = |pod: &&PodStatus| pod.full_name() == wanted || pod.name == wanted;
    let replica = |pod: &&PodStatus| {
        let (base, full) = (
            pod.name.rsplit_once('-').map_or("", |(base, _)| base),
            pod.full_name(),
        );
        base == wanted
            || full
                .rsplit_once('-')
                .is_some_and(|(base, _)| base == wanted)
    };
    let mut found: Vec<_> = status.pods.iter().filter(exact).collect();
    if found.is_empty() {
        found = status.pods.iter().filter(replica).take(1).collect();
    }
    let list = |pods: &mut dyn Iterator<Item = &PodStatus>| {
        pods.map(PodStatus::full_name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match found[..] {
        [pod] => Ok(pod),
        [] => Err(LabError::NotFound(format!(
            "no pod {wanted}: there are {}",
            list(&mut status.pods.iter())
        ))),
        _ => Err(LabError::NotFound(format!(
            "several pods {wanted}: say which of {}",
            list(&mut found.into_iter())
        ))),
    }
}

/// As whom a command runs in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the pod's own processes.
    Pod,
    Root,
}

/// The command that runs `words` in a pod: its network, host name, mounts, cgroup and user.
pub fn exec_command(
    lab: &LabName,
    pod: &str,
    user: User,
    words: &[String],
) -> Result<Command, LabError> {
    let status = status(lab)?;
    let pod = find_pod(&status, pod)?;
    let user = if user == User::Root { 0 } else { pod.user };
    let mut command = Command::new("/bin/sh");
    // The shell enters the pod's cgroup first, so that `down` and the pod's end reach what was started here.
    let group = format!("{}/exec", pod.cgroup);
    command.args([
        "-c",
        "mkdir -p \"$0\"; echo 0 > \"$0/cgroup.procs\" && exec \"$@\"",
        &group,
    ]);
    match pod.pids.first() {
        Some(&pid) => command.args(pod::enter_container(pid, (user, user))),
        None => {
            let (netns, user) = (netns_path(&pod.netns), user.to_string());
            command
                .arg("nsenter")
                .arg(format!("--net={}", netns.display()))
                .args(["--setuid", &user, "--setgid", &user, "--"])
        }
    };
    let path = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        crate::pod_init::BIN_DIR
    );
    let term = std::env::var("TERM").unwrap_or_else(|_unset| "dumb".to_owned());
    command
        .args(["env", "-i", "HOME=/tmp"])
        .arg(format!("TERM={term}"))
        .arg(format!("PATH={path}"))
        .args(words);
    Ok(command)
}

/// The command that runs `words` in a node's network namespace.
pub fn exec_node_command(lab: &LabName, node: &str, words: &[String]) -> Result<Command, LabError> {
    let status = status(lab)?;
    let all: Vec<_> = status.nodes.iter().map(|node| node.name.as_str()).collect();
    if !all.contains(&node) {
        return Err(LabError::NotFound(format!(
            "no node {node}: there are {}",
            all.join(", ")
        )));
    }
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns_path(&lab.node(node)).display()))
        .arg("--")
        .args(words);
    Ok(command)
}

/// Replaces this process by the command; returns only with an error.
pub fn become_command(mut command: Command) -> LabError {
    LabError::Io {
        doing: "starting the command".to_owned(),
        source: command.exec(),
    }
}

/// The log files behind a name: a pod's containers, `controller`, `daemon` or `agent/NODE`.
pub fn log_files(lab: &LabName, of: &str) -> Result<Vec<PathBuf>, LabError> {
    let logs = lab.logs_dir();
    if of == "controller" || of == "daemon" {
        return Ok(vec![logs.join(format!("{of}.log"))]);
    }
    if let Some(node) = of.strip_prefix("agent/") {
        return Ok(vec![logs.join(format!("agent-{node}.log"))]);
    }
    let status = status(lab)?;
    let pod = find_pod(&status, of)?;
    let start = format!("{}.{}.", pod.namespace, pod.name);
    let entries =
        fs::read_dir(&logs).map_err(LabError::io(format!("reading {}", logs.display())))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

/// Processes of the lab that still run, by cgroup: for tests that show that nothing stays.
pub fn cgroup_dir(lab: &LabName) -> Result<PathBuf, LabError> {
    cgroup::path(lab, "")
}
