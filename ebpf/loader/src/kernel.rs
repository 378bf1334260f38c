//! The kernel side as the agent sees it: loaded once, pods attached and detached, flows looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use karst_ebpf_abi::{
    ABI_VERSION, ClientKey, Config, Counter, KUBELET_CGROUPS, LISTENERS_PER_POD, ListenerRole,
    MAX_DESTINATIONS, MAX_EXCLUSIONS, MAX_PENDING, MAX_PODS, Pod, ProbeKey, config_flag, pod_flag,
};
use karst_netns::{Netns, NetnsCookie};

use crate::address::{dialled, ip, socket_addr, words};
use crate::guard::Qdisc;
use crate::maps::Maps;
use crate::pod::{self, AttachedPod, PodAttachment, Processes};
use crate::{AttachError, LoadError, MapError, cgroup_hooks, guard, object, steering};

/// `f_type` of a bpf file system, from `linux/magic.h`.
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
/// A mesh destination, as value of `DESTINATIONS`.
const MESH: u32 = 1;

/// Where the programs go and whom they trust.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelConfig {
    /// Directory on a bpf file system, this agent's alone; made when absent.
    pub pin_dir: PathBuf,
    /// Mount point of cgroup v2 (`karst_netns::cgroup2_root`).
    pub cgroup_root: PathBuf,
    /// Cgroup of the agent, in which nothing else may run (`karst_netns::own_cgroup_id`).
    pub agent_cgroup_id: u64,
    /// Cgroup of the agent that this one takes over from, while that still runs ([`Kernel::known_agents`]): its sockets
    /// count as the agent's as well.
    pub earlier_agent_cgroup_id: Option<u64>,
    /// Cookie of the node's own namespace.
    pub host_netns_cookie: u64,
    /// Cgroups whose processes may probe; at most three. Resolve again when the kubelet restarts.
    pub kubelet_cgroup_ids: Vec<u64>,
    pub sizes: MapSizes,
}

/// How many entries the maps have room for. Maps of an earlier run keep the sizes that they were made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSizes {
    /// Enrolled pods; a further one is not attached.
    pub pods: u32,
    /// Mesh destinations; while one does not fit, everything that enrolled pods dial is captured.
    pub destinations: u32,
    /// Connections between `connect` and `accept`, and approvals not yet used; a further connection is refused.
    pub pending: u32,
    /// Excluded ports, excluded CIDRs, probe ports, each over all pods; a pod whose own do not fit is not attached.
    pub exclusions: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            pods: MAX_PODS,
            destinations: MAX_DESTINATIONS,
            pending: MAX_PENDING,
            exclusions: MAX_EXCLUSIONS,
        }
    }
}

/// The loaded programs of one agent. They stay in the kernel when this value is dropped.
pub struct Kernel {
    pin_dir: PathBuf,
    maps: Maps,
    pods: Mutex<Pods>,
    /// Mesh destinations that the map has no room for.
    overflow: Mutex<BTreeSet<IpAddr>>,
    /// Clients that had gone at the last look without having been accepted, with when.
    left: Mutex<HashMap<ClientKey, u32>>,
}

/// What attaching and detaching change, one at a time.
struct Pods {
    /// Holds the guard, to be put on further interfaces.
    ebpf: Ebpf,
    steering: steering::Programs,
    /// Who has which place in the map of pods.
    slots: BTreeMap<NetnsCookie, u32>,
    /// Namespaces that hold the host side of pods' veths; pods of an earlier run: [`Self::home`].
    hosts: BTreeMap<NetnsCookie, Netns>,
    /// The namespace in which the agent was started.
    home: Netns,
}

