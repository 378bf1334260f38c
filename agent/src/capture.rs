//! Enrolment: which pods of this node are captured, and making it so.
//!
//! ```text
//!   controller ── NodeWorkload ─┐
//!   runtime ──── CNI ADD/DEL ───┤
//!   cgroups ──── find ──────────┴─► desired (pure diff) ─► steps ─► datapath, listeners ─► report "captured"
//! ```
//!
//! One task owns all of it ([`Enroller`]); others send it [`Command`]s. Level-triggered: after every event the whole
//! plan is made anew, so whatever a crash or an error left half-done is repaired by the next event.

pub(crate) mod cni;
pub(crate) mod datapath;
pub(crate) mod desired;
pub(crate) mod find;
mod leaving;
pub(crate) mod pods;
mod time_wait;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use karst_discovery::{Change, Changed, state::Origin};
use karst_ebpf_loader::{AttachError, AttachedPod};
use karst_model::{
    enrollment::{EnrollMode, NodeWorkload, Plaintext, PodCapture},
    name::PodUid,
};
use karst_netns::{Netns, NetnsCookie};
use karst_runtime::drain;
use karst_telemetry::error_chain::Chain;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    capture::{
        desired::{Captured, Step, plan},
        find::Finder,
        leaving::{Due, LeavingPods},
        pods::{Guard, KnownNamespace, LocalPod, NamespaceRecords, ToServe, thread_of},
    },
    dns::{
        kept::KeptDns,
        pod::{PodDns, end_clients},
        server,
    },
    error::EnrollError,
    mesh::Mesh,
    workers::{Worker, Workers},
};

/// Commands that may wait; the CNI socket is the only other sender and waits for its answer.
pub(crate) const MAX_COMMANDS: usize = 64;

/// A running pod that is captured gets its guard this much later: a process that was let pass may have been put off
/// the processor before its SYN left.
const GUARD_DELAY: Duration = Duration::from_millis(250);

/// Longest time for which plain connections to a running pod that enters the mesh pass without policy, whatever the
/// controller says or does not say.
const ENTERING_MAX: Duration = Duration::from_secs(10);

/// A pod that has entered asks its policies about plain connections this much later: a peer that knows may have begun
/// one before, as [`GUARD_DELAY`] says.
const ENFORCE_DELAY: Duration = Duration::from_millis(250);

/// How long a restarted agent waits with its first report for what its predecessor captured.
const SURVIVORS_PATIENCE: Duration = Duration::from_secs(10);

/// Where container runtimes name the namespaces of pods.
const RUNTIME_NETNS_DIR: &str = "/run/netns";

/// How often a pod whose namespace was not found is searched for again.
const SEARCH_PERIOD: Duration = Duration::from_millis(500);

/// How often clients are forgotten that went before they were accepted: the time that they are kept for.
const FORGET_PERIOD: Duration = Duration::from_secs(15);

/// How often a step that failed is tried again.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What others ask of the [`Enroller`].
pub(crate) enum Command {
    /// A pod's namespace came into being. Answered when the pod is captured or known as not enrolled.
    Added {
        namespace: KnownNamespace,
        done: oneshot::Sender<Result<(), EnrollError>>,
    },
    /// A pod's namespace is going away.
    Deleted {
        pod_uid: PodUid,
        done: oneshot::Sender<()>,
    },
    /// Is the pod as it should be?
    Check {
        pod_uid: PodUid,
        done: oneshot::Sender<Result<(), EnrollError>>,
    },
}

/// The pods that are captured now, by UID: what is reported to the controller.
pub(crate) type CapturedPods = BTreeMap<PodUid, Held>;

/// A captured pod, and what is reported of it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) pod: Arc<LocalPod>,
    pub(crate) capture: PodCapture,
}

/// Follows [`CapturedPods`]. None until everything that an earlier process captured is held again: a report before that
/// would tell the mesh that pods left it, and their peers would dial them in plain text.
pub(crate) type CapturedWatch = watch::Receiver<Option<CapturedPods>>;

