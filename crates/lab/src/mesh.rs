//! The mesh's own programs in the lab: the controller, one agent per node, and the CNI call of each pod. They are the
//! shipped binaries, found beside the running one.

use std::{
    convert::Infallible,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    LabError,
    addressing::{CONTROLLER, cluster_dns},
    cgroup, command,
    daemon::Families,
    desired::DesiredPod,
    names::{LabName, PIN_ROOT, netns_path},
    network::{self, PodNetwork},
    status::ProcessStatus,
};

/// Port of the controller's discovery and CA services.
pub(crate) const DISCOVERY_PORT: u16 = 15012;
/// First pause before a program that ended is started again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a program may take to drain after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// How often a watched program is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How to start a program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) argv: Vec<String>,
    pub(crate) log: PathBuf,
}

#[derive(Debug)]
enum Order {
    /// Says on `done` when it is dead, by dropping it.
    Kill {
        hold: bool,
        done: Sender<Infallible>,
    },
    Restart,
}

/// An order to kill that is being carried out.
#[must_use = "until it is waited for, the program may live"]
pub(crate) struct Killing(Receiver<Infallible>);

impl Killing {
    /// Returns once the program is dead. Not to be called with a lock held: that may take seconds.
    pub(crate) fn wait(self) {
        let _dropped_when_dead = self.0.recv();
    }
}

/// A program that is kept running by a thread of its own.
#[derive(Debug)]
pub(crate) struct Kept {
    orders: Sender<Order>,
    status: Arc<Mutex<ProcessStatus>>,
}

impl Kept {
    /// Starts it and goes on starting it whenever it ends.
    pub(crate) fn start(program: Program) -> Self {
        let (orders, received) = channel();
        let status = Arc::new(Mutex::new(ProcessStatus::default()));
        let for_thread = Arc::clone(&status);
        std::thread::spawn(move || {
            Keeper {
                program,
                status: for_thread,
                orders: received,
            }
            .run()
        });
        Self { orders, status }
    }

    pub(crate) fn status(&self) -> ProcessStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Kill -9. With `hold` it stays dead until [`Self::restart`].
    pub(crate) fn kill(&self, hold: bool) -> Killing {
        let (done, dead) = channel();
        let _keeper_lives_as_long = self.orders.send(Order::Kill { hold, done });
        Killing(dead)
    }

    /// SIGTERM, time to drain, and a new start.
    pub(crate) fn restart(&self) {
        let _keeper_lives_as_long = self.orders.send(Order::Restart);
    }
}

struct Keeper {
    program: Program,
    status: Arc<Mutex<ProcessStatus>>,
    orders: Receiver<Order>,
}

/// Why a watched program is not running any more.
enum Ended {
    ByItself,
    OnOrder {
        hold: bool,
    },
    /// The lab is going away.
    Over,
}

impl Keeper {
    fn run(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let started = Instant::now();
            let ended = match self.program.spawn() {
                Ok(child) => self.watch(child),
                Err(error) => {
                    self.note(None, error.chain());
                    Ended::ByItself
                }
            };
            backoff = if started.elapsed() > BACKOFF_MAX * 2 {
                BACKOFF_MIN
            } else {
                (backoff * 2).min(BACKOFF_MAX)
            };
            match ended {
                Ended::Over => return,
                Ended::OnOrder { hold: true } => {
                    // Only an order to start ends the hold; more kills change nothing.
                    while matches!(self.orders.recv(), Ok(Order::Kill { .. })) {}
                }
                Ended::OnOrder { hold: false } => {}
                Ended::ByItself => std::thread::sleep(backoff),
            }
            self.status
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .restarts += 1;
        }
    }

    fn watch(&self, mut child: Child) -> Ended {
        self.note(Some(child.id()), String::new());
        loop {
            match self.orders.recv_timeout(LOOK) {
                Ok(Order::Kill { hold, done }) => {
                    let _gone = child.kill();
                    self.note(None, "killed on request".to_owned());
                    let _reaped = child.wait();
                    drop(done);
                    return Ended::OnOrder { hold };
                }
                Ok(Order::Restart) => {
                    terminate(&mut child, DRAIN);
                    self.note(None, "restarted on request".to_owned());
                    return Ended::OnOrder { hold: false };
                }
                Err(RecvTimeoutError::Disconnected) => {
                    terminate(&mut child, DRAIN);
                    return Ended::Over;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Ok(Some(status)) = child.try_wait() {
                let log = self.program.log.display();
                tracing::warn!(program = self.program.name, %status, "ended, will be started again");
                self.note(None, format!("ended with {status}, see {log}"));
                return Ended::ByItself;
            }
        }
    }

    fn note(&self, pid: Option<u32>, message: String) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.pid = pid;
        if !message.is_empty() {
            status.message = message;
        }
    }
}

