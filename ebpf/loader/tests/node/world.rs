//! One node out of namespaces: a bridge, two pods on it, a client that no agent knows.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use karst_ebpf_loader::{
    AttachError, Capture, HostLink, Kernel, KernelConfig, Listeners, MapSizes, PodAttachment,
    Processes,
};
use karst_netns::{Netns, cgroup2_root, own_cgroup_id, steered_listener, tcp_listener, udp_socket};
use socket2::SockRef;

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(5);
/// A cgroup id that no process has.
const NOBODY: u64 = u64::MAX;

/// The node's own address on the bridge.
pub(crate) const NODE: &str = "10.77.0.254";

pub(crate) struct World {
    name: String,
    pub(crate) node: Netns,
    pub(crate) pods: [Pod; 2],
    /// A namespace on the bridge that is not enrolled.
    pub(crate) outside: Netns,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) pin_dir: PathBuf,
    /// For maps that are not made yet.
    pub(crate) sizes: MapSizes,
}

pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    pub(crate) host_ifindex: u32,
    pub(crate) sockets: Sockets,
}

/// The agent's sockets in a pod; each can be closed by taking it.
pub(crate) struct Sockets {
    pub(crate) hbone: Option<TcpListener>,
    pub(crate) inbound: Option<TcpListener>,
    pub(crate) outbound: Option<TcpListener>,
    pub(crate) dns_udp: Option<UdpSocket>,
    pub(crate) dns_tcp: Option<TcpListener>,
}

impl Sockets {
    pub(crate) fn open(netns: &Netns) -> Self {
        let steered = || Some(patient(steered_listener(netns).unwrap()));
        let dns_udp = udp_socket(netns, 0).unwrap();
        dns_udp.set_nonblocking(false).unwrap();
        dns_udp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            hbone: steered(),
            inbound: steered(),
            outbound: steered(),
            dns_udp: Some(dns_udp),
            dns_tcp: Some(patient(tcp_listener(netns, 0).unwrap())),
        }
    }
}

impl World {
    /// A loaded agent with both pods enrolled; `None` when the skip is allowed.
    pub(crate) fn enrolled() -> Option<Self> {
        let mut world = Self::bare()?;
        world.load();
        world.attach(0, &Capture::default(), &[]);
        world.attach(1, &Capture::default(), &[]);
        Some(world)
    }

    /// Namespaces only.
    pub(crate) fn bare() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("KARST_SKIP_ROOT_TESTS").is_some() {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kt-a-{}-{number}", std::process::id());
        let node = netns(&name, "node");
        ip(&format!("-n {name}-node link add br0 type bridge"));
        ip(&format!("-n {name}-node addr add {NODE}/24 dev br0"));
        ip(&format!(
            "-n {name}-node addr add fd77::fe/64 dev br0 nodad"
        ));
        ip(&format!("-n {name}-node link set br0 up"));
        let pods = [1, 2].map(|host| Pod::new(&name, &format!("p{host}"), host));
        let outside = Pod::new(&name, "out", 9).netns;
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/{name}"));
        Some(Self {
            name,
            node,
            pods,
            outside,
            kernel: None,
            pin_dir,
            sizes: MapSizes::default(),
        })
    }

    /// Starts the agent, or starts it again: this process's own sockets are pods' or strangers'.
    pub(crate) fn load(&mut self) {
        self.load_as(NOBODY, None);
    }

    /// Starts an agent that takes over from another, which still runs.
    pub(crate) fn load_after(&mut self, earlier: u64) {
        self.load_as(NOBODY, Some(earlier));
    }

    fn load_as(&mut self, agent_cgroup_id: u64, earlier_agent_cgroup_id: Option<u64>) {
        self.kernel = None;
        let cfg = KernelConfig {
            pin_dir: self.pin_dir.clone(),
            cgroup_root: cgroup2_root().unwrap(),
            agent_cgroup_id,
            earlier_agent_cgroup_id,
            host_netns_cookie: self.node.cookie().unwrap().0,
            kubelet_cgroup_ids: Vec::new(),
            sizes: self.sizes,
        };
        let loaded = self.node.run(|| Kernel::load(&cfg)).unwrap();
        self.kernel = Some(loaded.unwrap_or_else(|error| panic!("{}", chain(&error))));
    }

    /// Runs `f` while this process counts as the agent.
    pub(crate) fn as_agent<T>(&mut self, f: impl FnOnce(&Self) -> T) -> T {
        self.load_as(own_cgroup_id().unwrap(), None);
        let result = f(self);
        self.load();
        result
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().unwrap()
    }

