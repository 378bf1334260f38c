//! `cgroup/connect4`, `connect6`: captures what an enrolled pod dials.
//!
//! TCP to a mesh destination goes to the agent's outbound listener at the pod's own address; the
//! dialled address stays with the socket. Port 53 goes to the agent's DNS while that is there.
//! Everything else, and every socket of a namespace that this agent does not know, is left alone.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use karst_ebpf_abi::{
    Address, Config, Counter, Dialled, Direction, FactKind, Pod, ProbeKey, SocketFact, pod_flag,
};

use crate::dns;
use crate::maps::{
    CONFIG, DIAL_INTENT, PROBE_PORTS, count, fact_of, is_agent, is_destination, is_excluded,
    pod_of, remember,
};
use crate::parse::{dialled, field, is_listener, is_loopback, is_own, mapped, own_like};

const TCP: u32 = 6;
const UDP: u32 = 17;

/// What becomes of a connect.
pub enum Verdict {
    Allow,
    Refuse,
    /// Goes to the pod's own address, at this port.
    Rewrite(Address, u16),
}

#[cgroup_sock_addr(connect4)]
pub fn karst_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let dst = dialled(mapped(field!(sa.user_ip4)), port_of(sa));
    match decide(&ctx, sa, &dst) {
        Verdict::Allow => 1,
        Verdict::Refuse => 0,
        Verdict::Rewrite(to, port) => {
            sa.user_ip4 = to[3];
            sa.user_port = u32::from(port.to_be());
            1
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn karst_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let dst = dialled(user_ip6(sa), port_of(sa));
    match decide(&ctx, sa, &dst) {
        Verdict::Allow => 1,
        Verdict::Refuse => 0,
        Verdict::Rewrite(to, port) => {
            set_user_ip6(sa, &to);
            sa.user_port = u32::from(port.to_be());
            1
        }
    }
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, sa: &bpf_sock_addr, dst: &Dialled) -> Verdict {
    let cookie = cookie_of(ctx);
    let Some((slot, pod)) = pod_of(cookie) else {
        return probe(sa, cookie, dst);
    };
    match field!(sa.protocol) {
        TCP => tcp(ctx, sa, slot, pod, dst),
        UDP if dst.port == dns::PORT => dns::udp(ctx, sa, pod, dst),
        _ => Verdict::Allow,
    }
}

#[inline(always)]
fn tcp(ctx: &SockAddrContext, sa: &bpf_sock_addr, slot: u32, pod: &Pod, dst: &Dialled) -> Verdict {
    if is_agent() {
        return agent(ctx, sa, pod);
    }
    if is_loopback(&dst.addr) || is_own(pod, &dst.addr) {
        return local(sa, pod, dst);
    }
    if pod.flags & pod_flag::INBOUND_ONLY != 0 {
        return pass(sa);
    }
    if dst.port == dns::PORT && pod.flags & pod_flag::DNS != 0 {
        return dns::tcp(ctx, sa, pod, dst);
    }
    if !is_destination(pod, &dst.addr) {
        return pass(sa);
    }
    if is_excluded(slot, pod, Direction::Outbound, dst.port, &dst.addr) {
        return mark(sa, FactKind::Excluded, pod.cookie, dialled([0; 4], 0));
    }
    capture(sa, pod, dst)
}

/// A mesh destination: to the outbound listener, or nowhere.
#[inline(always)]
fn capture(sa: &bpf_sock_addr, pod: &Pod, dst: &Dialled) -> Verdict {
    let Some(own) = own_like(pod, &dst.addr) else {
        return refuse(Counter::Refused);
    };
    count(Counter::Captured);
    match remember(socket(sa), fact(FactKind::Captured, pod.cookie, *dst)) {
        Some(()) => Verdict::Rewrite(*own, pod.outbound_port),
        None => Verdict::Refuse,
    }
}

/// The pod talks to itself: allowed, but not to the agent's listeners.
#[inline(always)]
fn local(sa: &bpf_sock_addr, pod: &Pod, dst: &Dialled) -> Verdict {
    if is_listener(pod, dst.port) {
        return refuse(Counter::ListenerDialled);
    }
    pass(sa)
}

/// The agent dials: approved, and the application sees the client that the agent announced.
#[inline(always)]
fn agent(ctx: &SockAddrContext, sa: &bpf_sock_addr, pod: &Pod) -> Verdict {
    // SAFETY: the helper takes the program's own context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    // SAFETY: only the agent writes this entry, before it calls connect.
    let shown = unsafe { DIAL_INTENT.get(socket) }.copied();
    if shown.is_some() {
        let _absent = DIAL_INTENT.remove(socket);
    }
    let shown = shown.unwrap_or(dialled([0; 4], 0));
    mark(sa, FactKind::Agent, pod.cookie, shown)
}

/// A socket of no enrolled pod: is it the kubelet, at a port that the destination declares?
#[inline(always)]
fn probe(sa: &bpf_sock_addr, cookie: u64, dst: &Dialled) -> Verdict {
    let Some(config) = CONFIG.get(0) else {
        return Verdict::Allow;
    };
    if cookie != config.host_cookie || field!(sa.protocol) != TCP || !is_kubelet(config) {
        return Verdict::Allow;
    }
    let key = ProbeKey {
        addr: dst.addr,
        port: dst.port,
        reserved: 0,
    };
    if PROBE_PORTS.get_ptr(key).is_none() {
        return pass(sa);
    }
    mark(sa, FactKind::Probe, cookie, dialled([0; 4], 0))
}

#[inline(always)]
fn is_kubelet(config: &Config) -> bool {
    // SAFETY: no arguments.
    let group = unsafe { bpf_get_current_cgroup_id() };
    let [a, b, c] = config.kubelet_cgroups;
    group != 0 && (group == a || group == b || group == c)
}

/// Leaves a connect alone, and forgets what an earlier connect of the same socket left.
#[inline(always)]
pub fn pass(sa: &bpf_sock_addr) -> Verdict {
    if let Some(stale) = fact_of(socket(sa)) {
        stale.kind = FactKind::None as u32;
    }
    Verdict::Allow
}

#[inline(always)]
fn refuse(why: Counter) -> Verdict {
    count(why);
    Verdict::Refuse
}

#[inline(always)]
fn mark(sa: &bpf_sock_addr, kind: FactKind, cookie: u64, shown: Dialled) -> Verdict {
    match remember(socket(sa), fact(kind, cookie, shown)) {
        Some(()) => Verdict::Allow,
        None => Verdict::Refuse,
    }
}

#[inline(always)]
pub fn fact(kind: FactKind, cookie: u64, shown: Dialled) -> SocketFact {
    SocketFact {
        kind: kind as u32,
        reserved: 0,
        cookie,
        shown,
    }
}

#[inline(always)]
pub fn socket(sa: &bpf_sock_addr) -> *mut core::ffi::c_void {
    field!(sa.__bindgen_anon_1.sk).cast()
}

#[inline(always)]
pub fn cookie_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
pub fn port_of(sa: &bpf_sock_addr) -> u16 {
    u16::from_be(field!(sa.user_port) as u16)
}

#[inline(always)]
pub fn user_ip6(sa: &bpf_sock_addr) -> Address {
    [
        sa.user_ip6[0],
        sa.user_ip6[1],
        sa.user_ip6[2],
        sa.user_ip6[3],
    ]
}

#[inline(always)]
pub fn set_user_ip6(sa: &mut bpf_sock_addr, to: &Address) {
    sa.user_ip6[0] = to[0];
    sa.user_ip6[1] = to[1];
    sa.user_ip6[2] = to[2];
    sa.user_ip6[3] = to[3];
}
