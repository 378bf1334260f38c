//! One pod's life, by a thread of its own: network, CNI ADD, containers, readiness, restarts; at the end SIGTERM, CNI
//! DEL and removal. What the kubelet does, as far as the lab needs it.
//!
//! ```text
//!   ContainerCreating ──ADD ok──► Running ──exit, restartPolicy──► Running | Succeeded | Failed
//!         │  ▲ ADD refused: again        │
//!         └──┘                          stop ──► Terminating ──► gone
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use karst_k8s_api::k8s_openapi::api::core::v1::{Container, EnvVarSource};

use crate::{
    LabError, cgroup,
    desired::DesiredPod,
    mesh,
    names::{LabName, netns_path},
    network::{self, PodNetwork},
    pod_init::Init,
    probe::Readiness,
    services::CLUSTER_DOMAIN,
    status::Phase,
    volumes, waypoint,
};

/// Pause before the container runtime asks again after a refused CNI ADD.
const ADD_AGAIN: Duration = Duration::from_secs(1);
/// How often a pod's thread looks at its processes.
const LOOK: Duration = Duration::from_millis(50);
/// Probing before the first success, so that pods start quickly.
const FIRST_PROBES: Duration = Duration::from_millis(100);
/// Time to end after SIGTERM, where the pod does not say.
const GRACE: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What a pod's thread reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodState {
    pub(crate) phase: Phase,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    pub(crate) pids: Vec<u32>,
    pub(crate) message: String,
}

/// A pod to start.
pub(crate) struct PodPlan {
    pub(crate) lab: LabName,
    pub(crate) uid: String,
    pub(crate) pod: DesiredPod,
    pub(crate) network: PodNetwork,
    pub(crate) mtu: u32,
    pub(crate) mesh: bool,
    /// With which a waypoint joins.
    pub(crate) join_token: Option<String>,
    /// The node's own addresses, for `status.hostIP` in environment variables.
    pub(crate) host_ip: IpAddr,
    /// Its name server.
    pub(crate) cluster_dns: IpAddr,
}

/// A pod that has been started; dropping it stops the pod.
pub(crate) struct RunningPod {
    stop: Option<Sender<()>>,
    state: Arc<Mutex<PodState>>,
    thread: Option<JoinHandle<()>>,
}