impl Kernel {
    /// Loads the programs: reuses pinned maps and replaces attached programs without a gap.
    ///
    /// Call it from a thread in the node's own network namespace. Pods that an earlier run
    /// attached stay captured, and get the new programs too.
    pub fn load(cfg: &KernelConfig) -> Result<Self, LoadError> {
        prepare(&cfg.pin_dir)?;
        let home = Netns::current().map_err(opening(Path::new("/proc/thread-self/ns/net")))?;
        let cgroup = File::open(&cfg.cgroup_root).map_err(opening(&cfg.cgroup_root))?;
        let mut ebpf = object::open(&cfg.pin_dir, &cfg.sizes, None)?;
        let maps = Maps::open(&cfg.pin_dir)?;
        note_sizes(&maps, &cfg.sizes);
        configure(&maps, cfg)?;
        guard::load(&mut ebpf)?;
        cgroup_hooks::attach(&mut ebpf, &cfg.pin_dir, &cgroup)?;
        let pods = Mutex::new(Pods {
            ebpf,
            steering: steering::Programs::new(&cfg.pin_dir, cfg.sizes),
            slots: occupied(&maps)
                .map(|(slot, pod)| (NetnsCookie(pod.cookie), slot))
                .collect(),
            hosts: BTreeMap::new(),
            home,
        });
        let kernel = Self {
            pin_dir: cfg.pin_dir.clone(),
            maps,
            pods,
            overflow: Mutex::default(),
            left: Mutex::default(),
        };
        kernel.renew_pods()?;
        Ok(kernel)
    }

    /// Cgroups of the agents that earlier runs under `pin_dir` named, the latest first; they may be gone. Empty without
    /// an earlier run.
    pub fn known_agents(pin_dir: &Path) -> Vec<u64> {
        let config = Maps::open(pin_dir).and_then(|maps| maps.config());
        let known = config.map(|config| [config.agent_cgroup, config.earlier_agent_cgroup]);
        let known = known.into_iter().flatten();
        known.filter(|id| *id != 0).collect()
    }

    /// Detaches and unpins everything under `pin_dir`; absent is fine.
    ///
    /// Call it from a thread in the node's own network namespace.
    pub fn remove(pin_dir: &Path) -> Result<(), LoadError> {
        if !pin_dir.exists() {
            return Ok(());
        }
        if let Ok(maps) = Maps::open(pin_dir) {
            let home = Netns::current().map_err(opening(Path::new("/proc/thread-self/ns/net")))?;
            for (_, pod) in occupied(&maps) {
                unguard(pin_dir, &home, &pod).map_err(|source| LoadError::Pod {
                    cookie: NetnsCookie(pod.cookie),
                    source: Box::new(source),
                })?;
            }
        }
        fs::remove_dir_all(pin_dir).map_err(opening(pin_dir))
    }

    /// Captures a pod, or renews what is known of it (new listeners after a restart).
    ///
    /// Inbound closes first, then outbound opens, then the guard. On failure the pod is detached.
    pub fn attach_pod(&self, pod: &PodAttachment<'_>) -> Result<(), AttachError> {
        let mut pods = self.pods();
        let slot = self.slot_for(&pods, pod.cookie)?;
        pods.slots.insert(pod.cookie, slot);
        self.attach_at(&mut pods, slot, pod).inspect_err(|_| {
            let _best_effort = self.detach_at(&mut pods, slot, pod.cookie);
        })
    }

    /// Stops to capture what the pod dials, and takes its guard off; what arrives is served as before. The first of
    /// three steps that let a pod go while others still believe that it is captured; `attach_pod` takes it back.
    pub fn release_outbound(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        let mut pods = self.pods();
        let Some(&slot) = pods.slots.get(&cookie) else {
            return Ok(());
        };
        let mut pod = self.maps.pod(slot)?;
        // The guard goes first: it would drop the SYN of a connect that is let pass.
        let host = pods.hosts.remove(&cookie);
        unguard(&self.pin_dir, host.as_ref().unwrap_or(&pods.home), &pod)?;
        if pod.host_ifindex != 0 {
            self.maps.guarded.remove(&pod.host_ifindex)?;
        }
        pod.host_ifindex = 0;
        pod.flags &= !pod_flag::QDISC_OURS;
        pod.flags |= pod_flag::INBOUND_ONLY;
        Ok(self.maps.set_pod(slot, &pod)?)
    }