    pub(crate) fn attach(&self, pod: usize, capture: &Capture, probe_ports: &[u16]) {
        let attached = self.try_attach(pod, capture, probe_ports);
        attached.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    pub(crate) fn try_attach(
        &self,
        pod: usize,
        capture: &Capture,
        probe_ports: &[u16],
    ) -> Result<(), AttachError> {
        let pod = &self.pods[pod];
        let sockets = &pod.sockets;
        self.kernel().attach_pod(&PodAttachment {
            cookie: pod.netns.cookie().unwrap(),
            netns: pod.netns.as_fd(),
            addresses: &[pod.v4, pod.v6],
            host_veth: Some(HostLink {
                netns: self.node.as_fd(),
                ifindex: pod.host_ifindex,
            }),
            processes: Processes::MayRun,
            capture,
            probe_ports,
            listeners: Listeners {
                hbone: sockets.hbone.as_ref().unwrap().as_fd(),
                inbound: sockets.inbound.as_ref().unwrap().as_fd(),
                outbound: sockets.outbound.as_ref().unwrap().as_fd(),
                dns_udp: sockets.dns_udp.as_ref().map(AsFd::as_fd),
                dns_tcp: sockets.dns_tcp.as_ref().map(AsFd::as_fd),
            },
        })
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counters = self.kernel().counters();
        counters
            .into_iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
    }

    /// What `ip` shows of the node's interfaces, for comparison.
    pub(crate) fn node_state(&self) -> String {
        let node = format!("{}-node", self.name);
        let shown = ["link", "qdisc", "route"].map(|what| match what {
            "qdisc" => output("tc", &format!("-n {node} qdisc show")),
            _ => output("ip", &format!("-n {node} {what} show")),
        });
        shown.concat()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kernel = None;
        let removed = self.node.run(|| Kernel::remove(&self.pin_dir));
        for part in ["node", "p1", "p2", "out"] {
            ip(&format!("netns del {}-{part}", self.name));
        }
        if !std::thread::panicking() {
            removed.unwrap().unwrap();
        }
    }
}

impl Pod {
    fn new(name: &str, part: &str, host: u8) -> Self {
        let ns = netns(name, part);
        let (v4, v6) = (format!("10.77.0.{host}"), format!("fd77::{host}"));
        ip(&format!(
            "-n {name}-node link add {part} type veth peer name eth0 netns {name}-{part}"
        ));
        ip(&format!("-n {name}-node link set {part} master br0 up"));
        ip(&format!("-n {name}-{part} addr add {v4}/24 dev eth0"));
        ip(&format!("-n {name}-{part} addr add {v6}/64 dev eth0 nodad"));
        ip(&format!("-n {name}-{part} link set eth0 up"));
        ip(&format!("-n {name}-{part} route add default via {NODE}"));
        let index = output("ip", &format!("-n {name}-node -o link show {part}"));
        Self {
            sockets: Sockets::open(&ns),
            netns: ns,
            v4: v4.parse().unwrap(),
            v6: v6.parse().unwrap(),
            host_ifindex: index.split(':').next().unwrap().parse().unwrap(),
        }
    }

    /// An application's listener in the pod.
    pub(crate) fn app(&self, addr: &str) -> TcpListener {
        patient(self.netns.run(|| TcpListener::bind(addr)).unwrap().unwrap())
    }
}

fn netns(name: &str, part: &str) -> Netns {
    ip(&format!("netns add {name}-{part}"));
    ip(&format!("-n {name}-{part} link set lo up"));
    Netns::open(format!("/var/run/netns/{name}-{part}")).unwrap()
}

/// Dials from inside a namespace.
pub(crate) fn connect(netns: &Netns, addr: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let addr = addr.into();
    netns
        .run(|| TcpStream::connect_timeout(&addr, PATIENCE))
        .unwrap()
}

/// The error of a connect that must fail.
pub(crate) fn refusal(netns: &Netns, addr: impl Into<SocketAddr>) -> io::ErrorKind {
    connect(netns, addr).expect_err("must not connect").kind()
}

/// Accepts within the patience of a test.
pub(crate) fn accept(listener: &Option<TcpListener>) -> (TcpStream, SocketAddr) {
    listener
        .as_ref()
        .unwrap()
        .accept()
        .expect("a connection arrives")
}

/// Whether nothing waits to be accepted.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let idle = listener.accept().is_err();
    listener.set_nonblocking(false).unwrap();
    idle
}

/// Waits for a condition that other threads or the kernel bring about.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not seen: {what}");
        std::thread::yield_now();
    }
}

/// Held while a child is between fork and exec: until then it shares every open socket.
static FORKING: Mutex<()> = Mutex::new(());

/// Closes a socket for good, even where a child that is just being forked still holds it.
pub(crate) fn close<T: AsFd>(socket: &mut Option<T>) {
    let _nobody_forks = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    let socket = socket.take().unwrap();
    // A UDP socket that is not connected cannot be shut down.
    let _udp = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
}

fn patient(listener: TcpListener) -> TcpListener {
    listener.set_nonblocking(false).unwrap();
    SockRef::from(&listener)
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    listener
}

fn ip(args: &str) {
    output("ip", args);
}

pub(crate) fn output(program: &str, args: &str) -> String {
    let mut command = Command::new(program);
    command
        .args(args.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = {
        let _nobody_closes = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
        command.spawn()
    };
    let ran = started.and_then(Child::wait_with_output);
    let ran = ran.unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success(),
        "{program} {args} (needs root): {stderr}"
    );
    String::from_utf8(ran.stdout).unwrap()
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
