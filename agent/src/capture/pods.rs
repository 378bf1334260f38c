//! Local pods: where their namespaces are, and what a captured one consists of.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use karst_ebpf_loader::{Capture, Cidr, HostLink, Listeners, PodAttachment, Processes};
use karst_model::{
    cni::{KNOWN_NAMESPACES_FILE, KnownNamespaces, PROTOCOL_VERSION},
    enrollment::{EnrollMode, NodeWorkload},
    identity::{SpiffeId, TrustDomain},
    name::{PodUid, WorkloadUid},
};
use karst_netns::{Netns, NetnsCookie};
use karst_path::outbound::Egress;
use karst_runtime::{drain, supervise::Shutdown};
use serde::{Deserialize, Serialize};

use crate::{
    dns::{pod::PodDns, server},
    error::EnrollError,
    listeners,
    mesh::Mesh,
    workers::{Worker, Workers},
};

/// Most pods of one node whose namespaces are remembered; Kubernetes itself stops far earlier.
const MAX_RECORDS: usize = 4096;

/// A pod's namespace, as the container runtime told it, or as it was found by the pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownNamespace {
    pub(crate) pod_uid: PodUid,
    pub(crate) path: PathBuf,
    /// Checked at every use: a path can be reused.
    #[serde(with = "cookie_number")]
    pub(crate) cookie: NetnsCookie,
    pub(crate) addresses: Vec<IpAddr>,
    /// Name of the host's end of the pod's link, in the node's namespace.
    pub(crate) host_veth: Option<String>,
    /// The pod's own setting of TIME_WAIT reuse while it is captured, to be put back.
    #[serde(default)]
    pub(crate) tw_reuse_before: Option<String>,
    /// Where an agent answers the pod's DNS over UDP, from its first capture on; the next one takes the same port.
    #[serde(default)]
    pub(crate) dns_port: Option<u16>,
}

mod cookie_number {
    use karst_netns::NetnsCookie;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        cookie: &NetnsCookie,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(cookie.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<NetnsCookie, D::Error> {
        u64::deserialize(deserializer).map(NetnsCookie)
    }
}

/// What the container runtime told, kept on disk so that an agent restart knows it too.
pub(crate) struct NamespaceRecords {
    file: PathBuf,
    records: BTreeMap<PodUid, KnownNamespace>,
    /// What the plugin was last told.
    told: Option<KnownNamespaces>,
}

impl NamespaceRecords {
    /// Reads the records and drops those whose namespace is gone or is another one by now.
    pub(crate) fn load(run_dir: &Path) -> Self {
        let file = run_dir.join("namespaces.json");
        let read = fs::read(&file)
            .map_err(|error| (error.kind() != io::ErrorKind::NotFound).then(|| error.to_string()));
        let parsed = read.and_then(|bytes| {
            serde_json::from_slice::<Vec<KnownNamespace>>(&bytes)
                .map_err(|error| Some(error.to_string()))
        });
        let records = parsed.unwrap_or_else(|problem| {
            if let Some(problem) = problem {
                tracing::warn!(file = %file.display(), problem, "cannot read the pods that an earlier agent knew: their \
                    namespaces will be learned again when the container runtime names them");
            }
            Vec::new()
        });
        let records = records
            .into_iter()
            .filter(is_alive)
            .map(|known| (known.pod_uid.clone(), known))
            .collect();
        Self {
            file,
            records,
            told: None,
        }
    }

    pub(crate) fn get(&self, pod_uid: &PodUid) -> Option<&KnownNamespace> {
        self.records.get(pod_uid)
    }

