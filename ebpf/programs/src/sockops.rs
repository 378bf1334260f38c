//! `sock_ops`: what must be in the maps before a SYN leaves, and what must go afterwards.
//!
//! ```text
//!   TCP_CONNECT_CB ──> ORIG_DST (captured) or APPROVED (agent, kubelet, excluded)
//!   ACTIVE_ESTABLISHED ──> an approval that only the guard needed is spent
//!   PASSIVE_ESTABLISHED ──> the application's socket takes the peer to show; approval spent
//!   STATE_CB close ──> whatever was not used; but ORIG_DST of a client that came and went stays for the agent, which is
//!                      about to accept what the client left behind
//! ```

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use karst_ebpf_abi::{
    APPROVAL_NS, Address, Approval, ClientKey, Counter, FactKind, SocketFact, Tuple, pod_flag,
};

use crate::connect::fact;
use crate::maps::{APPROVED, CONFIG, ORIG_DST, count, fact_of, pod_of, remember};
use crate::parse::{field, is_own, is_v4, mapped, words};

const AF_INET: u32 = 2;

#[sock_ops]
pub fn karst_sock_ops(ctx: SockOpsContext) -> u32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let ops = unsafe { &*ctx.ops };
    match field!(ops.op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx, ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx, ops),
        BPF_SOCK_OPS_STATE_CB => changed(&ctx, ops),
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext, ops: &bpf_sock_ops) {
    let Some(fact) = fact_of(socket(ops)) else {
        return;
    };
    if fact.kind == FactKind::Captured as u32 || fact.kind == FactKind::Dns as u32 {
        if ORIG_DST
            .insert(client_key(ops, fact.cookie), fact.shown, 0)
            .is_err()
        {
            count(Counter::OrigDstFull);
        }
    } else if is_approving(fact) {
        approve(ops, fact);
    } else {
        return;
    }
    let _unsupported =
        ctx.set_cb_flags((field!(ops.bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

#[inline(always)]
fn approve(ops: &bpf_sock_ops, fact: &SocketFact) {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let approval = Approval {
        expires_ns: now + APPROVAL_NS,
        shown: fact.shown,
    };
    if APPROVED
        .insert(outgoing(ops, fact.cookie), approval, 0)
        .is_err()
    {
        count(Counter::ApprovedFull);
    }
}

#[inline(always)]
fn connected(ops: &bpf_sock_ops) {
    let Some(fact) = fact_of(socket(ops)) else {
        return;
    };
    // The accepting socket still needs an announced peer; a probe still needs to be let in.
    let only_guard = fact.kind == FactKind::Excluded as u32
        || (fact.kind == FactKind::Agent as u32 && fact.shown.port == 0);
    if only_guard {
        let _absent = APPROVED.remove(outgoing(ops, fact.cookie));
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext, ops: &bpf_sock_ops) {
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let Some((_, pod)) = pod_of(cookie) else {
        return;
    };
    let caller = if is_own(pod, &remote(ops)) {
        cookie
    } else if pod.flags & pod_flag::PROBES != 0 {
        CONFIG.get(0).map_or(0, |config| config.host_cookie)
    } else {
        return;
    };
    let tuple = incoming(ops, caller);
    // SAFETY: one connection, one handshake: nobody else removes this entry meanwhile.
    let Some(shown) = unsafe { APPROVED.get(&tuple) }.map(|approval| approval.shown) else {
        return;
    };
    let _absent = APPROVED.remove(&tuple);
    if shown.port != 0 {
        let _counted = remember(socket(ops), fact(FactKind::Accepted, cookie, shown));
    }
}

#[inline(always)]
fn changed(ctx: &SockOpsContext, ops: &bpf_sock_ops) {
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    let Some(fact) = fact_of(socket(ops)) else {
        return;
    };
    if is_approving(fact) {
        let _absent = APPROVED.remove(outgoing(ops, fact.cookie));
    } else if ctx.arg(0) == BPF_TCP_SYN_SENT {
        let _absent = ORIG_DST.remove(client_key(ops, fact.cookie));
    } else if let Some(pending) = ORIG_DST.get_ptr_mut(client_key(ops, fact.cookie)) {
        // SAFETY: no arguments.
        let now_ms = unsafe { bpf_ktime_get_ns() } / 1_000_000;
        // SAFETY: the kernel's element, alive while the program runs; a client's port has one socket.
        unsafe { (*pending).left_ms = (now_ms as u32).max(1) };
    }
}

#[inline(always)]
fn is_approving(fact: &SocketFact) -> bool {
    fact.kind == FactKind::Agent as u32
        || fact.kind == FactKind::Probe as u32
        || fact.kind == FactKind::Excluded as u32
}

#[inline(always)]
fn client_key(ops: &bpf_sock_ops, cookie: u64) -> ClientKey {
    ClientKey {
        cookie,
        addr: local(ops),
        port: field!(ops.local_port) as u16,
        reserved: [0; 3],
    }
}

#[inline(always)]
fn outgoing(ops: &bpf_sock_ops, cookie: u64) -> Tuple {
    Tuple {
        cookie,
        src: local(ops),
        dst: remote(ops),
        src_port: field!(ops.local_port) as u16,
        dst_port: remote_port(ops),
        reserved: 0,
    }
}

/// The same connection as the caller sees it, from the accepting side.
#[inline(always)]
fn incoming(ops: &bpf_sock_ops, cookie: u64) -> Tuple {
    Tuple {
        cookie,
        src: remote(ops),
        dst: local(ops),
        src_port: remote_port(ops),
        dst_port: field!(ops.local_port) as u16,
        reserved: 0,
    }
}

#[inline(always)]
fn remote_port(ops: &bpf_sock_ops) -> u16 {
    u32::from_be(field!(ops.remote_port)) as u16
}

#[inline(always)]
fn remote(ops: &bpf_sock_ops) -> Address {
    let v4 = field!(ops.remote_ip4);
    let v6 = words!(ops.remote_ip6);
    if field!(ops.family) == AF_INET {
        mapped(v4)
    } else {
        v6
    }
}

/// The local address; of a socket that carries IPv4 in an IPv6 family, the IPv4 one.
#[inline(always)]
fn local(ops: &bpf_sock_ops) -> Address {
    let v4 = field!(ops.local_ip4);
    let v6 = words!(ops.local_ip6);
    if is_v4(&remote(ops)) { mapped(v4) } else { v6 }
}

#[inline(always)]
fn socket(ops: &bpf_sock_ops) -> *mut core::ffi::c_void {
    field!(ops.__bindgen_anon_2.sk).cast()
}