impl RunningPod {
    /// Starts the pod's thread; `changed` is called after each change of its state.
    pub(crate) fn start(plan: PodPlan, changed: impl Fn() + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let state = Arc::new(Mutex::new(PodState::default()));
        let for_thread = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let mut worker = Worker {
                plan,
                state: for_thread,
                stopped,
                changed: Box::new(changed),
                containers: Vec::new(),
            };
            worker.run();
        });
        Self {
            stop: Some(stop),
            state,
            thread: Some(thread),
        }
    }

    pub(crate) fn state(&self) -> PodState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Begins the end; [`Self::is_gone`] says when it is over.
    pub(crate) fn stop(&mut self) {
        self.stop = None;
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .phase = Phase::Terminating;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

struct Worker {
    plan: PodPlan,
    state: Arc<Mutex<PodState>>,
    stopped: Receiver<()>,
    changed: Box<dyn Fn() + Send>,
    containers: Vec<Running>,
}

struct Running {
    container: Container,
    child: Option<Child>,
    readiness: Option<Readiness>,
    next_probe: Instant,
    started: Instant,
    backoff: Duration,
    /// When to start it again, while it is down.
    again: Option<Instant>,
    succeeded: bool,
}

/// The pod is to go away.
struct Stopped;

impl Worker {
    fn run(&mut self) {
        if let Err(error) = self.set_up() {
            self.report(|state| (state.phase, state.message) = (Phase::Failed, error.chain()));
            let _until_removed = self.stopped.recv();
        } else if let Ok(()) = self.enroll() {
            self.start_all();
            while self.pause(LOOK).is_ok() {
                self.look_after();
            }
        }
        self.tear_down();
    }

    fn set_up(&self) -> Result<(), LabError> {
        let plan = &self.plan;
        network::create_pod(&plan.network, plan.mtu)?;
        let etc = plan.etc();
        fs::create_dir_all(&etc).map_err(LabError::io(format!("making {}", etc.display())))?;
        fs::write(etc.join("resolv.conf"), plan.resolv_conf())
            .map_err(LabError::io("writing resolv.conf"))?;
        fs::write(etc.join("hosts"), plan.hosts()).map_err(LabError::io("writing hosts"))?;
        volumes::create(&plan.pod, &plan.volumes(), plan.user(None).0)?;
        plan.write_join_token()
    }

    /// Calls the CNI plugin until it agrees: no container of an enrolled pod runs before the pod is captured.
    fn enroll(&self) -> Result<(), Stopped> {
        let plan = &self.plan;
        if !plan.mesh {
            return Ok(());
        }
        while let Err(error) = mesh::cni(&plan.lab, "ADD", &plan.pod, &plan.uid, &plan.network) {
            self.report(|state| state.message = error);
            self.pause(ADD_AGAIN)?;
        }
        Ok(())
    }

    fn pause(&self, time: Duration) -> Result<(), Stopped> {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Stopped),
        }
    }

    fn start_all(&mut self) {
        let now = Instant::now();
        for container in self.plan.pod.spec().containers.clone() {
            let readiness = match Readiness::of(&container, self.plan.network.primary()) {
                Ok(readiness) => readiness,
                Err(problem) => {
                    return self
                        .report(|state| (state.phase, state.message) = (Phase::Failed, problem));
                }
            };
            let down = Running {
                container,
                child: None,
                readiness,
                next_probe: now,
                started: now,
                backoff: Duration::from_millis(500),
                again: Some(now),
                succeeded: false,
            };
            self.containers.push(down);
        }
        self.look_after();
    }

    fn look_after(&mut self) {
        let now = Instant::now();
        let mut message = String::new();
        for number in 0..self.containers.len() {
            if let Err(problem) = self.look_after_one(number, now) {
                message = problem;
            }
        }
        let phase = self.phase();
        let ready = phase == Phase::Running
            && self
                .containers
                .iter()
                .all(|one| one.child.is_some() && one.readiness.as_ref().is_none_or(|r| r.ready));
        let running = self.containers.iter().filter(|one| one.child.is_some());
        let unready = running
            .filter_map(|one| one.readiness.as_ref())
            .find(|readiness| !readiness.ready);
        if message.is_empty()
            && let Some(readiness) = unready
        {
            message.clone_from(&readiness.reason);
        }
        let pids: Vec<u32> = self
            .containers
            .iter()
            .filter_map(|one| Some(one.child.as_ref()?.id()))
            .collect();
        let known = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // A message stays until it is replaced, or until all is well.
        let keep = message.is_empty() && !ready;
        if (known.phase, known.ready, &known.pids) != (phase, ready, &pids)
            || (!keep && known.message != message)
        {
            self.report(|state| {
                (state.phase, state.ready, state.pids) = (phase, ready, pids);
                if !keep {
                    state.message = message;
                }
            });
        }
    }

    fn phase(&self) -> Phase {
        let done = |one: &Running| one.child.is_none() && one.again.is_none();
        if !self.containers.iter().all(done) {
            return Phase::Running;
        }
        if self.containers.iter().all(|one| one.succeeded) {
            Phase::Succeeded
        } else {
            Phase::Failed
        }
    }

    fn look_after_one(&mut self, number: usize, now: Instant) -> Result<(), String> {
        let policy = self.plan.pod.spec().restart_policy.clone();
        let one = &mut self.containers[number];
        if let Some(status) = one
            .child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
        {
            one.child = None;
            one.succeeded = status.success();
            let again = match policy.as_deref() {
                Some("Never") => false,
                Some("OnFailure") => !status.success(),
                _ => true,
            };
            if now - one.started > BACKOFF_MAX {
                one.backoff = Duration::from_millis(500);
            }
            one.again = again.then_some(now + one.backoff);
            one.backoff = (one.backoff * 2).min(BACKOFF_MAX);
            if let Some(readiness) = &mut one.readiness {
                readiness.ready = false;
            }
            let problem = format!(
                "container {} ended with {status}, see `karst lab logs`",
                one.container.name
            );
            self.report(|state| state.restarts += u32::from(again));
            return Err(problem);
        }
        if one.again.is_some_and(|at| at <= now) {
            return self.spawn(number, now);
        }
        self.probe(number, now)
    }

    fn spawn(&mut self, number: usize, now: Instant) -> Result<(), String> {
        let container = self.containers[number].container.clone();
        let child = self.plan.spawn(&container).map_err(|error| error.chain());
        let one = &mut self.containers[number];
        (one.started, one.next_probe) = (now, now);
        match child {
            Ok(child) => (one.child, one.again) = (Some(child), None),
            Err(problem) => {
                one.again = Some(now + one.backoff);
                return Err(problem);
            }
        }
        Ok(())
    }

    fn probe(&mut self, number: usize, now: Instant) -> Result<(), String> {
        let node = self.plan.network.node_netns.clone();
        let one = &mut self.containers[number];
        let (Some(child), Some(readiness)) = (&one.child, &mut one.readiness) else {
            return Ok(());
        };
        if one.next_probe > now {
            return Ok(());
        }
        let enter = enter_container(child.id(), self.plan.user(Some(&one.container)));
        network::inside(&node, || readiness.probe(&enter)).map_err(|error| error.chain())?;
        one.next_probe = now
            + if readiness.ready {
                readiness.period
            } else {
                FIRST_PROBES
            };
        Ok(())
    }

    fn report(&self, change: impl FnOnce(&mut PodState)) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let terminating = state.phase == Phase::Terminating;
            change(&mut state);
            if terminating {
                (state.phase, state.ready) = (Phase::Terminating, false);
            }
        }
        (self.changed)();
    }

    fn tear_down(&mut self) {
        let plan = &self.plan;
        let seconds = plan
            .pod
            .spec()
            .termination_grace_period_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let grace = seconds.map_or(GRACE, Duration::from_secs);
        for one in &mut self.containers {
            if let Some(child) = &mut one.child {
                mesh::terminate(child, grace);
            }
        }
        let mut problems = Vec::new();
        let mut note = |result: Result<(), LabError>| {
            if let Err(error) = result {
                problems.push(error.chain());
            }
        };
        note(cgroup::path(&plan.lab, &plan.cgroup()).and_then(|path| cgroup::destroy(&path)));
        if plan.mesh
            && let Err(error) = mesh::cni(&plan.lab, "DEL", &plan.pod, &plan.uid, &plan.network)
        {
            tracing::warn!(pod = plan.pod.name, "CNI DEL: {error}");
        }
        note(network::delete_pod(&plan.network));
        let dir = plan.dir();
        note(fs::remove_dir_all(&dir).map_err(LabError::io(format!("removing {}", dir.display()))));
        if !problems.is_empty() {
            tracing::error!(
                pod = plan.pod.name,
                "not everything could be removed: {}",
                problems.join("; ")
            );
        }
        (self.changed)();
    }
}