    /// Changes the record of a pod, if there is one.
    pub(crate) fn update(&mut self, pod_uid: &PodUid, change: impl FnOnce(&mut KnownNamespace)) {
        if let Some(known) = self.records.get_mut(pod_uid) {
            change(known);
            self.save();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &KnownNamespace> {
        self.records.values()
    }

    /// Drops the records of pods that nobody wants and whose namespace is gone: a DEL may never come, or come while no
    /// agent runs.
    pub(crate) fn forget_dead(&mut self, is_wanted: impl Fn(&PodUid) -> bool) {
        let before = self.records.len();
        self.records
            .retain(|uid, known| is_wanted(uid) || is_alive(known));
        if self.records.len() != before {
            self.save();
        }
    }

    pub(crate) fn cookies(&self) -> BTreeMap<PodUid, NetnsCookie> {
        self.records
            .iter()
            .map(|(uid, known)| (uid.clone(), known.cookie))
            .collect()
    }

    /// What was noted of the same namespace before stays noted.
    pub(crate) fn insert(&mut self, mut known: KnownNamespace) {
        let before = self.records.get(&known.pod_uid);
        if let Some(before) = before.filter(|before| before.cookie == known.cookie) {
            known.tw_reuse_before.clone_from(&before.tw_reuse_before);
            known.dns_port = before.dns_port;
        }
        if self.records.len() >= MAX_RECORDS && !self.records.contains_key(&known.pod_uid) {
            tracing::error!(pod = %known.pod_uid, limit = MAX_RECORDS, "too many pods on this node: this one is not remembered");
            return;
        }
        self.records.insert(known.pod_uid.clone(), known);
        self.save();
    }

    pub(crate) fn remove(&mut self, pod_uid: &PodUid) {
        if self.records.remove(pod_uid).is_some() {
            self.save();
        }
    }

    /// Leaves on disk which namespaces are outside the mesh: their new pods start even while the agent is away.
    pub(crate) fn tell_plugin(&mut self, desired: &BTreeMap<PodUid, NodeWorkload>) {
        let mut enrolled: BTreeMap<&str, bool> = BTreeMap::new();
        for pod in desired.values() {
            *enrolled.entry(&pod.namespace).or_default() |= pod.mode == EnrollMode::Ambient;
        }
        let outside = enrolled.into_iter().filter(|(_, any)| !any);
        let known = KnownNamespaces {
            version: PROTOCOL_VERSION,
            not_enrolled: outside.map(|(namespace, _)| namespace.to_owned()).collect(),
        };
        if self.told.as_ref() == Some(&known) {
            return;
        }
        match write_json(&self.file.with_file_name(KNOWN_NAMESPACES_FILE), &known) {
            Ok(()) => self.told = Some(known),
            Err(error) => {
                tracing::error!(%error, "cannot leave the namespaces outside the mesh for karst-cni: their \
                new pods will not start while the agent is away")
            }
        }
    }

    fn save(&self) {
        let records: Vec<_> = self.records.values().collect();
        let written = write_json(&self.file, &records);
        if let Err(error) = written {
            tracing::error!(file = %self.file.display(), %error, "cannot keep the pods' namespaces on disk: after a restart \
                the agent must learn them again");
        }
    }
}

/// Whether the record's path still leads to the namespace that was seen there.
fn is_alive(known: &KnownNamespace) -> bool {
    Netns::open(&known.path)
        .and_then(|netns| netns.cookie())
        .is_ok_and(|cookie| cookie == known.cookie)
}

/// Written aside and renamed: a reader sees the old file or the new one.
fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let aside = file.with_extension("json.new");
    fs::write(
        &aside,
        serde_json::to_vec_pretty(value).map_err(io::Error::other)?,
    )?;
    fs::rename(&aside, file)
}

/// When the pod's guard drops what went around the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// At once: the pod has no process yet.
    AtStart,
    Now,
    /// Not yet: a process of the pod may be between the connect that was let pass and its SYN.
    Later,
}

/// A captured pod.
pub(crate) struct LocalPod {
    pub(crate) pod_uid: PodUid,
    pub(crate) workload_uid: WorkloadUid,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) identity: SpiffeId,
    pub(crate) netns: Netns,
    pub(crate) cookie: NetnsCookie,
    pub(crate) addresses: Vec<IpAddr>,
    /// Ports of our own listeners in the pod: never a destination.
    pub(crate) listener_ports: Vec<u16>,
    /// Stops the pod's listeners of TCP.
    pub(crate) stop: Shutdown,
    /// Its UDP socket is there before this capture and after it.
    pub(crate) dns: Arc<PodDns>,
    /// Plain connections pass without policy: it is entering or leaving the mesh, or has left it with its listeners
    /// lingering. Shared with the same pod before and after a change of its options.
    plaintext_open: Arc<AtomicBool>,
    /// Nothing may be dialled that the mesh does not know. Shared in the same way.
    registry_only: Arc<AtomicBool>,
    sockets: Arc<Sockets>,
}

/// The listening sockets of TCP in the pod's namespace. Kept with the pod so that a change of options can attach them again.
pub(crate) struct Sockets {
    pub(crate) hbone: TcpListener,
    pub(crate) inbound: TcpListener,
    pub(crate) outbound: TcpListener,
    pub(crate) dns_tcp: TcpListener,
}

/// What of a capture is fresh and must now be served.
#[derive(Default)]
pub(crate) struct ToServe {
    /// Second handles on the listening sockets.
    listeners: Option<Sockets>,
    dns: Option<Arc<PodDns>>,
}

