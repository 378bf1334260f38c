//! Namespaces that vanish at one exact step of the enrolment. The node tests let them vanish at any moment; here the
//! datapath is a seam that says which. Needs root for the namespaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::Command as Process,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use clap::Parser as _;
use karst_discovery::{State, Update};
use karst_ebpf_loader::{AttachError, AttachedPod, LoadError, MapError, PodAttachment};
use karst_hbone::server::peers::Peers;
use karst_identity::{CertificateSigner, SignError, SignedCertificate, Store, StoreConfig};
use karst_model::{
    enrollment::{CaptureOptions, EnrollMode, Generation, NodeWorkload, Plaintext},
    identity::SpiffeId,
};
use karst_netns::{Netns, NetnsCookie};
use karst_runtime::{drain, liveness::Liveness, supervise::Shutdown};
use karst_telemetry::{hub::Hub, metrics::Registry};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::*;
use crate::{
    capture::datapath::Datapath,
    config::Config,
    inbound::authorize::Authorizer,
    live::LiveConnections,
    metrics::Metrics,
    node::Node,
    outbound::{balancer::Balancer, waypoint::WaypointStreams},
};

/// A kernel side that captures by writing it down, and does what a test wants in the middle of it.
#[derive(Default)]
pub(crate) struct Kernel {
    counters: Vec<(&'static str, u64)>,
    attached: Mutex<BTreeSet<NetnsCookie>>,
    while_attaching: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Kernel {
    /// One that has counted something.
    pub(crate) fn counting(event: &'static str, count: u64) -> Self {
        Self {
            counters: vec![(event, count)],
            ..Self::default()
        }
    }

    fn holds(&self) -> BTreeSet<NetnsCookie> {
        self.attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Datapath for Kernel {
    fn attach(&self, pod: &PodAttachment<'_>) -> Result<(), AttachError> {
        let now = self.while_attaching.lock().unwrap().take();
        now.into_iter().for_each(|now| now());
        self.attached.lock().unwrap().insert(pod.cookie);
        Ok(())
    }
    fn prepare(&self) -> Result<bool, LoadError> {
        Ok(false)
    }
    fn release_outbound(&self, _: NetnsCookie) -> Result<(), AttachError> {
        Ok(())
    }
    fn release_inbound(&self, _: NetnsCookie) -> Result<(), AttachError> {
        Ok(())
    }
    fn detach(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        self.attached.lock().unwrap().remove(&cookie);
        Ok(())
    }
    fn attached(&self) -> Vec<AttachedPod> {
        Vec::new()
    }
    fn set_destinations(&self, _: &[IpAddr], _: &[IpAddr]) -> Result<usize, MapError> {
        Ok(0)
    }
    fn destinations(&self) -> Result<Vec<IpAddr>, MapError> {
        Ok(Vec::new())
    }
    fn take_orig_dst(&self, _: NetnsCookie, _: SocketAddr) -> Option<SocketAddr> {
        None
    }
    fn forget_left(&self) -> Result<usize, MapError> {
        Ok(0)
    }
    fn announce_dial(&self, _: u64, _: SocketAddr) -> Result<(), MapError> {
        Ok(())
    }
    fn set_kubelet_cgroups(&self, _: &[u64]) -> Result<(), LoadError> {
        Ok(())
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.clone()
    }
}

struct NoSigner;

#[async_trait]
impl CertificateSigner for NoSigner {
    async fn sign(
        &self,
        _: &SpiffeId,
        _: String,
        _: Duration,
    ) -> Result<SignedCertificate, SignError> {
        Err(SignError::Unavailable("none in this test".into()))
    }
}

/// A named namespace, as a container runtime makes them; gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("karst-seam-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    fn known(&self, uid: &str) -> KnownNamespace {
        let path = std::path::PathBuf::from(RUNTIME_NETNS_DIR).join(&self.0);
        KnownNamespace {
            pod_uid: uid.into(),
            cookie: Netns::open(&path).unwrap().cookie().unwrap(),
            path,
            addresses: vec!["10.9.9.9".parse().unwrap()],
            host_veth: None,
            tw_reuse_before: None,
            dns_port: None,
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone_already = Process::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn ip(args: &[&str]) {
    let ran = Process::new("ip").args(args).output().unwrap();
    assert!(ran.status.success(), "ip {args:?} (needs root): {ran:?}");
}

struct World {
    enroller: Enroller,
    captured: CapturedWatch,
    kernel: Arc<Kernel>,
    state: Arc<State>,
    _run_dir: tempfile::TempDir,
    _drain: drain::Drain,
}

impl World {
    /// None when the variable allows the skip.
    fn new() -> Option<Self> {
        if std::env::var_os("KARST_SKIP_ROOT_TESTS").is_some() {
            return None;
        }
        let run_dir = tempfile::tempdir().unwrap();
        let dir = run_dir.path().to_str().unwrap();
        let config = Config::parse_from(["karst-agent", "--node", "a", "--run-dir", dir]);
        let (state, kernel) = (Arc::new(State::new()), Arc::new(Kernel::default()));
        let netns = Netns::current().unwrap();
        let identities = Store::new(StoreConfig::default(), Arc::new(NoSigner)).unwrap();
        let mesh = Arc::new(Mesh {
            authorizer: Authorizer::new(state.clone()),
            live: Arc::new(LiveConnections::default()),
            balancer: Balancer::default(),
            waypoints: WaypointStreams::default(),
            peers: Peers::bounded(10),
            shutdown: Shutdown::new(),
            stopped: Shutdown::new(),
            config,
            node: Node {
                cookie: netns.cookie().unwrap(),
                netns,
                // No pod is found by its cgroup.
                cgroup_root: run_dir.path().to_owned(),
            },
            state: state.clone(),
            identities,
            datapath: kernel.clone(),
            metrics: Arc::new(Metrics::register(&Registry::new())),
            hub: Arc::new(Hub::new(&Registry::new())),
        });
        let (workers, _threads) = Workers::start(1, &mesh, &Liveness::default()).unwrap();
        let (trigger, watch) = drain::channel();
        let (enroller, captured) = Enroller::new(mesh, workers, watch);
        Some(Self {
            enroller,
            captured,
            kernel,
            state,
            _run_dir: run_dir,
            _drain: trigger,
        })
    }

    /// The runtime's ADD.
    fn added(&mut self, namespace: KnownNamespace) -> oneshot::Receiver<Result<(), EnrollError>> {
        let (done, answer) = oneshot::channel();
        self.enroller
            .handle_command(Command::Added { namespace, done });
        self.enroller.converge();
        answer
    }

    /// The runtime's DEL.
    fn deleted(&mut self, uid: &str) {
        let (done, mut answer) = oneshot::channel();
        self.enroller.handle_command(Command::Deleted {
            pod_uid: uid.into(),
            done,
        });
        self.enroller.converge();
        answer.try_recv().expect("DEL is answered at once");
    }

    /// The controller says that the pod enters the mesh.
    fn wanted(&mut self, uid: &str) {
        self.told(uid, Plaintext::Entering);
    }

    fn told(&mut self, uid: &str, plaintext: Plaintext) {
        self.state
            .apply([Update::NodeWorkload(Arc::new(NodeWorkload {
                pod_uid: uid.into(),
                name: uid.into(),
                namespace: "shop".into(),
                service_account: "a".into(),
                workload_uid: format!("c//Pod/shop/{uid}").as_str().into(),
                addresses: vec!["10.9.9.9".parse().unwrap()],
                mode: EnrollMode::Ambient,
                generation: Generation(1),
                plaintext,
                capture: CaptureOptions::default(),
                probe_ports: Vec::new(),
            }))]);
        self.enroller.converge();
    }

    /// What the controller is told of the pod: nothing, or whether plain connections still pass.
    fn reported(&mut self, uid: &str) -> Option<bool> {
        self.enroller.publish();
        let published = self.captured.borrow();
        let held = published.as_ref()?.get(&PodUid::from(uid))?;
        Some(held.capture.plaintext_open)
    }
}

#[tokio::test]
async fn a_namespace_that_goes_between_add_and_attach_is_not_captured() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (short, other) = (Namespace::new("short"), Namespace::new("other"));
    let mut answer = world.added(short.known("short"));
    let mut others = world.added(other.known("other"));
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Empty);
    drop(short);
    world.wanted("short");
    assert!(world.kernel.holds().is_empty());
    assert_eq!(
        answer.try_recv().unwrap_err(),
        TryRecvError::Empty,
        "the pod's start does not go on"
    );
    world.wanted("other");
    assert!(others.try_recv().unwrap().is_ok(), "nobody else notices");
    let pods = world.kernel.holds();
    assert_eq!(pods, BTreeSet::from([other.known("other").cookie]));
    world.deleted("short");
    assert_eq!(world.kernel.holds(), pods);
}

#[tokio::test]
async fn another_namespace_under_the_same_name_is_not_taken_for_the_pods() {
    let Some(mut world) = World::new() else {
        return;
    };
    let first = Namespace::new("reused");
    let known = first.known("pod");
    let mut answer = world.added(known.clone());
    ip(&["netns", "del", &first.0]);
    ip(&["netns", "add", &first.0]);
    world.wanted("pod");
    assert!(world.kernel.holds().is_empty());
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Empty);
    // The runtime tries again, and what it tells now holds.
    let again = first.known("pod");
    assert_ne!(again.cookie, known.cookie);
    let mut answer = world.added(again.clone());
    assert!(answer.try_recv().unwrap().is_ok());
    assert_eq!(world.kernel.holds(), BTreeSet::from([again.cookie]));
}

#[tokio::test]
async fn a_namespace_that_goes_while_it_is_attached_is_let_go() {
    let Some(mut world) = World::new() else {
        return;
    };
    let namespace = Namespace::new("midway");
    let known = namespace.known("pod");
    let path = known.path.clone();
    *world.kernel.while_attaching.lock().unwrap() = Some(Box::new(move || drop(namespace)));
    let mut answer = world.added(known.clone());
    world.wanted("pod");
    assert!(!path.exists(), "it went in the middle");
    assert!(answer.try_recv().unwrap().is_ok());
    assert_eq!(world.kernel.holds(), BTreeSet::from([known.cookie]));
    world.deleted("pod");
    assert!(world.kernel.holds().is_empty(), "nothing holds it any more");
    let published = world.captured.borrow_and_update().clone();
    assert!(published.is_none_or(|pods| pods.is_empty()));
}

#[tokio::test]
async fn a_pod_whose_guard_comes_after_its_policy_is_not_reported_as_lost() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.state.raise_origin(Origin::Controller);
    let namespace = Namespace::new("late");
    // It ran before: nobody waits for its capture.
    world.enroller.records.insert(namespace.known("late"));
    world.wanted("late");
    assert_eq!(world.reported("late"), Some(true), "it is entering");
    world.told("late", Plaintext::Enforced);
    let later = Instant::now() + Duration::from_secs(1);
    world.enroller.enforce_due(later);
    assert_eq!(
        world.reported("late"),
        Some(true),
        "captured, and on its way until its guard is there"
    );
    world.enroller.guard_due(later);
    assert_eq!(world.reported("late"), Some(false));
}
