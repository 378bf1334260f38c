//! The kernel side as the agent sees it: loaded once, pods attached and detached, flows looked up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use karst_ebpf_abi::{
    ABI_VERSION, ClientKey, Config, Counter, KUBELET_CGROUPS, LISTENERS_PER_POD, ListenerRole,
    MAX_PODS, Pod, ProbeKey, pod_flag,
};
use karst_netns::{Netns, NetnsCookie};

use crate::address::{dialled, ip, socket_addr, words};
use crate::guard::Qdisc;
use crate::maps::Maps;
use crate::pod::{self, AttachedPod, PodAttachment};
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
}

/// The loaded programs of one agent. They stay in the kernel when this value is dropped.
pub struct Kernel {
    pin_dir: PathBuf,
    maps: Maps,
    pods: Mutex<Pods>,
}

/// What attaching and detaching change, one at a time.
struct Pods {
    /// Holds the guard, to be put on further interfaces.
    ebpf: Ebpf,
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
        let mut ebpf = object::open(&cfg.pin_dir, None)?;
        let maps = Maps::open(&cfg.pin_dir)?;
        configure(&maps, cfg)?;
        guard::load(&mut ebpf)?;
        cgroup_hooks::attach(&mut ebpf, &cfg.pin_dir, &cgroup)?;
        let pods = Mutex::new(Pods {
            ebpf,
            hosts: BTreeMap::new(),
            home,
        });
        let kernel = Self {
            pin_dir: cfg.pin_dir.clone(),
            maps,
            pods,
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
        let slot = self.slot_for(pod.cookie)?;
        self.attach_at(&mut pods, slot, pod).inspect_err(|_| {
            let _best_effort = self.detach_at(&mut pods, slot, pod.cookie);
        })
    }

    /// Stops to capture what the pod dials, and takes its guard off; what arrives is served as before. The first of
    /// three steps that let a pod go while others still believe that it is captured; `attach_pod` takes it back.
    pub fn release_outbound(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        let mut pods = self.pods();
        let Some(slot) = self.find(cookie) else {
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
        match self.find(cookie) {
            Some(slot) => self.detach_at(&mut pods, slot, cookie),
            None => Ok(()),
        }
    }

    /// The pods in the maps, those of an earlier run included.
    pub fn attached(&self) -> Vec<AttachedPod> {
        occupied(&self.maps)
            .map(|(_, pod)| AttachedPod::of(&pod))
            .collect()
    }

    /// Adds and removes mesh destinations: pods and service addresses whose TCP goes to the agent.
    pub fn set_destinations(&self, add: &[IpAddr], remove: &[IpAddr]) -> Result<(), MapError> {
        let table = &self.maps.destinations;
        add.iter()
            .try_for_each(|addr| table.insert(&words(*addr), &MESH))?;
        remove
            .iter()
            .try_for_each(|addr| table.remove(&words(*addr)))
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

    /// Says, before the agent dials an application, whom the application is to see as its peer.
    ///
    /// `socket_cookie` is that of the socket about to connect (`karst_netns::socket_cookie`). The
    /// peer must be of the address family that is dialled; another is not shown.
    pub fn announce_dial(&self, socket_cookie: u64, show_peer: SocketAddr) -> Result<(), MapError> {
        self.maps.announce(socket_cookie, dialled(show_peer))
    }

    /// Replaces the ports of an attached pod that the kubelet may reach.
    pub fn set_probe_ports(&self, cookie: NetnsCookie, ports: &[u16]) -> Result<(), MapError> {
        let _one_at_a_time = self.pods();
        let slot = self.find(cookie).ok_or(MapError::NotAttached(cookie))?;
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
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives pods of an earlier run the programs of this one.
    fn renew_pods(&self) -> Result<(), LoadError> {
        let mut pods = self.pods();
        for (slot, pod) in occupied(&self.maps) {
            let cookie = NetnsCookie(pod.cookie);
            let Pods { ebpf, home, .. } = &mut *pods;
            let renewed = steering::attach(&self.pin_dir, slot, cookie, None);
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

    fn find(&self, cookie: NetnsCookie) -> Option<u32> {
        let mut pods = occupied(&self.maps);
        pods.find(|(_, pod)| pod.cookie == cookie.0)
            .map(|(slot, _)| slot)
    }

    fn slot_for(&self, cookie: NetnsCookie) -> Result<u32, AttachError> {
        let free =
            || (0..MAX_PODS).find(|slot| self.maps.pod(*slot).is_ok_and(|pod| pod.cookie == 0));
        self.find(cookie)
            .or_else(free)
            .ok_or(AttachError::Full(MAX_PODS))
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
        steering::attach(&self.pin_dir, slot, pod.cookie, Some(pod.netns))
            .map_err(|source| AttachError::Steering(Box::new(source)))?;
        self.maps.pod_by_cookie.insert(&pod.cookie.0, &slot)?;
        if opens {
            entry.flags &= !pod_flag::INBOUND_ONLY;
            self.maps.set_pod(slot, &entry)?;
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
        Ok(self.maps.set_pod(slot, &Pod::default())?)
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
        reserved: 0,
    })?)
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
    (0..MAX_PODS)
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
