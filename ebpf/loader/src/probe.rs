//! The start-up self-test: each kernel feature by name, tried on a throw-away namespace.
//!
//! One pod, alone in a fresh namespace with two addresses on loopback: its own, and one that plays
//! the peer. Nothing outside is touched, and nothing is left.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use karst_netns::{Family, Netns, connect_socket, steered_listener, udp_socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{
    Capture, HostLink, Kernel, KernelConfig, Listeners, MapSizes, PodAttachment, Processes,
    rtnetlink,
};

/// The pod, its peer, and a mesh destination that nobody has (RFC 5737 addresses).
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const MESH: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Every namespace's loopback interface.
const LOOPBACK: u32 = 1;
/// Everything happens on one machine: what has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(2);
/// A cgroup that no process is in: the test's own sockets count as the pod's.
const NOBODY: u64 = u64::MAX;

/// One feature of the kernel, and why it does not work here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    pub name: &'static str,
    pub result: Result<(), String>,
}

type Outcome = Result<(), String>;
/// A feature's name, and how to try it.
type Trial = (&'static str, fn(&mut Bench) -> Outcome);

/// In this order: the last two end what the others need.
const FEATURES: [Trial; 6] = [
    (
        "outbound capture (cgroup/connect, sock_ops)",
        Bench::captures,
    ),
    ("inbound steering (sk_lookup)", Bench::steers),
    ("peer names (cgroup/getpeername)", Bench::names),
    ("DNS (cgroup/connect, bpf_sk_lookup_udp)", Bench::resolves),
    ("fail closed without a listener", Bench::refuses),
    ("guard (clsact)", Bench::guards),
];

/// Tries every feature that capture needs. Takes some tenths of a second; needs root.
pub fn self_test() -> Vec<Feature> {
    let mut features = Vec::new();
    let bench = Bench::new();
    let ready = bench.as_ref().map(drop).map_err(Clone::clone);
    features.push(Feature {
        name: "namespace, bpf file system, programs and maps",
        result: ready,
    });
    let Ok(mut bench) = bench else {
        return features;
    };
    for (name, try_it) in FEATURES {
        let result = try_it(&mut bench);
        features.push(Feature { name, result });
    }
    features.push(Feature {
        name: "removal",
        result: bench.remove(),
    });
    features
}

/// The throw-away namespace, with a pod attached.
struct Bench {
    netns: Netns,
    pin_dir: PathBuf,
    kernel: Kernel,
    hbone: TcpListener,
    outbound: TcpListener,
    inbound: Option<TcpListener>,
    dns: UdpSocket,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let netns = fresh().map_err(said)?;
        netns.run(addresses).map_err(said)?.map_err(said)?;
        let pin_dir = PathBuf::from(format!(
            "/sys/fs/bpf/karst-self-test-{}",
            std::process::id()
        ));
        let cfg = KernelConfig {
            pin_dir: pin_dir.clone(),
            cgroup_root: karst_netns::cgroup2_root().map_err(said)?,
            agent_cgroup_id: NOBODY,
            earlier_agent_cgroup_id: None,
            host_netns_cookie: netns.cookie().map_err(said)?.0,
            kubelet_cgroup_ids: Vec::new(),
            sizes: MapSizes::default(),
        };
        let kernel = netns
            .run(|| Kernel::load(&cfg))
            .map_err(said)?
            .map_err(|error| chain(&error))
            .inspect_err(|_| drop(netns.run(|| Kernel::remove(&pin_dir))))?;
        let listener = || steered_listener(&netns).map_err(said);
        let bench = Self {
            kernel,
            pin_dir,
            hbone: listener()?,
            outbound: listener()?,
            inbound: Some(listener()?),
            dns: udp_socket(&netns, 0).map_err(said)?,
            netns,
        };
        bench.attach(None).inspect_err(|_| drop(bench.remove()))?;
        bench
            .kernel
            .set_destinations(&[MESH.into()], &[])
            .map_err(said)?;
        Ok(bench)
    }

    fn attach(&self, host_veth: Option<HostLink<'_>>) -> Outcome {
        let inbound = self
            .inbound
            .as_ref()
            .ok_or("the inbound listener is closed")?;
        let pod = PodAttachment {
            cookie: self.netns.cookie().map_err(said)?,
            netns: self.netns.as_fd(),
            addresses: &[IpAddr::V4(OWN)],
            host_veth,
            processes: Processes::None,
            capture: &Capture::default(),
            probe_ports: &[],
            listeners: Listeners {
                hbone: self.hbone.as_fd(),
                inbound: inbound.as_fd(),
                outbound: self.outbound.as_fd(),
                dns_udp: Some(self.dns.as_fd()),
                dns_tcp: None,
            },
        };
        self.kernel.attach_pod(&pod).map_err(|error| chain(&error))
    }

    fn captures(&mut self) -> Outcome {
        let client = self.dial(OWN, (MESH, 80))?;
        let (_accepted, from) = accept(&self.outbound)?;
        let cookie = self.netns.cookie().map_err(said)?;
        let wanted = SocketAddr::from((MESH, 80));
        drop(client);
        match self.kernel.take_orig_dst(cookie, from) {
            Some(found) if found == wanted => Ok(()),
            other => Err(format!("the kernel remembers {other:?}, not {wanted}")),
        }
    }

    fn steers(&mut self) -> Outcome {
        let _client = self.dial(PEER, (OWN, 8080))?;
        let inbound = self
            .inbound
            .as_ref()
            .ok_or("the inbound listener is closed")?;
        let (accepted, _) = accept(inbound)?;
        let local = accepted.local_addr().map_err(said)?;
        if local.port() == 8080 {
            Ok(())
        } else {
            Err(format!("the original destination shows as {local}"))
        }
    }

    fn names(&mut self) -> Outcome {
        let client = self.dial(OWN, (MESH, 80))?;
        accept(&self.outbound)?;
        let peer = client.peer_addr().map_err(said)?;
        if peer == SocketAddr::from((MESH, 80)) {
            Ok(())
        } else {
            Err(format!("the client sees {peer}"))
        }
    }

    fn resolves(&mut self) -> Outcome {
        let client = self
            .netns
            .run(|| UdpSocket::bind((OWN, 0)))
            .map_err(said)?
            .map_err(said)?;
        client
            .connect((MESH, 53))
            .and_then(|()| client.send(b"?"))
            .map_err(said)?;
        wait(&self.dns)
    }

    fn refuses(&mut self) -> Outcome {
        let app = self
            .netns
            .run(|| TcpListener::bind((OWN, 8081)))
            .map_err(said)?
            .map_err(said)?;
        if let Some(inbound) = self.inbound.take() {
            // Not merely dropped: a process that is just being forked would hold it open.
            rustix::net::shutdown(&inbound, Shutdown::Both).map_err(said)?;
        }
        let dialled = self.dial(PEER, (OWN, 8081));
        self.inbound = Some(steered_listener(&self.netns).map_err(said)?);
        self.attach(None)?;
        drop(app);
        match dialled {
            Err(_) => Ok(()),
            Ok(_) => Err("the application was reached past a closed listener".to_owned()),
        }
    }

    fn guards(&mut self) -> Outcome {
        self.attach(Some(HostLink {
            netns: self.netns.as_fd(),
            ifindex: LOOPBACK,
        }))?;
        let spoof = self
            .netns
            .run(|| UdpSocket::bind((PEER, 0)))
            .map_err(said)?
            .map_err(said)?;
        spoof.send_to(b"?", (OWN, 9)).map_err(said)?;
        let counted = self
            .kernel
            .counters()
            .into_iter()
            .find(|(name, _)| *name == "guard_source");
        match counted {
            Some((_, dropped)) if dropped > 0 => Ok(()),
            _ => Err("a foreign source address passed".to_owned()),
        }
    }

    fn remove(&self) -> Outcome {
        let removed = self
            .netns
            .run(|| Kernel::remove(&self.pin_dir))
            .map_err(said)?;
        removed.map_err(|error| chain(&error))
    }

    /// Connects from one of the namespace's addresses.
    fn dial(&self, from: Ipv4Addr, to: (Ipv4Addr, u16)) -> Result<TcpStream, String> {
        let socket = connect_socket(&self.netns, Family::V4).map_err(said)?;
        socket
            .bind(&SocketAddr::from((from, 0)).into())
            .map_err(said)?;
        socket
            .connect_timeout(&SocketAddr::from(to).into(), PATIENCE)
            .map_err(said)?;
        Ok(socket.into())
    }
}