impl Sockets {
    fn open(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            hbone: karst_netns::steered_listener(netns)?,
            inbound: karst_netns::steered_listener(netns)?,
            outbound: karst_netns::steered_listener(netns)?,
            dns_tcp: karst_netns::tcp_listener(netns, 0)?,
        })
    }

    /// Second handles on the same sockets, for the thread that serves them.
    fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            hbone: self.hbone.try_clone()?,
            inbound: self.inbound.try_clone()?,
            outbound: self.outbound.try_clone()?,
            dns_tcp: self.dns_tcp.try_clone()?,
        })
    }

    fn tcp_ports(&self) -> io::Result<Vec<u16>> {
        [&self.hbone, &self.inbound, &self.outbound, &self.dns_tcp]
            .into_iter()
            .map(|listener| listener.local_addr().map(|addr| addr.port()))
            .collect()
    }
}

impl LocalPod {
    /// Opens the listeners (or takes those of `previous`) and the DNS socket (or takes `dns`), fills the maps and attaches
    /// the programs, in this order.
    pub(crate) fn capture(
        mesh: &Mesh,
        desired: &NodeWorkload,
        known: &KnownNamespace,
        previous: Option<&Self>,
        dns: Option<&Arc<PodDns>>,
        guard: Guard,
    ) -> Result<(Self, ToServe), EnrollError> {
        let pod_uid = || desired.pod_uid.clone();
        let reused = previous.filter(|pod| pod.cookie == known.cookie);
        let netns = match reused {
            Some(pod) => pod.netns.try_clone(),
            None => Netns::open(&known.path),
        };
        let namespace = |source| EnrollError::Namespace {
            pod_uid: pod_uid(),
            path: known.path.clone(),
            source,
        };
        let netns = netns.map_err(namespace)?;
        let cookie = netns.cookie().map_err(namespace)?;
        if cookie != known.cookie {
            return Err(EnrollError::NamespaceReplaced {
                pod_uid: pod_uid(),
                path: known.path.clone(),
            });
        }
        if desired.addresses.is_empty() {
            return Err(EnrollError::NoAddress { pod_uid: pod_uid() });
        }
        let listen = |source| EnrollError::Listen {
            pod_uid: pod_uid(),
            source,
        };
        // All that may run out of descriptors comes before the kernel sends anything here.
        let mut fresh = ToServe::default();
        let sockets = match reused {
            Some(pod) => pod.sockets.clone(),
            None => {
                let sockets = Sockets::open(&netns).map_err(listen)?;
                fresh.listeners = Some(sockets.duplicate().map_err(listen)?);
                Arc::new(sockets)
            }
        };
        let dns = match dns.filter(|dns| dns.cookie == cookie) {
            Some(dns) => dns.clone(),
            None => {
                let opened = PodDns::open(desired, &netns, known.dns_port).map_err(listen)?;
                fresh.dns.insert(Arc::new(opened)).clone()
            }
        };
        let listener_ports = sockets.tcp_ports().map_err(listen)?;
        let dns_udp = dns.handle().map_err(listen)?;
        attach(mesh, desired, known, &netns, (&sockets, &dns_udp), guard)?;
        let pod = Self {
            pod_uid: pod_uid(),
            workload_uid: desired.workload_uid.clone(),
            name: desired.name.clone(),
            namespace: desired.namespace.clone(),
            identity: SpiffeId::new(
                &TrustDomain(mesh.config.trust_domain.as_str().into()),
                &desired.namespace,
                &desired.service_account,
            ),
            netns,
            cookie,
            addresses: desired.addresses.clone(),
            listener_ports,
            stop: reused.map_or_else(Shutdown::new, |pod| pod.stop.clone()),
            plaintext_open: reused.map_or_else(Arc::default, |pod| pod.plaintext_open.clone()),
            registry_only: reused.map_or_else(Arc::default, |pod| pod.registry_only.clone()),
            sockets,
            dns,
        };
        pod.dns.enter(&pod.addresses);
        pod.registry_only
            .store(desired.capture.registry_only, Ordering::Release);
        Ok((pod, fresh))
    }

    /// Whether plain connections pass as if the pod were not in the mesh, from now on.
    pub(crate) fn open_plaintext(&self, open: bool) {
        self.plaintext_open.store(open, Ordering::Release);
    }

    pub(crate) fn is_plaintext_open(&self) -> bool {
        self.plaintext_open.load(Ordering::Acquire)
    }

    /// What the pod may dial beside what the mesh knows.
    pub(crate) fn egress(&self) -> Egress {
        match self.registry_only.load(Ordering::Acquire) {
            true => Egress::RegistryOnly,
            false => Egress::Any,
        }
    }

    /// Our own listeners and the ports that other implementations reserve: tunnelling to them would loop.
    pub(crate) fn is_reserved(&self, port: u16) -> bool {
        karst_model::protocol::RESERVED_PORTS.contains(&port) || self.listener_ports.contains(&port)
    }
}