/// How to run a command in a container: its mounts, host name, network and user.
pub(crate) fn enter_container(pid: u32, (uid, gid): (u32, u32)) -> Vec<String> {
    let (pid, uid, gid) = (pid.to_string(), uid.to_string(), gid.to_string());
    [
        "nsenter", "--target", &pid, "--mount", "--uts", "--net", "--setuid", &uid, "--setgid",
        &gid, "--",
    ]
    .map(str::to_owned)
    .into()
}

impl PodPlan {
    fn dir(&self) -> PathBuf {
        self.lab.state_dir().join("pods").join(&self.uid)
    }

    fn etc(&self) -> PathBuf {
        self.dir().join("etc")
    }

    fn volumes(&self) -> PathBuf {
        self.dir().join("volumes")
    }

    /// The pod's cgroup, below the lab's.
    pub(crate) fn cgroup(&self) -> String {
        format!("{}/pods/pod{}", self.pod.node, self.uid)
    }

    /// Puts the join token of a waypoint where only its user reads it.
    fn write_join_token(&self) -> Result<(), LabError> {
        let Some(token) = &self.join_token else {
            return Ok(());
        };
        let path = self
            .volumes()
            .join(waypoint::RUN_VOLUME)
            .join(waypoint::JOIN_TOKEN);
        let (uid, gid) = self.user(None);
        let write = || {
            let mut file = File::options()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            fchown(&file, Some(uid), Some(gid))?;
            file.write_all(token.as_bytes())
        };
        write().map_err(LabError::io(format!("writing {}", path.display())))
    }

    fn resolv_conf(&self) -> String {
        let namespace = &self.pod.namespace;
        format!(
            "search {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\nnameserver {}\noptions ndots:5\n",
            self.cluster_dns
        )
    }