/// SIGTERM, up to `grace` to end, then SIGKILL; reaps.
pub(crate) fn terminate(child: &mut Child, grace: Duration) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + grace;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _gone = child.kill();
    let _reaped = child.wait();
}

impl Program {
    fn spawn(&self) -> Result<Child, LabError> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(LabError::io(format!("opening {}", self.log.display())))?;
        let second = log
            .try_clone()
            .map_err(LabError::io("duplicating a log file"))?;
        // A shell enters the cgroup: it must happen between fork and exec, and the standard library offers no safe hook.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.cgroup)
            .args(&self.argv);
        command.stdin(Stdio::null()).stdout(log).stderr(second);
        let spawned = network::inside(&self.netns, || command.spawn())?;
        spawned.map_err(LabError::io(format!("starting {}", self.name)))
    }
}

/// Where the binaries of this build lie.
pub(crate) fn bin_dir() -> Result<PathBuf, LabError> {
    let own = std::env::current_exe().map_err(LabError::io("finding the running program"))?;
    // Test binaries lie in target/<profile>/deps, the programs one above.
    let dir = own.parent().unwrap_or_else(|| Path::new("/")).to_path_buf();
    Ok(if dir.ends_with("deps") {
        dir.parent().map(Path::to_path_buf).unwrap_or(dir)
    } else {
        dir
    })
}

fn binary(name: &str) -> Result<String, LabError> {
    let path = bin_dir()?.join(name);
    if path.is_file() {
        return Ok(path.display().to_string());
    }
    Err(LabError::NotFound(format!(
        "{} is missing: build it with `cargo build -p {name}`, or use --no-mesh",
        path.display()
    )))
}

/// The controller, in the fabric's namespace, reading the resolved objects.
pub(crate) fn controller(lab: &LabName) -> Result<Kept, LabError> {
    let state = controller_state(lab);
    std::fs::create_dir_all(&state)
        .map_err(LabError::io("making the controller's state folder"))?;
    let argv = vec![
        binary("karst-controller")?,
        "--files".to_owned(),
        lab.objects_dir().display().to_string(),
        "--listen".to_owned(),
        format!("[::]:{DISCOVERY_PORT}"),
        "--state-dir".to_owned(),
        state,
    ];
    let cgroup = cgroup::create(lab, "controller")?;
    let log = lab.logs_dir().join("controller.log");
    Ok(Kept::start(Program {
        name: "karst-controller".to_owned(),
        netns: lab.fabric(),
        cgroup,
        argv,
        log,
    }))
}

fn controller_state(lab: &LabName) -> String {
    lab.state_dir().join("controller").display().to_string()
}

/// A join token for a waypoint (`<namespace>/<name>`) on a node.
pub(crate) fn waypoint_token(
    lab: &LabName,
    waypoint: &str,
    node: &str,
) -> Result<String, LabError> {
    let state = controller_state(lab);
    let args = ["token", "--node", node, "--waypoint", waypoint];
    let issued = command::run(
        &binary("karst-controller")?,
        &[&args[..], &["--state-dir", &state]].concat(),
        "",
    )?;
    Ok(issued.trim().to_owned())
}

