//! Every map, and the few lookups that several hooks share.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap, lpm_trie};
use karst_ebpf_abi::{
    Address, Approval, ClientKey, Config, Counter, Dialled, Direction, ExcludedCidr, ExcludedPort,
    LISTENERS_PER_POD, MAX_DESTINATIONS, MAX_EXCLUSIONS, MAX_PENDING, MAX_PODS, Pod, ProbeKey,
    SocketFact, Tuple, config_flag, pod_flag,
};

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);
#[map]
pub static PODS: Array<Pod> = Array::pinned(MAX_PODS, 0);
#[map]
pub static POD_BY_COOKIE: HashMap<u64, u32> = HashMap::pinned(MAX_PODS, 0);
#[map]
pub static GUARDED: HashMap<u32, u32> = HashMap::pinned(MAX_PODS, 0);
#[map]
pub static DESTINATIONS: HashMap<Address, u32> =
    HashMap::pinned(MAX_DESTINATIONS, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDED_PORTS: HashMap<ExcludedPort, u32> =
    HashMap::pinned(MAX_EXCLUSIONS, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<ExcludedCidr, u32> =
    LpmTrie::pinned(MAX_EXCLUSIONS, BPF_F_NO_PREALLOC);
#[map]
pub static PROBE_PORTS: HashMap<ProbeKey, u32> = HashMap::pinned(MAX_EXCLUSIONS, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENERS: SockMap = SockMap::pinned(MAX_PODS * LISTENERS_PER_POD, 0);
#[map]
pub static ORIG_DST: HashMap<ClientKey, Dialled> = HashMap::pinned(MAX_PENDING, 0);
#[map]
pub static APPROVED: HashMap<Tuple, Approval> = HashMap::pinned(MAX_PENDING, 0);
#[map]
pub static DIAL_INTENT: LruHashMap<u64, Dialled> = LruHashMap::pinned(MAX_PENDING, 0);
/// Freed by the kernel with its socket; pinned by the loader, as BTF maps name no pin.
#[btf_map]
pub static SOCKETS: SkStorage<SocketFact> = SkStorage::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the kernel gave this CPU's own element, alive while the program runs.
        unsafe { *value += 1 };
    }
}

/// Whether the caller is the agent, or the one that it takes over from.
#[inline(always)]
pub fn is_agent() -> bool {
    // SAFETY: no arguments.
    let group = unsafe { bpf_get_current_cgroup_id() };
    CONFIG.get(0).is_some_and(|config| {
        group != 0 && (group == config.agent_cgroup || group == config.earlier_agent_cgroup)
    })
}

/// The enrolled pod of a namespace, with its slot.
#[inline(always)]
pub fn pod_of(cookie: u64) -> Option<(u32, &'static Pod)> {
    // SAFETY: a reader may see a slot that user space is freeing; its fields are checked by cookie.
    let slot = *unsafe { POD_BY_COOKIE.get(cookie) }?;
    let pod = PODS.get(slot)?;
    (pod.cookie == cookie).then_some((slot, pod))
}

/// Whether an address is a mesh destination for the pod, or may be one that the map has no room for.
#[inline(always)]
pub fn is_destination(pod: &Pod, addr: &Address) -> bool {
    pod.flags & pod_flag::CAPTURE_ALL != 0
        || DESTINATIONS.get_ptr(addr).is_some()
        || CONFIG
            .get(0)
            .is_some_and(|config| config.flags & config_flag::CAPTURE_ALL != 0)
}

/// Whether the pod's owner excluded this port, or this remote address.
#[inline(always)]
pub fn is_excluded(slot: u32, pod: &Pod, way: Direction, port: u16, remote: &Address) -> bool {
    if pod.flags & pod_flag::EXCLUDES == 0 {
        return false;
    }
    let direction = way as u16;
    let by_port = ExcludedPort {
        slot,
        direction,
        port,
    };
    let by_cidr = ExcludedCidr {
        slot,
        direction: direction.into(),
        addr: *remote,
    };
    EXCLUDED_PORTS.get_ptr(by_port).is_some()
        || EXCLUDED_CIDRS
            .get(lpm_trie::Key::new(192, by_cidr))
            .is_some()
}

/// The fact stored with a socket, if any.
///
/// `sk` must come from the program's context: the verifier accepts nothing else.
#[inline(always)]
pub fn fact_of(sk: *mut c_void) -> Option<&'static mut SocketFact> {
    storage(sk, core::ptr::null_mut(), 0)
}

/// Stores a fact with a socket; `None` when the kernel has no room, which is counted.
#[inline(always)]
pub fn remember(sk: *mut c_void, mut fact: SocketFact) -> Option<()> {
    let value = (&raw mut fact).cast();
    match storage(sk, value, BPF_SK_STORAGE_GET_F_CREATE.into()) {
        Some(stored) => {
            *stored = fact;
            Some(())
        }
        None => {
            count(Counter::FactFull);
            None
        }
    }
}

#[inline(always)]
fn storage(sk: *mut c_void, value: *mut c_void, flags: u64) -> Option<&'static mut SocketFact> {
    if sk.is_null() {
        return None;
    }
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the helper checks both pointers, and gives null or an element that lives as long as
    // the socket, which outlives the program's run.
    unsafe {
        bpf_sk_storage_get(map, sk, value, flags)
            .cast::<SocketFact>()
            .as_mut()
    }
}
