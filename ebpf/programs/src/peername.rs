//! `cgroup/getpeername4`, `getpeername6`: a client sees the address it dialled, a server the real
//! client, neither the agent. The hook also runs for `accept`.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use karst_ebpf_abi::{Dialled, FactKind};

use crate::connect::{set_user_ip6, socket};
use crate::maps::fact_of;
use crate::parse::is_v4;

#[cgroup_sock_addr(getpeername4)]
pub fn karst_getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    if let Some(peer) = shown(sa)
        && is_v4(&peer.addr)
    {
        sa.user_ip4 = peer.addr[3];
        sa.user_port = u32::from(peer.port.to_be());
    }
    1
}

#[cgroup_sock_addr(getpeername6)]
pub fn karst_getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    if let Some(peer) = shown(sa) {
        set_user_ip6(sa, &peer.addr);
        sa.user_port = u32::from(peer.port.to_be());
    }
    1
}

#[inline(always)]
fn shown(sa: &bpf_sock_addr) -> Option<Dialled> {
    let fact = fact_of(socket(sa))?;
    let kind = fact.kind;
    let shows = kind == FactKind::Captured as u32
        || kind == FactKind::Accepted as u32
        || kind == FactKind::Dns as u32;
    (shows && fact.shown.port != 0).then_some(fact.shown)
}