    /// Hands new connections to the application again. The second step: what the agent has accepted before can still
    /// be joined to the application, with the client's address shown.
    pub fn release_inbound(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        let _one_at_a_time = self.pods();
        steering::detach(&self.pin_dir, cookie);
        Ok(())
    }

    /// Releases a pod; one that is not attached is fine. Its connections go on.
    pub fn detach_pod(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        let mut pods = self.pods();
        match pods.slots.get(&cookie).copied() {
            Some(slot) => self.detach_at(&mut pods, slot, cookie),
            None => Ok(()),
        }
    }

    /// Loads a program for a pod to come, where not enough of them wait, so that the pod does not wait for it. Takes
    /// some milliseconds; true when it may be called again for more.
    pub fn prepare(&self) -> Result<bool, LoadError> {
        let mut pods = self.pods();
        let Pods {
            steering, slots, ..
        } = &mut *pods;
        let taken: BTreeSet<u32> = slots.values().copied().collect();
        steering.prepare((0..self.maps.pods_max()).filter(|slot| !taken.contains(slot)))
    }

    /// The pods in the maps, those of an earlier run included.
    pub fn attached(&self) -> Vec<AttachedPod> {
        occupied(&self.maps)
            .map(|(_, pod)| AttachedPod::of(&pod))
            .collect()
    }

    /// Adds and removes mesh destinations: pods and service addresses whose TCP goes to the agent.
    ///
    /// What finds no room is kept and put in as soon as there is some; until then every connection of enrolled pods is
    /// captured, so that none to the mesh goes around it. Returns how many wait for room.
    pub fn set_destinations(&self, add: &[IpAddr], remove: &[IpAddr]) -> Result<usize, MapError> {
        let table = &self.maps.destinations;
        let mut overflow = lock(&self.overflow);
        for addr in remove {
            overflow.remove(addr);
            table.remove(&words(*addr))?;
        }
        let waited = std::mem::take(&mut *overflow);
        for addr in waited.into_iter().chain(add.iter().copied()) {
            match table.insert(&words(addr), &MESH) {
                Err(MapError::Full { .. }) => drop(overflow.insert(addr)),
                other => other?,
            }
        }
        self.capture_all(!overflow.is_empty())?;
        Ok(overflow.len())
    }

    fn capture_all(&self, on: bool) -> Result<(), MapError> {
        let config = self.maps.config()?;
        let flags = if on { config_flag::CAPTURE_ALL } else { 0 };
        if config.flags == flags {
            return Ok(());
        }
        self.maps.set_config(Config { flags, ..config })
    }

    /// Every mesh destination in the map.
    pub fn destinations(&self) -> Result<Vec<IpAddr>, MapError> {
        Ok(self.maps.destinations.keys()?.into_iter().map(ip).collect())
    }

    /// Where a captured client wanted to go; once. `None`: close the connection.
    pub fn take_orig_dst(&self, cookie: NetnsCookie, client: SocketAddr) -> Option<SocketAddr> {
        let key = ClientKey {
            cookie: cookie.0,
            addr: words(client.ip()),
            port: client.port(),
            reserved: [0; 3],
        };
        let found = self.maps.orig_dst.get(&key)?;
        self.maps.orig_dst.remove(&key).ok()?;
        Some(socket_addr(found))
    }

    /// Forgets clients that had gone by the last call already and that nobody has accepted since: whoever would have was
    /// killed, or the connection broke before it reached the listener. Call it now and then; what is between two calls is
    /// the time that the agent has to accept. Returns how many were forgotten.
    pub fn forget_left(&self) -> Result<usize, MapError> {
        let pending = self.maps.orig_dst.entries()?.into_iter();
        let pending = pending.map(|(key, dialled)| (key, dialled.left_ms));
        let left: HashMap<_, _> = pending.filter(|(_, left_ms)| *left_ms != 0).collect();
        let mut before = lock(&self.left);
        let long_gone = left
            .iter()
            .filter(|(key, left_ms)| before.get(key) == Some(left_ms));
        let mut forgotten = 0;
        for (key, _) in long_gone {
            self.maps.orig_dst.remove(key)?;
            forgotten += 1;
        }
        *before = left;
        Ok(forgotten)
    }