/// A namespace of its own, held by this handle alone.
fn fresh() -> io::Result<Netns> {
    let made = thread::spawn(|| {
        // SAFETY: changes the namespace of this short-lived thread only; no memory is shared anew.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        Netns::current()
    });
    made.join()
        .map_err(|_panic| io::Error::other("the thread that makes a namespace panicked"))?
}

/// Brings loopback up, with both addresses.
fn addresses() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const RTM_NEWADDR: u16 = 20;
    const NLM_F_CREATE: u16 = 0x400;
    const IFF_UP: u32 = 1;
    // `ifinfomsg`: family, interface, flags, mask of flags.
    let up = [0, LOOPBACK, IFF_UP, IFF_UP].map(u32::to_ne_bytes);
    rtnetlink::request(RTM_NEWLINK, 0, up.as_flattened())?;
    for addr in [OWN, PEER] {
        // `ifaddrmsg` for AF_INET with prefix 32, then IFA_LOCAL.
        let mut message = vec![2, 32, 0, 0];
        message.extend(LOOPBACK.to_ne_bytes());
        message.extend(8_u16.to_ne_bytes());
        message.extend(2_u16.to_ne_bytes());
        message.extend(addr.octets());
        rtnetlink::request(RTM_NEWADDR, NLM_F_CREATE, &message)?;
    }
    Ok(())
}

fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr), String> {
    wait(listener)?;
    listener.accept().map_err(said)
}

fn wait(socket: &impl AsFd) -> Outcome {
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience));
    match ready.map_err(said)? {
        0 => Err("nothing arrived".to_owned()),
        _ => Ok(()),
    }
}

fn said(error: impl Display) -> String {
    error.to_string()
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
