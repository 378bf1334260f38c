//! What kernel programs and user space both read and write: map keys and values, sizes asserted.
//!
//! Every struct is `repr(C)` without padding, so that hashing a key hashes only named bytes.
//! Addresses are IPv6 words in network order, IPv4 as v4-mapped; ports are in host order.
#![no_std]

mod config;
mod counter;
mod flow;
mod pod;

pub use config::{ABI_VERSION, Config, KUBELET_CGROUPS, config_flag};
pub use counter::Counter;
pub use flow::{Approval, ClientKey, Dialled, FactKind, ProbeKey, SocketFact, Tuple};
pub use pod::{
    Address, Direction, ExcludedCidr, ExcludedPort, LISTENERS_PER_POD, ListenerRole, MAX_PODS, Pod,
    pod_flag,
};

/// The HBONE port of every enrolled pod.
pub const HBONE_PORT: u16 = 15008;
/// Destinations of one node's map.
pub const MAX_DESTINATIONS: u32 = 262_144;
/// Connections between `connect` and `accept`, and approved tuples not yet used.
pub const MAX_PENDING: u32 = 65_536;
/// Excluded ports, excluded CIDRs, probe ports: each, over all pods.
pub const MAX_EXCLUSIONS: u32 = 65_536;
/// How long an approval serves: longer than the kernel retries a SYN by default (127 s).
pub const APPROVAL_NS: u64 = 180_000_000_000;

/// Declares that a struct is plain data of exactly this size, without padding or pointers.
macro_rules! plain {
    ($($name:ty = $size:literal),+ $(,)?) => {
        $(
            const _: () = assert!(core::mem::size_of::<$name>() == $size);
            #[cfg(feature = "user")]
            #[expect(unsafe_code, reason = "aya::Pod promises what this macro is for")]
            // SAFETY: `repr(C)` integers only, no padding: the sizes above are the fields' sums.
            unsafe impl aya::Pod for $name {}
        )+
    };
}
pub(crate) use plain;