    /// Says, before the agent dials an application, whom the application is to see as its peer.
    ///
    /// `socket_cookie` is that of the socket about to connect (`karst_netns::socket_cookie`). The
    /// peer must be of the address family that is dialled; another is not shown.
    pub fn announce_dial(&self, socket_cookie: u64, show_peer: SocketAddr) -> Result<(), MapError> {
        self.maps.announce(socket_cookie, dialled(show_peer))
    }

    /// Replaces the ports of an attached pod that the kubelet may reach.
    pub fn set_probe_ports(&self, cookie: NetnsCookie, ports: &[u16]) -> Result<(), MapError> {
        let pods = self.pods();
        let slot = *pods
            .slots
            .get(&cookie)
            .ok_or(MapError::NotAttached(cookie))?;
        let mut pod = self.maps.pod(slot)?;
        self.write_probe_ports(&pod, ports)?;
        pod.flags &= !pod_flag::PROBES;
        if !ports.is_empty() {
            pod.flags |= pod_flag::PROBES;
        }
        self.maps.set_pod(slot, &pod)
    }

    /// Replaces the cgroups that count as the kubelet's, after it restarted.
    pub fn set_kubelet_cgroups(&self, ids: &[u64]) -> Result<(), LoadError> {
        let kubelet_cgroups = kubelets(ids)?;
        let config = self.maps.config()?;
        Ok(self.maps.set_config(Config {
            kubelet_cgroups,
            ..config
        })?)
    }

