//! The lab's daemon: holds the desired state, makes it so, and answers `karst lab` over a socket. Started detached by
//! `karst lab up` as the hidden command `karst lab-daemon`.
//!
//! One lock holds all state. Threads of pods only report that something changed; one thread then brings translation
//! rules, names and resolved objects up to date.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use crate::{
    LabError, cgroup,
    daemon::state::Core,
    down::DaemonRecord,
    mesh,
    names::LabName,
    status::{Phase, Reply, Request, Status},
};

mod state;

/// Longest request line.
const REQUEST_LIMIT: u64 = 64 << 10;
/// How often a waiting `apply` looks again, and a leaving pod is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// How a lab is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Run controller and agents, and enrol pods.
    pub mesh: bool,
    /// Of every link, in bytes.
    pub mtu: u32,
    /// Of pods and services; nodes have both in any case.
    pub families: Families,
}

/// Which addresses pods and services get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    #[default]
    Dual,
    Ipv6,
}

/// Runs the daemon until it is killed: the lab ends by `karst lab down`, which needs no help from it.
pub fn run(lab: &LabName, options: Options) -> Result<(), LabError> {
    // Away from the terminal of whoever said `up`. Fails only when it already leads a session.
    let _already = rustix::process::setsid();
    cgroup::enter(&cgroup::create(lab, mesh::KUBELET)?)?;
    if let Some(record) = DaemonRecord::own() {
        record.write(lab)?;
    }
    let (changed, changes) = channel();
    let core = Arc::new(Mutex::new(Core::new(lab.clone(), options, changed)?));
    let for_changes = Arc::clone(&core);
    std::thread::spawn(move || follow_changes(&for_changes, &changes));
    let socket = lab.socket();
    let listener = UnixListener::bind(&socket)
        .map_err(LabError::io(format!("listening on {}", socket.display())))?;
    for stream in listener.incoming().flatten() {
        let core = Arc::clone(&core);
        std::thread::spawn(move || {
            // A caller that goes away does not undo what it asked for.
            let _caller_gone = serve(stream, &core);
        });
    }
    Ok(())
}

fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

fn follow_changes(core: &Mutex<Core>, changes: &Receiver<()>) {
    loop {
        match changes.recv_timeout(LOOK) {
            Ok(()) => while changes.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) if !lock(core).pods_are_leaving() => continue,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Err(error) = lock(core).refresh() {
            tracing::error!("bringing the lab up to date: {}", error.chain());
        }
    }
}

fn serve(stream: UnixStream, core: &Mutex<Core>) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(REQUEST_LIMIT)).read_line(&mut line)?;
    let mut caller = Caller { stream };
    let outcome = match serde_json::from_str::<Request>(&line) {
        Ok(request) => handle(request, core, &mut caller),
        Err(error) => Err(format!("request not understood: {error}")),
    };
    caller.say(&match outcome {
        Ok(status) => Reply::Done(Box::new(status)),
        Err(error) => Reply::Failed(error),
    })
}

/// The other end of a request.
struct Caller {
    stream: UnixStream,
}

impl Caller {
    fn say(&mut self, reply: &Reply) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }

    fn progress(&mut self, line: String) {
        // Progress for a caller that is gone is of no use to anybody.
        let _caller_gone = self.say(&Reply::Progress(line));
    }
}

fn handle(request: Request, core: &Mutex<Core>, caller: &mut Caller) -> Result<Status, String> {
    match request {
        Request::Apply { dir, wait_seconds } => {
            apply(core, &dir, Duration::from_secs(wait_seconds), caller)?
        }
        Request::Status => {}
        Request::KillAgent { node, hold } => {
            let killing = lock(core).agent(&node)?.kill(hold);
            killing.wait();
        }
        Request::RestartAgent { node } => lock(core).agent(&node)?.restart(),
        Request::KillController { hold } => {
            let killing = lock(core).controller()?.kill(hold);
            killing.wait();
        }
        Request::RestartController => lock(core).controller()?.restart(),
    }
    Ok(lock(core).status())
}

fn apply(
    core: &Mutex<Core>,
    dir: &Path,
    wait: Duration,
    caller: &mut Caller,
) -> Result<(), String> {
    lock(core)
        .apply(dir, &mut |line| caller.progress(line))
        .map_err(|error| error.chain())?;
    if wait.is_zero() {
        return Ok(());
    }
    let deadline = Instant::now() + wait;
    let mut told = Vec::new();
    loop {
        let status = lock(core).status();
        let leaving = lock(core).pods_are_leaving();
        let waiting: Vec<_> = status
            .pods
            .iter()
            .filter(|pod| !pod.ready && pod.phase != Phase::Succeeded)
            .collect();
        for pod in status.pods.iter().filter(|pod| pod.ready) {
            if !told.contains(&pod.uid) {
                told.push(pod.uid.clone());
                caller.progress(format!("pod {} is ready on {}", pod.full_name(), pod.node));
            }
        }
        if waiting.is_empty() && !leaving && !lock(core).pods_are_missing() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let list: Vec<_> = waiting
                .iter()
                .map(|pod| format!("{}: {:?}: {}", pod.full_name(), pod.phase, pod.message))
                .collect();
            return Err(format!(
                "not all pods are ready after {} s\n  {}",
                wait.as_secs(),
                list.join("\n  ")
            ));
        }
        std::thread::sleep(LOOK);
    }
}

/// Sends a note that something changed.
fn notifier(changed: &Sender<()>) -> impl Fn() + Send + 'static {
    let changed = changed.clone();
    move || {
        let _daemon_ends = changed.send(());
    }
}
