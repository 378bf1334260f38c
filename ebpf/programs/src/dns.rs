//! DNS of enrolled pods: connected sockets by way of `connect`, others by sendmsg and recvmsg.
//!
//! With no DNS listener in the pod's namespace the query is left alone and goes to the resolver
//! that the pod asked, so that names outside the mesh resolve while the agent is away.

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_addr, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use karst_ebpf_abi::{Address, Counter, Dialled, FactKind, Pod, pod_flag};

use crate::connect::{Verdict, cookie_of, fact, pass, port_of, set_user_ip6, socket, user_ip6};
use crate::maps::{count, fact_of, is_agent, pod_of, remember};
use crate::parse::{dialled, field, is_loopback, is_own, is_v4, mapped, own_like, same};

/// The port of every resolver.
pub const PORT: u16 = 53;

#[cgroup_sock_addr(sendmsg4)]
pub fn karst_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let dst = dialled(mapped(field!(sa.user_ip4)), port_of(sa));
    if let Verdict::Rewrite(to, port) = unconnected(&ctx, sa, &dst) {
        sa.user_ip4 = to[3];
        sa.user_port = u32::from(port.to_be());
    }
    1
}

#[cgroup_sock_addr(sendmsg6)]
pub fn karst_sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let dst = dialled(user_ip6(sa), port_of(sa));
    if let Verdict::Rewrite(to, port) = unconnected(&ctx, sa, &dst) {
        set_user_ip6(sa, &to);
        sa.user_port = u32::from(port.to_be());
    }
    1
}

#[cgroup_sock_addr(recvmsg4)]
pub fn karst_recvmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let from = dialled(mapped(field!(sa.user_ip4)), port_of(sa));
    if let Some(resolver) = answered(sa, &from) {
        sa.user_ip4 = resolver.addr[3];
        sa.user_port = u32::from(resolver.port.to_be());
    }
    1
}

#[cgroup_sock_addr(recvmsg6)]
pub fn karst_recvmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let sa = unsafe { &mut *ctx.sock_addr };
    let from = dialled(user_ip6(sa), port_of(sa));
    if let Some(resolver) = answered(sa, &from) {
        set_user_ip6(sa, &resolver.addr);
        sa.user_port = u32::from(resolver.port.to_be());
    }
    1
}

/// A UDP socket connects to port 53.
#[inline(always)]
pub fn udp(ctx: &SockAddrContext, sa: &bpf_sock_addr, pod: &Pod, dst: &Dialled) -> Verdict {
    if is_loopback(&dst.addr) || is_own(pod, &dst.addr) {
        return pass(sa);
    }
    steer(ctx, sa, pod, dst, Transport::Udp)
}

/// A TCP socket connects to port 53.
#[inline(always)]
pub fn tcp(ctx: &SockAddrContext, sa: &bpf_sock_addr, pod: &Pod, dst: &Dialled) -> Verdict {
    steer(ctx, sa, pod, dst, Transport::Tcp)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

#[inline(always)]
fn unconnected(ctx: &SockAddrContext, sa: &bpf_sock_addr, dst: &Dialled) -> Verdict {
    if dst.port != PORT {
        return Verdict::Allow;
    }
    match pod_of(cookie_of(ctx)) {
        Some((_, pod)) => udp(ctx, sa, pod, dst),
        None => Verdict::Allow,
    }
}

#[inline(always)]
fn steer(
    ctx: &SockAddrContext,
    sa: &bpf_sock_addr,
    pod: &Pod,
    dst: &Dialled,
    transport: Transport,
) -> Verdict {
    let port = match transport {
        Transport::Udp => pod.dns_udp_port,
        Transport::Tcp => pod.dns_tcp_port,
    };
    let Some(own) = own_like(pod, &dst.addr) else {
        return pass(sa);
    };
    let steered = pod.flags & (pod_flag::DNS | pod_flag::INBOUND_ONLY) == pod_flag::DNS;
    if !steered || port == 0 || is_agent() {
        return pass(sa);
    }
    if !listens(ctx, own, port, transport) {
        return pass(sa);
    }
    match remember(socket(sa), fact(FactKind::Dns, pod.cookie, *dst)) {
        Some(()) => {
            count(Counter::Dns);
            Verdict::Rewrite(*own, port)
        }
        None => Verdict::Allow,
    }
}

/// Whether the agent's DNS socket is there, in the namespace of the caller.
#[inline(always)]
fn listens(ctx: &SockAddrContext, own: &Address, port: u16, transport: Transport) -> bool {
    // SAFETY: all-zero is a valid value of this union of integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_v4(own) {
        tuple.__bindgen_anon_1.ipv4.saddr = own[3];
        tuple.__bindgen_anon_1.ipv4.daddr = own[3];
        tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = *own;
        tuple.__bindgen_anon_1.ipv6.daddr = *own;
        tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        36
    };
    let at = &raw mut tuple;
    let here = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: context and tuple are valid, and `size` is that of the family filled in.
    let sk = unsafe {
        match transport {
            Transport::Udp => bpf_sk_lookup_udp(ctx.sock_addr.cast(), at, size, here, 0),
            Transport::Tcp => bpf_sk_lookup_tcp(ctx.sock_addr.cast(), at, size, here, 0),
        }
    };
    if sk.is_null() {
        return false;
    }
    // SAFETY: a socket that the lookup gave, released once.
    unsafe { bpf_sk_release(sk.cast()) };
    true
}

/// An answer that came from the agent: the resolver that the socket had asked.
#[inline(always)]
fn answered(sa: &bpf_sock_addr, from: &Dialled) -> Option<Dialled> {
    let fact = fact_of(socket(sa))?;
    if fact.kind != FactKind::Dns as u32 {
        return None;
    }
    let (_, pod) = pod_of(fact.cookie)?;
    let ours = from.port == pod.dns_udp_port
        && own_like(pod, &from.addr).is_some_and(|own| same(own, &from.addr));
    ours.then_some(fact.shown)
}
