//! Addresses and ports out of the kernel's contexts: byte orders, v4-mapped, loopback.

use karst_ebpf_abi::{Address, Dialled, Pod};

/// Reads a field of the kernel's context, at its own constant offset.
///
/// Volatile, because the compiler otherwise merges two reads into one at a computed offset, which
/// the verifier refuses ("dereference of modified ctx ptr").
macro_rules! field {
    ($place:expr) => {
        // SAFETY: a field of a live context, read in place.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}
pub(crate) use field;

/// Reads an IPv6 address out of the kernel's context. Read before branching on the family: reads
/// in two branches are merged as well.
macro_rules! words {
    ($place:expr) => {
        [
            field!($place[0]),
            field!($place[1]),
            field!($place[2]),
            field!($place[3]),
        ]
    };
}
pub(crate) use words;

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address, in network order, as the maps hold it.
#[inline(always)]
pub fn mapped(v4: u32) -> Address {
    [0, 0, MAPPED, v4]
}

#[inline(always)]
pub fn is_v4(addr: &Address) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == MAPPED
}

#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
}

#[inline(always)]
pub fn is_unset(addr: &Address) -> bool {
    addr[0] | addr[1] | addr[2] | addr[3] == 0
}

/// 127.0.0.0/8, ::1, and the unspecified addresses, which a connect turns into loopback.
#[inline(always)]
pub fn is_loopback(addr: &Address) -> bool {
    if is_v4(addr) {
        return u32::from_be(addr[3]) >> 24 == 127 || addr[3] == 0;
    }
    addr[0] | addr[1] | addr[2] == 0 && u32::from_be(addr[3]) <= 1
}

/// The pod's own address of the same family as `like`; `None` when it has none.
#[inline(always)]
pub fn own_like<'a>(pod: &'a Pod, like: &Address) -> Option<&'a Address> {
    let own = if is_v4(like) { &pod.v4 } else { &pod.v6 };
    (!is_unset(own)).then_some(own)
}

#[inline(always)]
pub fn is_own(pod: &Pod, addr: &Address) -> bool {
    same(addr, &pod.v4) || (same(addr, &pod.v6) && !is_unset(addr))
}

/// Whether a port is one of the listeners that only steering may reach.
#[inline(always)]
pub fn is_listener(pod: &Pod, port: u16) -> bool {
    port != 0
        && (port == pod.outbound_port
            || port == pod.inbound_port
            || port == pod.hbone_port
            || port == karst_ebpf_abi::HBONE_PORT)
}

#[inline(always)]
pub fn dialled(addr: Address, port: u16) -> Dialled {
    Dialled {
        addr,
        port,
        reserved: 0,
        left_ms: 0,
    }
}