/// Owns the capture of this node's pods.
pub(crate) struct Enroller {
    mesh: Arc<Mesh>,
    workers: Workers,
    records: NamespaceRecords,
    captured: BTreeMap<PodUid, Active>,
    leaving: LeavingPods<Arc<LocalPod>>,
    /// What answers the queries of pods that are or were captured.
    dns: KeptDns,
    waiting: Vec<(PodUid, oneshot::Sender<Result<(), EnrollError>>)>,
    last_failure: BTreeMap<PodUid, String>,
    finder: Finder,
    /// Pods that were searched for and not found, and when to search again.
    sought: (BTreeSet<PodUid>, Instant),
    /// Nothing of an earlier process is left in the kernel that this one does not hold.
    leftovers_released: bool,
    /// Namespaces that an earlier process captured: they are guarded already.
    survivors: BTreeSet<NetnsCookie>,
    started: Instant,
    published: watch::Sender<Option<CapturedPods>>,
    drain: drain::Watch,
}

struct Active {
    seen: Captured,
    pod: Arc<LocalPod>,
    /// When the guard is due; a pod that has it has none.
    guard_due: Option<Instant>,
    /// When policy begins to decide plain connections, which pass until then.
    enforce_due: Option<Instant>,
}

impl Active {
    /// A pod that ran is told of before its guard is there, as one that is still on its way. It stays told of when
    /// policy holds before the guard does: not to name it would tell the mesh that it was lost, and its peers would dial
    /// it plainly.
    fn held(&self) -> Held {
        Held {
            pod: self.pod.clone(),
            capture: PodCapture {
                generation: self.seen.as_desired.generation,
                plaintext_open: self.pod.is_plaintext_open() || self.guard_due.is_some(),
            },
        }
    }
}

impl Enroller {
    pub(crate) fn new(
        mesh: Arc<Mesh>,
        workers: Workers,
        drain: drain::Watch,
    ) -> (Self, CapturedWatch) {
        let records = NamespaceRecords::load(&mesh.config.run_dir);
        let (published, captured) = watch::channel(None);
        let survivors = mesh.datapath.attached();
        let finder = Finder {
            cgroup_root: mesh.node.cgroup_root.clone(),
            host: mesh.node.cookie,
            netns_dir: RUNTIME_NETNS_DIR.into(),
        };
        let enroller = Self {
            finder,
            sought: (BTreeSet::new(), Instant::now()),
            mesh,
            workers,
            records,
            captured: BTreeMap::new(),
            leaving: LeavingPods::default(),
            dns: KeptDns::default(),
            waiting: Vec::new(),
            last_failure: BTreeMap::new(),
            leftovers_released: false,
            survivors: survivors.into_iter().map(|pod| pod.cookie).collect(),
            started: Instant::now(),
            published,
            drain,
        };
        (enroller, captured)
    }