    fn hosts(&self) -> String {
        let name = self.hostname();
        let own = self.network.addresses();
        let own: String = own.iter().map(|ip| format!("{ip} {name}\n")).collect();
        format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}")
    }

    fn hostname(&self) -> &str {
        self.pod
            .spec()
            .hostname
            .as_deref()
            .unwrap_or(&self.pod.name)
    }

    /// User and group of a container, or of the pod.
    pub(crate) fn user(&self, container: Option<&Container>) -> (u32, u32) {
        let own = container.and_then(|container| container.security_context.as_ref());
        let of_pod = self.pod.spec().security_context.as_ref();
        let uid = own
            .and_then(|own| own.run_as_user)
            .or_else(|| of_pod?.run_as_user);
        let gid = own
            .and_then(|own| own.run_as_group)
            .or_else(|| of_pod?.run_as_group)
            .or(uid);
        let number = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        (number(uid), number(gid))
    }

    fn env(&self, container: &Container) -> BTreeMap<String, String> {
        let vars = container.env.iter().flatten();
        let value = |var: &EnvVarSource| Some(self.field(&var.field_ref.as_ref()?.field_path));
        vars.filter_map(|var| {
            let value = var
                .value
                .clone()
                .or_else(|| value(var.value_from.as_ref()?))?;
            Some((var.name.clone(), value))
        })
        .collect()
    }

    fn field(&self, path: &str) -> String {
        match path {
            "metadata.name" => self.pod.name.clone(),
            "metadata.namespace" => self.pod.namespace.clone(),
            "metadata.uid" => self.uid.clone(),
            "spec.nodeName" => self.pod.node.clone(),
            "spec.serviceAccountName" => self
                .pod
                .spec()
                .service_account_name
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            "status.podIP" => self.network.primary().to_string(),
            "status.hostIP" => self.host_ip.to_string(),
            _ => String::new(),
        }
    }

    fn spawn(&self, container: &Container) -> Result<Child, LabError> {
        let env = self.env(container);
        let (uid, gid) = self.user(Some(container));
        let words = container
            .command
            .iter()
            .flatten()
            .chain(container.args.iter().flatten());
        let init = Init {
            netns: netns_path(&self.network.netns),
            cgroup: cgroup::create(&self.lab, &format!("{}/{}", self.cgroup(), container.name))?,
            hostname: self.hostname().to_owned(),
            etc: self.etc(),
            bin: mesh::bin_dir()?,
            mounts: volumes::mounts(container, &self.volumes()),
            uid,
            gid,
            directory: container.working_dir.as_deref().unwrap_or("/").into(),
            command: words.map(|word| expand(word, &env)).collect(),
            env,
        };
        let spec = self.dir().join(format!("{}.json", container.name));
        let text = serde_json::to_vec(&init).unwrap_or_default();
        fs::write(&spec, text).map_err(LabError::io(format!("writing {}", spec.display())))?;
        self.spawn_init(container, &spec)
    }

    fn spawn_init(&self, container: &Container, spec: &Path) -> Result<Child, LabError> {
        let log = log_file(
            &self.lab,
            &self.pod.namespace,
            &self.pod.name,
            &container.name,
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(LabError::io(format!("opening {}", log.display())))?;
        // Programs that open /dev/stdout by name (nginx) need the file to be theirs.
        let (uid, gid) = self.user(Some(container));
        fchown(&log, Some(uid), Some(gid))
            .map_err(LabError::io("giving the log file to the pod's user"))?;
        let second = log
            .try_clone()
            .map_err(LabError::io("duplicating a log file"))?;
        let karst = mesh::bin_dir()?.join("karst");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "--propagation", "private", "--"])
            .arg(karst)
            .arg("lab-pod-init")
            .arg(spec);
        command.stdin(Stdio::null()).stdout(log).stderr(second);
        command.spawn().map_err(LabError::io(format!(
            "starting container {}",
            container.name
        )))
    }
}

/// Where a container's output goes.
pub(crate) fn log_file(lab: &LabName, namespace: &str, pod: &str, container: &str) -> PathBuf {
    lab.logs_dir()
        .join(format!("{namespace}.{pod}.{container}.log"))
}

/// `$(NAME)` becomes the variable's value and `$$` a dollar, as in a pod's command.
fn expand(word: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let variable = after
            .strip_prefix("$(")
            .and_then(|tail| tail.split_once(')'));
        (rest, _) = match (
            variable.and_then(|(name, tail)| Some((env.get(name)?, tail))),
            after.strip_prefix("$$"),
        ) {
            (Some((value, tail)), _) => (tail, out.push_str(value)),
            (None, Some(tail)) => (tail, out.push('$')),
            (None, None) => (&after[1..], out.push('$')),
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let env = [("A".to_owned(), "1".to_owned())].into();
        for (word, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$", "$"),
            ("a", "a"),
        ] {
            assert_eq!(expand(word, &env), expected);
        }
    }
}