/// The agent of a node, in its namespace and a cgroup of its own.
pub(crate) fn agent(lab: &LabName, node: &str, families: Families) -> Result<Kept, LabError> {
    mount_bpffs()?;
    let run = lab.agent_dir(node);
    std::fs::create_dir_all(&run).map_err(LabError::io(format!("making {}", run.display())))?;
    let token = run.join("join-token");
    let issued = command::run(
        &binary("karst-controller")?,
        &[
            "token",
            "--node",
            node,
            "--state-dir",
            &controller_state(lab),
        ],
        "",
    )?;
    std::fs::write(&token, issued.trim()).map_err(LabError::io("writing the join token"))?;
    let root =
        karst_netns::cgroup2_root().map_err(LabError::io("finding the cgroup v2 hierarchy"))?;
    let cgroup = cgroup::create(lab, &format!("{node}/agent"))?;
    let text = |path: &Path| path.display().to_string();
    let daemon = cgroup::create(lab, KUBELET)?;
    let kubelet = text(daemon.strip_prefix(&root).unwrap_or(&daemon));
    let flags = [
        ("--node", node.to_owned()),
        ("--run-dir", text(&run)),
        (
            "--controller",
            format!("https://{}:{DISCOVERY_PORT}", CONTROLLER.0),
        ),
        ("--join-token-file", text(&token)),
        ("--pin-dir", text(&lab.pin_dir(node))),
        ("--cgroup-root", text(&root)),
        ("--kubelet-cgroup", kubelet),
        ("--cluster-dns", cluster_dns(families).to_string()),
        ("--admin", "127.0.0.1:15000".to_owned()),
        ("--metrics-port", "15020".to_owned()),
        ("--ready-port", "15021".to_owned()),
    ];
    let mut argv = vec![binary("karst-agent")?];
    argv.extend(
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    let log = lab.logs_dir().join(format!("agent-{node}.log"));
    Ok(Kept::start(Program {
        name: format!("karst-agent on {node}"),
        netns: lab.node(node),
        cgroup,
        argv,
        log,
    }))
}

/// The cgroup of the daemon, which probes as the kubelet does.
pub(crate) const KUBELET: &str = "kubelet";

fn mount_bpffs() -> Result<(), LabError> {
    let mounts =
        std::fs::read_to_string("/proc/mounts").map_err(LabError::io("reading /proc/mounts"))?;
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(PIN_ROOT))
    {
        return Ok(());
    }
    let mounted = rustix::mount::mount(
        "bpf",
        PIN_ROOT,
        "bpf",
        rustix::mount::MountFlags::empty(),
        c"mode=0700",
    );
    mounted.map_err(|error| LabError::Io {
        doing: format!("mounting bpffs at {PIN_ROOT}"),
        source: error.into(),
    })
}

/// Removes what a node's agent left: its pinned kernel programs and maps, and its run folder. Both are named, because
/// what the agent takes for them otherwise is the folder that all labs of the machine share.
pub(crate) fn remove_agent(lab: &LabName, node: &str) -> Result<(), LabError> {
    let pin_dir = lab.pin_dir(node);
    let dir = pin_dir.display().to_string();
    let run = lab.agent_dir(node).display().to_string();
    command::run(
        &binary("karst-agent")?,
        &["--remove", "--pin-dir", &dir, "--run-dir", &run],
        "",
    )?;
    match std::fs::remove_dir(&pin_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(LabError::Io {
            doing: format!("removing {dir}"),
            source: error,
        }),
        _ => {
            // Only when this was the last lab of the machine.
            if let Some(shared) = pin_dir.parent() {
                let _not_empty = std::fs::remove_dir(shared);
            }
            Ok(())
        }
    }
}

/// Calls `karst-cni` for a pod as the container runtime does.
pub(crate) fn cni(
    lab: &LabName,
    verb: &str,
    pod: &DesiredPod,
    uid: &str,
    network: &PodNetwork,
) -> Result<(), String> {
    let plugin = binary("karst-cni").map_err(|error| error.chain())?;
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": network.host_veth},
            {"name": "eth0", "sandbox": netns_path(&network.netns)},
        ],
        "ips": network.addresses().iter().map(|ip| {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            json!({"address": format!("{ip}/{bits}"), "interface": 1})
        }).collect::<Vec<_>>(),
    });
    let config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "karst-cni",
        "runDir": lab.agent_dir(&pod.node), "prevResult": previous,
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={uid};K8S_POD_INFRA_CONTAINER_ID={uid}",
        pod.namespace, pod.name,
    );
    let mut command = Command::new(plugin);
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", uid)
        .env("CNI_IFNAME", "eth0");
    command
        .env("CNI_NETNS", netns_path(&network.netns))
        .env("CNI_ARGS", args)
        .env("CNI_PATH", "/opt/cni/bin");
    call(command, &config.to_string())
}

fn call(mut command: Command, input: &str) -> Result<(), String> {
    use std::io::Write as _;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command
        .spawn()
        .map_err(|error| format!("karst-cni: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _told_by_exit = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| format!("karst-cni: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "karst-cni: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        ))
    }
}