    /// Runs until shutdown. Captured pods stay captured: their programs and maps are pinned.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut changes = self.mesh.state.changes();
        let mut origin = self.mesh.state.origin();
        let mut retry = tokio::time::interval(RETRY_PERIOD);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut forget = tokio::time::interval(FORGET_PERIOD);
        forget.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        apart(|| self.converge());
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => apart(|| self.handle_command(command)),
                    None => return,
                },
                changed = changes.next() => match changed {
                    Some(changed) if concerns_pods(&changed) => {}
                    Some(_) => continue,
                    None => return,
                },
                Ok(()) = origin.changed() => {}
                _ = retry.tick() => self.forget_dead(),
                _ = forget.tick() => self.forget_left(),
                () = self.next_due() => {}
                () = self.mesh.shutdown.cancelled() => return,
            }
            let idle = commands.is_empty();
            apart(|| {
                self.converge();
                if idle {
                    self.prepare();
                }
            });
        }
    }

    /// Makes ready for pods to come, while nobody waits; at most one for each event.
    fn prepare(&self) {
        if let Err(error) = self.mesh.datapath.prepare() {
            tracing::warn!(error = %Chain(&error), "cannot make ready for the next pod: it will take longer");
        }
    }

    fn forget_left(&self) {
        match self.mesh.datapath.forget_left() {
            Ok(0) => {}
            Ok(clients) => {
                tracing::debug!(
                    clients,
                    "connections ended at the client without having been accepted"
                );
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot forget clients that went before they were accepted");
            }
        }
    }

    fn forget_dead(&mut self) {
        let (state, captured) = (&self.mesh.state, &self.captured);
        self.records.forget_dead(|pod_uid| {
            captured.contains_key(pod_uid) || state.node_workload(pod_uid).is_some()
        });
        let (records, leaving) = (&self.records, &self.leaving);
        self.dns.end_unless(|dns| {
            captured.contains_key(&dns.pod_uid)
                || leaving.contains(&dns.pod_uid)
                || records
                    .get(&dns.pod_uid)
                    .is_some_and(|known| known.cookie == dns.cookie)
        });
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Added { namespace, done } => {
                let pod_uid = namespace.pod_uid.clone();
                self.records.insert(namespace);
                self.waiting.push((pod_uid, done));
            }
            Command::Deleted { pod_uid, done } => {
                self.records.remove(&pod_uid);
                self.release(&pod_uid, "the pod is gone");
                if let Some(pod) = self.leaving.remove(&pod_uid) {
                    self.let_go(&pod);
                }
                self.dns.end(&pod_uid);
                let _ = done.send(());
            }
            Command::Check { pod_uid, done } => {
                let _ = done.send(
                    self.status(&pod_uid)
                        .unwrap_or(Err(EnrollError::NotYetCaptured { pod_uid })),
                );
            }
        }
    }

    /// Makes the plan and carries it out; answers those who waited for a pod that is now as it should be.
    fn converge(&mut self) {
        self.advance_leaving(Instant::now());
        self.guard_due(Instant::now());
        self.enforce_due(Instant::now());
        let desired = self.desired();
        let mut steps = self.plan(&desired);
        if self.search(&desired, &steps) {
            steps = self.plan(&desired);
        }
        let mut pending = 0;
        for step in steps {
            match step {
                Step::Attach { pod, .. } => pending += i64::from(!self.attach(pod)),
                Step::Note { pod } => self.note(pod),
                Step::Detach { pod_uid, .. } => self.release(&pod_uid, "it left the mesh"),
                Step::FindNamespace { .. } => pending += 1,
            }
        }
        self.answer_released(&desired);
        self.release_leftovers(&desired);
        let counted = |pods: usize| i64::try_from(pods).unwrap_or(i64::MAX);
        let metrics = &self.mesh.metrics;
        metrics.leaving_pods.set(counted(self.leaving.len()));
        metrics.captured_pods.set(counted(self.captured.len()));
        metrics.pending_pods.set(pending);
        self.answer_waiting();
        self.records.tell_plugin(&desired);
        self.publish();
    }

    fn plan(&self, desired: &BTreeMap<PodUid, NodeWorkload>) -> Vec<Step> {
        let captured = self
            .captured
            .iter()
            .map(|(uid, active)| (uid.clone(), active.seen.clone()))
            .collect();
        plan(desired, &self.records.cookies(), &captured)
    }

    /// Looks for the namespaces of pods that nothing has told. True if one was found.
    fn search(&mut self, desired: &BTreeMap<PodUid, NodeWorkload>, steps: &[Step]) -> bool {
        let wanted = |step: &Step| match step {
            Step::FindNamespace { pod_uid } => desired.get(pod_uid),
            Step::Attach { .. } | Step::Detach { .. } | Step::Note { .. } => None,
        };
        let wanted: Vec<&NodeWorkload> = steps.iter().filter_map(wanted).collect();
        if wanted.is_empty() {
            // Or the time of a next search would be due for ever.
            self.sought.0.clear();
            return false;
        }
        let (sought, again) = &self.sought;
        let all_sought = wanted.iter().all(|pod| sought.contains(&pod.pod_uid));
        if all_sought && *again > Instant::now() {
            return false;
        }
        let mut missing = BTreeSet::new();
        let mut any = false;
        for (pod_uid, found) in self.finder.find(&wanted) {
            match found {
                Ok(namespace) => {
                    any = true;
                    tracing::debug!(pod = %pod_uid, path = %namespace.path.display(), "found the pod's namespace by its cgroup");
                    self.records.insert(namespace);
                }
                Err(why) => {
                    tracing::debug!(pod = %pod_uid, %why, "the pod's namespace is not found yet");
                    missing.insert(pod_uid);
                }
            }
        }
        self.sought = (missing, Instant::now() + SEARCH_PERIOD);
        any
    }

    /// The controller's view, with the addresses that the container runtime told where the controller has none yet.
    fn desired(&self) -> BTreeMap<PodUid, NodeWorkload> {
        let mut desired: BTreeMap<_, _> = self
            .mesh
            .state
            .node_workloads()
            .into_iter()
            .map(|pod| (pod.pod_uid.clone(), (*pod).clone()))
            .collect();
        for pod in desired.values_mut() {
            if let Some(namespace) = self.records.get(&pod.pod_uid)
                && !namespace.addresses.is_empty()
            {
                pod.addresses.clone_from(&namespace.addresses);
            }
        }
        desired
    }

    fn attach(&mut self, desired: NodeWorkload) -> bool {
        let pod_uid = desired.pod_uid.clone();
        let Some(namespace) = self.records.get(&pod_uid) else {
            return false;
        };
        let current = self.captured.get(&pod_uid).map(|active| active.pod.clone());
        let returning = self.leaving.remove(&pod_uid);
        let (same, other) = match returning {
            Some(pod) if pod.cookie == namespace.cookie => (Some(pod), None),
            other => (None, other),
        };
        if let Some(other) = other {
            self.let_go(&other);
        }
        let is_new = current.is_none();
        let previous = current.or(same);
        // A pod that its runtime is just starting has no process yet.
        let starts = self.waiting.iter().any(|(uid, _)| *uid == pod_uid);
        let guarded = self.survivors.contains(&namespace.cookie);
        let guard = match (starts && is_new, is_new && !guarded) {
            (true, _) => Guard::AtStart,
            (false, true) => Guard::Later,
            (false, false) => Guard::Now,
        };
        let guard_due = (guard == Guard::Later).then(|| Instant::now() + GUARD_DELAY);
        let enforce_due = match self.captured.get(&pod_uid) {
            Some(active) => active.enforce_due,
            // It ran and took plain connections until now.
            None if guard == Guard::Later && desired.plaintext == Plaintext::Entering => {
                Some(Instant::now() + ENTERING_MAX)
            }
            None => None,
        };
        let captured = LocalPod::capture(
            &self.mesh,
            &desired,
            namespace,
            previous.as_deref(),
            self.dns.get(&pod_uid),
            guard,
        );
        let served = captured.and_then(|(pod, fresh)| {
            if is_new {
                pod.open_plaintext(enforce_due.is_some());
            }
            self.serve(pod, fresh)
        });
        match served {
            Ok(pod) => {
                if is_new {
                    self.dns.keep(pod.dns.clone());
                    self.note_settings(&pod);
                    if let Err(error) = self.mesh.identities.require(&pod.identity) {
                        tracing::error!(pod = %pod_uid, error = %Chain(&error), "cannot get a certificate for the pod");
                    }
                    tracing::info!(pod = %format_args!("{}/{}", desired.namespace, desired.name), "captured");
                }
                self.last_failure.remove(&pod_uid);
                let seen = Captured {
                    cookie: pod.cookie,
                    as_desired: desired.clone(),
                };
                let active = Active {
                    seen,
                    pod,
                    guard_due,
                    enforce_due,
                };
                self.captured.insert(pod_uid, active);
                self.note(desired);
                true
            }
            Err(error) => {
                if let Some(returning) = previous.filter(|_| is_new) {
                    self.let_go(&returning);
                }
                self.note_failure(&pod_uid, &error);
                if error.is_stale_namespace() {
                    // Searched for anew; what the runtime tells later wins.
                    self.records.remove(&pod_uid);
                }
                false
            }
        }
    }

    /// Takes over what the controller says about a pod that is captured as it should be.
    fn note(&mut self, desired: NodeWorkload) {
        let Some(active) = self.captured.get_mut(&desired.pod_uid) else {
            return;
        };
        let soon = Instant::now() + ENFORCE_DELAY;
        match desired.plaintext {
            Plaintext::Enforced if active.pod.is_plaintext_open() => {
                let due = active.enforce_due.get_or_insert(soon);
                *due = soon.min(*due);
            }
            Plaintext::Enforced => {}
            // What is open stays so for a while, what is not is not opened.
            Plaintext::Entering if active.pod.is_plaintext_open() => {
                active
                    .enforce_due
                    .get_or_insert_with(|| Instant::now() + ENTERING_MAX);
            }
            Plaintext::Entering => {}
            Plaintext::Leaving => {
                active.enforce_due = None;
                active.pod.open_plaintext(true);
            }
        }
        active.seen.as_desired = desired;
    }

    /// Lets policy decide about plain connections where that is due.
    fn enforce_due(&mut self, now: Instant) {
        for active in self.captured.values_mut() {
            if active.enforce_due.is_some_and(|due| due <= now) {
                active.enforce_due = None;
                active.pod.open_plaintext(false);
            }
        }
    }

    /// Guards the pods that have run captured for long enough.
    fn guard_due(&mut self, now: Instant) {
        let due = |active: &Active| active.guard_due.is_some_and(|due| due <= now);
        let due: Vec<_> = self
            .captured
            .values()
            .filter(|active| due(active))
            .map(|active| active.seen.as_desired.clone())
            .collect();
        for desired in due {
            let pod_uid = desired.pod_uid.clone();
            if !self.attach(desired)
                && let Some(active) = self.captured.get_mut(&pod_uid)
            {
                active.guard_due = Some(now + RETRY_PERIOD);
            }
        }
    }

    /// Returns when the first step of a pod is due; never while none is.
    async fn next_due(&self) {
        let leaving = self.leaving.next_due().into_iter();
        let guards = self.captured.values().filter_map(|active| active.guard_due);
        let enforced = self
            .captured
            .values()
            .filter_map(|active| active.enforce_due);
        match leaving.chain(guards).chain(enforced).min() {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Logs a failure once, not at every retry.
    fn note_failure(&mut self, pod_uid: &PodUid, error: &EnrollError) {
        let text = Chain(error).to_string();
        if self.last_failure.get(pod_uid) != Some(&text) {
            tracing::warn!(pod = %pod_uid, error = %text, "cannot capture the pod yet, will try again");
            self.last_failure.insert(pod_uid.clone(), text);
        }
    }

    /// Allows reuse of ports, without which the pod works too, up to some hundred new connections a second; notes for the
    /// next agent what was before, and where this one answers DNS.
    fn note_settings(&mut self, pod: &LocalPod) {
        let reuse_before = time_wait::allow_reuse(&pod.netns).unwrap_or_else(|error| {
            tracing::warn!(pod = %pod.pod_uid, %error, "cannot allow reuse of ports in TIME_WAIT");
            None
        });
        let dns_port = Some(pod.dns.port());
        let known = self.records.get(&pod.pod_uid);
        if reuse_before.is_none() && known.is_some_and(|known| known.dns_port == dns_port) {
            return;
        }
        self.records.update(&pod.pod_uid, |known| {
            known.dns_port = dns_port;
            if reuse_before.is_some() {
                known.tw_reuse_before = reuse_before;
            }
        });
    }

    /// Puts the pod's own setting back; a namespace that is gone needs nothing.
    fn restore_reuse(&mut self, pod: &LocalPod) {
        let before = self
            .records
            .get(&pod.pod_uid)
            .and_then(|known| known.tw_reuse_before.clone());
        let Some(before) = before else { return };
        match time_wait::restore(&pod.netns, &before) {
            Ok(()) => self
                .records
                .update(&pod.pod_uid, |known| known.tw_reuse_before = None),
            Err(error) => {
                tracing::warn!(pod = %pod.pod_uid, %error, "cannot restore reuse of ports in TIME_WAIT")
            }
        }
    }

    fn release(&mut self, pod_uid: &PodUid, why: &str) {
        let Some(Active { pod, .. }) = self.captured.remove(pod_uid) else {
            return;
        };
        pod.open_plaintext(true);
        pod.dns.leave();
        note_detached(&pod, self.mesh.datapath.release_outbound(pod.cookie));
        tracing::info!(pod = %format_args!("{}/{}", pod.namespace, pod.name), why, "released");
        self.survivors.remove(&pod.cookie);
        self.restore_reuse(&pod);
        self.mesh.identities.release(&pod.identity);
        self.leaving.insert(Instant::now(), pod_uid.clone(), pod);
    }

    /// Takes the next step with every pod that is due.
    fn advance_leaving(&mut self, now: Instant) {
        for (pod, due) in self.leaving.take_due(now) {
            match due {
                Due::ReleaseInbound => {
                    note_detached(&pod, self.mesh.datapath.release_inbound(pod.cookie));
                }
                Due::LetGo => self.let_go(&pod),
            }
        }
    }

    /// Has fresh listeners served. A pod whose connections nobody would take is let go again.
    fn serve(&self, pod: LocalPod, fresh: ToServe) -> Result<Arc<LocalPod>, EnrollError> {
        let pod = Arc::new(pod);
        if let Err(error) = fresh.serve(&self.workers, &self.mesh, &pod, &self.drain) {
            self.let_go(&pod);
            return Err(error);
        }
        Ok(pod)
    }

    /// The last step: nothing of the pod's capture is left, but for who asks us by a socket that was connected before.
    fn let_go(&self, pod: &LocalPod) {
        note_detached(pod, self.mesh.datapath.detach(pod.cookie));
        pod.dns.leave();
        pod.stop.cancel();
    }

    /// Answers pods that left the mesh while an earlier agent ran, where that one did.
    fn answer_released(&mut self, desired: &BTreeMap<PodUid, NodeWorkload>) {
        let is_left = |pod: &&NodeWorkload| {
            pod.mode == EnrollMode::Off && self.dns.get(&pod.pod_uid).is_none()
        };
        let left = desired.values().filter(is_left).filter_map(|pod| {
            let known = self.records.get(&pod.pod_uid)?;
            Some((pod, known.path.clone(), known.dns_port?))
        });
        for (pod, path, port) in left.collect::<Vec<_>>() {
            match Netns::open(&path).and_then(|netns| PodDns::open(pod, &netns, Some(port))) {
                Ok(dns) if dns.port() == port => self.answer(Arc::new(dns)),
                // It is gone, or the port is taken, and its clients were told so.
                outcome => {
                    let error = outcome.err();
                    tracing::debug!(pod = %pod.pod_uid, ?error, "nobody answers DNS for the pod, that has left the mesh, any more");
                    self.records
                        .update(&pod.pod_uid, |known| known.dns_port = None);
                }
            }
        }
    }

    /// Has a socket served that no capture stands behind. Where no thread takes it, the next event tries again.
    fn answer(&mut self, dns: Arc<PodDns>) {
        let (served, drain) = (dns.clone(), self.drain.clone());
        let start = move |worker: Rc<Worker>| server::spawn_udp(&worker.mesh, &served, &drain);
        match self.workers.run_on(thread_of(dns.cookie), start) {
            true => self.dns.keep(dns),
            false => drop(self.mesh.metrics.worker_queue_full.inc()),
        }
    }

    /// Releases what an earlier process captured and nobody wants any more. Only once the desired state is known.
    fn release_leftovers(&mut self, desired: &BTreeMap<PodUid, NodeWorkload>) {
        // What an earlier run left on disk may be older than what it captured last.
        if self.leftovers_released || *self.mesh.state.origin().borrow() != Origin::Controller {
            return;
        }
        let is_wanted = |pod: &NodeWorkload| pod.mode == EnrollMode::Ambient;
        let awaited = |left: &AttachedPod| {
            let mut records = self.records.iter();
            let by_record = records.any(|known| {
                known.cookie == left.cookie && desired.get(&known.pod_uid).is_some_and(is_wanted)
            });
            // Its namespace may not be found again yet.
            let mut unfound = desired
                .values()
                .filter(|pod| is_wanted(pod) && self.records.get(&pod.pod_uid).is_none());
            by_record
                || unfound.any(|pod| pod.addresses.iter().any(|it| left.addresses.contains(it)))
        };
        let mut unsettled = false;
        for left in self.mesh.datapath.attached() {
            if self
                .captured
                .values()
                .map(|active| &active.pod)
                .chain(self.leaving.pods())
                .any(|pod| pod.cookie == left.cookie)
            {
                continue;
            }
            if awaited(&left) {
                unsettled = true;
                continue;
            }
            tracing::info!(netns = %left.cookie, "releasing a namespace that an earlier agent captured");
            if let Err(error) = self.mesh.datapath.detach(left.cookie) {
                unsettled = true;
                tracing::error!(netns = %left.cookie, error = %Chain(&error), "cannot release the namespace");
            }
        }
        self.leftovers_released = !unsettled;
    }

    /// Ok or an error when the pod's fate is known, None while the controller has not told it.
    fn status(&self, pod_uid: &PodUid) -> Option<Result<(), EnrollError>> {
        if self
            .captured
            .get(pod_uid)
            .is_some_and(|active| active.guard_due.is_none())
        {
            return Some(Ok(()));
        }
        let desired = self.mesh.state.node_workload(pod_uid)?;
        match desired.mode {
            EnrollMode::Off => Some(Ok(())),
            EnrollMode::Ambient => None,
        }
    }

    fn answer_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (pod_uid, done) in waiting {
            match self.status(&pod_uid) {
                Some(answer) => drop(done.send(answer)),
                None if done.is_closed() => {}
                None => self.waiting.push((pod_uid, done)),
            }
        }
    }

    fn publish(&self) {
        // One namespace that cannot be captured again must not keep the others unreported for ever.
        let waited = self.started.elapsed() > SURVIVORS_PATIENCE;
        let known = *self.mesh.state.origin().borrow() != Origin::Empty;
        if !(known && (self.leftovers_released || waited)) {
            return;
        }
        let pods: CapturedPods = self
            .captured
            .iter()
            .map(|(uid, active)| (uid.clone(), active.held()))
            .collect();
        self.published.send_if_modified(|old| {
            let same = old.as_ref().is_some_and(|old| {
                let mut pairs = old.iter().zip(&pods);
                let alike =
                    |a: &Held, b: &Held| Arc::ptr_eq(&a.pod, &b.pod) && a.capture == b.capture;
                old.len() == pods.len() && pairs.all(|((a, x), (b, y))| a == b && alike(x, y))
            });
            if !same {
                *old = Some(pods);
            }
            !same
        });
    }
}