    /// What the programs counted since they were first loaded, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let value = |&counter: &Counter| (counter.name(), self.maps.counter(counter));
        Counter::ALL.iter().map(value).collect()
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        lock(&self.pods)
    }

    /// Gives pods of an earlier run the programs of this one.
    fn renew_pods(&self) -> Result<(), LoadError> {
        let mut pods = self.pods();
        for (slot, pod) in occupied(&self.maps) {
            let cookie = NetnsCookie(pod.cookie);
            let Pods {
                ebpf,
                steering,
                home,
                ..
            } = &mut *pods;
            let renewed = steering.attach(slot, cookie, None);
            let guarded = match pod.host_ifindex {
                0 => Ok(Qdisc::Foreign),
                ifindex => guard::attach(ebpf, home, ifindex, &guard_pin(&self.pin_dir, cookie)),
            };
            // The pod may have gone meanwhile: the agent's next diff detaches it.
            if let Err(error) = renewed {
                tracing::warn!(%cookie, %error, "steering not renewed");
            }
            if let Err(error) = guarded {
                tracing::warn!(%cookie, error, "guard not renewed");
            }
        }
        Ok(())
    }

    fn slot_for(&self, pods: &Pods, cookie: NetnsCookie) -> Result<u32, AttachError> {
        if let Some(slot) = pods.slots.get(&cookie) {
            return Ok(*slot);
        }
        let taken: BTreeSet<u32> = pods.slots.values().copied().collect();
        let mut places = 0..self.maps.pods_max();
        places
            .find(|slot| !taken.contains(slot))
            .ok_or(AttachError::Full(places.end))
    }

    fn attach_at(
        &self,
        pods: &mut Pods,
        slot: u32,
        pod: &PodAttachment<'_>,
    ) -> Result<(), AttachError> {
        let before = self.maps.pod(slot)?;
        let mut entry = pod::entry(pod)?;
        entry.host_ifindex = before.host_ifindex;
        entry.flags |= before.flags & pod_flag::QDISC_OURS;
        // What the pod dials is captured only when its namespace steers it to the agent.
        let opens = before.cookie != pod.cookie.0 || before.flags & pod_flag::INBOUND_ONLY != 0;
        if opens {
            entry.flags |= pod_flag::INBOUND_ONLY;
        }
        pod::exclude(&self.maps, slot, pod.capture)?;
        self.write_probe_ports(&entry, pod.probe_ports)?;
        self.maps.set_pod(slot, &entry)?;
        self.set_listeners(slot, pod)?;
        pods.steering
            .attach(slot, pod.cookie, Some(pod.netns))
            .map_err(|source| AttachError::Steering(Box::new(source)))?;
        self.maps.pod_by_cookie.insert(&pod.cookie.0, &slot)?;
        if opens {
            entry.flags &= !pod_flag::INBOUND_ONLY;
            self.maps.set_pod(slot, &entry)?;
        }
        if opens && pod.processes == Processes::MayRun && pod.host_veth.is_some() {
            // A connect that was let pass a moment ago must have sent its SYN before the guard looks at it.
            steering::settle();
        }
        match &pod.host_veth {
            Some(link) => self.guard(pods, slot, entry, link.netns, link.ifindex),
            None => Ok(()),
        }
    }

    fn set_listeners(&self, slot: u32, pod: &PodAttachment<'_>) -> Result<(), MapError> {
        let listeners = &pod.listeners;
        let roles = [
            (ListenerRole::Hbone, listeners.hbone),
            (ListenerRole::Inbound, listeners.inbound),
            (ListenerRole::Outbound, listeners.outbound),
        ];
        roles.into_iter().try_for_each(|(role, socket)| {
            self.maps
                .set_listener(slot * LISTENERS_PER_POD + role as u32, &socket)
        })
    }

    fn guard(
        &self,
        pods: &mut Pods,
        slot: u32,
        mut entry: Pod,
        netns: BorrowedFd<'_>,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        let refused = |source| AttachError::Guard { ifindex, source };
        let host = netns
            .try_clone_to_owned()
            .map_err(|error| refused(error.into()))?;
        let host = Netns::from_fd(host);
        if entry.host_ifindex != 0 && entry.host_ifindex != ifindex {
            unguard(&self.pin_dir, &host, &entry)?;
            self.maps.guarded.remove(&entry.host_ifindex)?;
            entry.flags &= !pod_flag::QDISC_OURS;
        }
        self.maps.guarded.insert(&ifindex, &slot)?;
        let pin = guard_pin(&self.pin_dir, NetnsCookie(entry.cookie));
        let qdisc = guard::attach(&mut pods.ebpf, &host, ifindex, &pin).map_err(refused)?;
        pods.hosts.insert(NetnsCookie(entry.cookie), host);
        entry.host_ifindex = ifindex;
        if qdisc == Qdisc::Ours {
            entry.flags |= pod_flag::QDISC_OURS;
        }
        Ok(self.maps.set_pod(slot, &entry)?)
    }

    /// Outbound is released before inbound: what the pod dials is never steered to nowhere.
    fn detach_at(
        &self,
        pods: &mut Pods,
        slot: u32,
        cookie: NetnsCookie,
    ) -> Result<(), AttachError> {
        let pod = self.maps.pod(slot)?;
        let host = pods.hosts.remove(&cookie);
        unguard(&self.pin_dir, host.as_ref().unwrap_or(&pods.home), &pod)?;
        if pod.host_ifindex != 0 {
            self.maps.guarded.remove(&pod.host_ifindex)?;
        }
        if pod.cookie != 0 {
            let leaving = Pod {
                flags: pod.flags | pod_flag::INBOUND_ONLY,
                ..pod
            };
            self.maps.set_pod(slot, &leaving)?;
        }
        steering::detach(&self.pin_dir, cookie);
        self.maps.pod_by_cookie.remove(&cookie.0)?;
        (0..LISTENERS_PER_POD)
            .for_each(|role| self.maps.clear_listener(slot * LISTENERS_PER_POD + role));
        pod::clear_exclusions(&self.maps, slot)?;
        self.write_probe_ports(&pod, &[])?;
        self.maps.set_pod(slot, &Pod::default())?;
        pods.slots.remove(&cookie);
        Ok(())
    }

    fn write_probe_ports(&self, pod: &Pod, ports: &[u16]) -> Result<(), MapError> {
        let table = &self.maps.probe_ports;
        let own = |addr| addr != [0; 4] && (addr == pod.v4 || addr == pod.v6);
        table.remove_where(|key| own(key.addr) && !ports.contains(&key.port))?;
        for addr in [pod.v4, pod.v6].into_iter().filter(|addr| own(*addr)) {
            for &port in ports {
                table.insert(
                    &ProbeKey {
                        addr,
                        port,
                        reserved: 0,
                    },
                    &1,
                )?;
            }
        }
        Ok(())
    }
}