fn attach(
    mesh: &Mesh,
    desired: &NodeWorkload,
    known: &KnownNamespace,
    netns: &Netns,
    (sockets, dns_udp): (&Sockets, &UdpSocket),
    guard: Guard,
) -> Result<(), EnrollError> {
    let failed = |source| EnrollError::Attach {
        pod_uid: desired.pod_uid.clone(),
        source,
    };
    let host_veth = match guard {
        Guard::AtStart | Guard::Now => {
            host_end(mesh, desired, known, netns)?.map(|ifindex| HostLink {
                netns: mesh.node.netns.as_fd(),
                ifindex,
            })
        }
        Guard::Later => None,
    };
    let dns = desired.capture.dns_capture.unwrap_or(true);
    let attachment = PodAttachment {
        cookie: known.cookie,
        netns: netns.as_fd(),
        addresses: &desired.addresses,
        host_veth,
        processes: match guard {
            Guard::AtStart => Processes::None,
            Guard::Now | Guard::Later => Processes::MayRun,
        },
        capture: &Capture {
            exclude_outbound_ports: desired.capture.exclude_outbound_ports.clone(),
            exclude_outbound_cidrs: desired
                .capture
                .exclude_outbound_cidrs
                .iter()
                .map(cidr)
                .collect(),
            exclude_inbound_ports: desired.capture.exclude_inbound_ports.clone(),
            exclude_inbound_cidrs: Vec::new(),
            dns,
            all: desired.capture.registry_only,
        },
        probe_ports: &desired.probe_ports,
        listeners: Listeners {
            hbone: sockets.hbone.as_fd(),
            inbound: sockets.inbound.as_fd(),
            outbound: sockets.outbound.as_fd(),
            dns_udp: dns.then(|| dns_udp.as_fd()),
            dns_tcp: dns.then(|| sockets.dns_tcp.as_fd()),
        },
    };
    mesh.datapath.attach(&attachment).map_err(failed)
}

/// Index, on the node, of the other end of the pod's link: what the two ends say, else what the runtime named.
fn host_end(
    mesh: &Mesh,
    desired: &NodeWorkload,
    known: &KnownNamespace,
    netns: &Netns,
) -> Result<Option<u32>, EnrollError> {
    let node = &mesh.node.netns;
    let found = netns.host_end(node, &desired.addresses);
    if let Ok(Some(ifindex)) = found {
        return Ok(Some(ifindex));
    }
    let Some(name) = &known.host_veth else {
        let pod = format_args!("{}/{}", desired.namespace, desired.name);
        tracing::warn!(%pod, outcome = ?found.map(drop), "the pod's link has no end on the node: what the pod sends around \
            its capture (raw sockets) is not stopped");
        return Ok(None);
    };
    let index = node.run(|| interface(name)).and_then(|index| index);
    index.map(Some).map_err(|source| EnrollError::Link {
        pod_uid: desired.pod_uid.clone(),
        name: name.clone(),
        source,
    })
}

/// Index of an interface in the calling thread's namespace.
fn interface(name: &str) -> io::Result<u32> {
    let any = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    Ok(rustix::net::netdevice::name_to_index(any, name)?)
}

fn cidr(block: &ipnet::IpNet) -> Cidr {
    Cidr {
        addr: block.addr(),
        prefix: block.prefix_len(),
    }
}

impl ToServe {
    /// Starts what is fresh on one data-path thread: the pod's accept loops, the answers to its queries.
    pub(crate) fn serve(
        self,
        workers: &Workers,
        mesh: &Arc<Mesh>,
        pod: &Arc<LocalPod>,
        drain: &drain::Watch,
    ) -> Result<(), EnrollError> {
        if self.listeners.is_none() && self.dns.is_none() {
            return Ok(());
        }
        let (served, drain) = (pod.clone(), drain.clone());
        let start = move |worker: Rc<Worker>| {
            if let Some(listeners) = self.listeners {
                listeners::spawn(&worker, &served, &drain, listeners);
            }
            if let Some(dns) = self.dns {
                server::spawn_udp(&worker.mesh, &dns, &drain);
            }
        };
        if !workers.run_on(thread_of(pod.cookie), start) {
            mesh.metrics.worker_queue_full.inc();
            return Err(EnrollError::Busy {
                pod_uid: pod.pod_uid.clone(),
            });
        }
        Ok(())
    }
}

/// The data-path thread of a namespace, to be taken modulo their count.
pub(crate) fn thread_of(cookie: NetnsCookie) -> usize {
    usize::try_from(cookie.0).unwrap_or(0)
}