/// Puts back the settings of pods that an agent changed, when everything of Karst is removed.
pub(crate) fn put_back_settings(run_dir: &Path) {
    for known in NamespaceRecords::load(run_dir).iter() {
        let Some(before) = &known.tw_reuse_before else {
            continue;
        };
        let restored = Netns::open(&known.path).and_then(|it| time_wait::restore(&it, before));
        if let Err(error) = restored {
            tracing::warn!(pod = %known.pod_uid, %error, "cannot restore reuse of ports in TIME_WAIT");
        }
    }
}

/// Runs what waits for the kernel, tenths of a second for each pod on a busy node, while the runtime's other tasks go on: its
/// one thread answers the kubelet's probes too. A runtime of a test has nobody else to take them.
fn apart<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Has clients of pods connect their DNS sockets anew, when everything of Karst is gone from the kernel.
pub(crate) fn end_dns_clients(run_dir: &Path) {
    for known in NamespaceRecords::load(run_dir).iter() {
        if let (Some(port), Ok(netns)) = (known.dns_port, Netns::open(&known.path)) {
            end_clients(&known.pod_uid, &netns, port);
        }
    }
}

fn note_detached(pod: &LocalPod, outcome: Result<(), AttachError>) {
    if let Err(error) = outcome {
        tracing::error!(pod = %pod.pod_uid, error = %Chain(&error), "cannot release the pod");
    }
}

fn concerns_pods(changed: &Changed) -> bool {
    match changed {
        Changed::Everything => true,
        Changed::Some(batch) => batch
            .iter()
            .any(|change| matches!(change, Change::NodeWorkload(_))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