/// Makes the pin directory, and refuses maps of another version.
fn prepare(pin_dir: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(pin_dir).map_err(opening(pin_dir))?;
    let stat = rustix::fs::statfs(pin_dir).map_err(|errno| opening(pin_dir)(errno.into()))?;
    if stat.f_type as i64 != BPFFS_MAGIC {
        return Err(LoadError::NotBpffs(pin_dir.to_owned()));
    }
    let Ok(maps) = Maps::open(pin_dir) else {
        return Ok(());
    };
    match maps.config()?.version {
        // Zero: an earlier run died before it wrote anything.
        0 | ABI_VERSION => Ok(()),
        found => Err(LoadError::OtherVersion {
            pin_dir: pin_dir.to_owned(),
            found,
            wanted: ABI_VERSION,
        }),
    }
}

fn configure(maps: &Maps, cfg: &KernelConfig) -> Result<(), LoadError> {
    Ok(maps.set_config(Config {
        agent_cgroup: cfg.agent_cgroup_id,
        host_cookie: cfg.host_netns_cookie,
        kubelet_cgroups: kubelets(&cfg.kubelet_cgroup_ids)?,
        earlier_agent_cgroup: cfg.earlier_agent_cgroup_id.unwrap_or(0),
        version: ABI_VERSION,
        // What an earlier run could not put in is not put in by having forgotten it.
        flags: maps.config()?.flags,
    })?)
}

/// Maps that an earlier run has pinned are used as they are.
fn note_sizes(maps: &Maps, wanted: &MapSizes) {
    if maps.pods_max() != wanted.pods {
        tracing::warn!(
            pods = maps.pods_max(),
            wanted = wanted.pods,
            "the pinned maps keep their sizes until they are removed"
        );
    }
}

/// What is behind these locks is whole at every moment, or lies in the kernel.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kubelets(ids: &[u64]) -> Result<[u64; KUBELET_CGROUPS], LoadError> {
    let mut places = [0; KUBELET_CGROUPS];
    let (got, wanted) = (ids.len(), KUBELET_CGROUPS);
    let taken = places
        .get_mut(..got)
        .ok_or(LoadError::TooManyKubelets { got, wanted })?;
    taken.copy_from_slice(ids);
    Ok(places)
}

fn occupied(maps: &Maps) -> impl Iterator<Item = (u32, Pod)> {
    (0..maps.pods_max())
        .filter_map(|slot| Some((slot, maps.pod(slot).ok()?)))
        .filter(|(_, pod)| pod.cookie != 0)
}

fn unguard(pin_dir: &Path, host: &Netns, pod: &Pod) -> Result<(), AttachError> {
    let ifindex = pod.host_ifindex;
    if ifindex == 0 {
        return Ok(());
    }
    let pin = guard_pin(pin_dir, NetnsCookie(pod.cookie));
    guard::detach(host, ifindex, pod::qdisc_of(pod), &pin)
        .map_err(|source| AttachError::Guard { ifindex, source })
}

fn guard_pin(pin_dir: &Path, cookie: NetnsCookie) -> PathBuf {
    pin_dir.join(format!("guard_{cookie}"))
}

fn opening(path: &Path) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_owned();
    |source| LoadError::Open { path, source }
}

#[expect(
    dead_code,
    reason = "asserts at compile time that any thread may use the kernel side"
)]
fn is_shared(kernel: &Kernel) -> &(dyn Send + Sync) {
    kernel
}
