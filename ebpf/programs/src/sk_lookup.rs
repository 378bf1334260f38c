//! `sk_lookup`: who gets a connection that enters an enrolled pod's namespace.
//!
//! Loaded once per pod with the pod's slot built in: the context carries no namespace, and an
//! address alone could be another pod's that somebody added here. A missing listener drops (the
//! client gets a reset): plaintext is never handed to the application by accident.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup, sk_action};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use karst_ebpf_abi::{
    Address, ClientKey, Counter, Direction, HBONE_PORT, LISTENERS_PER_POD, ListenerRole, Pod,
    Tuple, pod_flag,
};

use crate::maps::{APPROVED, CONFIG, LISTENERS, ORIG_DST, PODS, count, is_excluded};
use crate::parse::{field, is_listener, is_loopback, is_own, mapped, words};

const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;
const AF_INET: u32 = 2;
const TCP: u32 = 6;

/// The pod this copy of the program serves; the loader writes it before loading.
#[unsafe(no_mangle)]
static SLOT: u32 = u32::MAX;

/// The ends of a connection, from the pod's side.
struct Ends {
    local: Address,
    remote: Address,
    local_port: u16,
    remote_port: u16,
}

#[sk_lookup]
pub fn karst_sk_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: a read-only global; volatile, as the loader patches the section.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    let Some(pod) = PODS.get(slot) else {
        return DROP;
    };
    // SAFETY: the kernel's context, valid while the program runs.
    let lookup = unsafe { &*ctx.lookup };
    let ends = ends(lookup);
    if field!(lookup.protocol) != TCP {
        return datagram(pod, &ends);
    }
    if pod.cookie == 0 {
        return DROP;
    }
    if is_loopback(&ends.remote) || is_loopback(&ends.local) {
        return itself(pod, &ends);
    }
    if !is_own(pod, &ends.local) {
        return refused(Counter::ForeignLocal);
    }
    if is_own(pod, &ends.remote) {
        return from_pod(&ctx, slot, pod, &ends);
    }
    from_outside(&ctx, slot, pod, &ends)
}

/// UDP passes; the agent's DNS socket answers its own pod only.
#[inline(always)]
fn datagram(pod: &Pod, ends: &Ends) -> u32 {
    let dns = pod.dns_udp_port != 0 && ends.local_port == pod.dns_udp_port;
    if dns && !is_own(pod, &ends.remote) && !is_loopback(&ends.remote) {
        return refused(Counter::ListenerDialled);
    }
    PASS
}

/// The pod talks to itself, but never to a listener.
#[inline(always)]
fn itself(pod: &Pod, ends: &Ends) -> u32 {
    if is_listener(pod, ends.local_port) {
        return refused(Counter::ListenerDialled);
    }
    PASS
}

/// From the pod's own address: a captured connection, or the pod talking to itself.
#[inline(always)]
fn from_pod(ctx: &SkLookupContext, slot: u32, pod: &Pod, ends: &Ends) -> u32 {
    if ends.local_port != pod.outbound_port || pod.outbound_port == 0 {
        return itself(pod, ends);
    }
    let client = ClientKey {
        cookie: pod.cookie,
        addr: ends.remote,
        port: ends.remote_port,
        reserved: [0; 3],
    };
    if ORIG_DST.get_ptr(client).is_none() {
        return refused(Counter::OrigDstMissing);
    }
    assign(ctx, slot, ListenerRole::Outbound)
}

#[inline(always)]
fn from_outside(ctx: &SkLookupContext, slot: u32, pod: &Pod, ends: &Ends) -> u32 {
    if ends.local_port == HBONE_PORT {
        count(Counter::InboundHbone);
        return assign(ctx, slot, ListenerRole::Hbone);
    }
    if pod.flags & pod_flag::PROBES != 0 && is_approved(ends) {
        count(Counter::InboundApproved);
        return PASS;
    }
    if is_excluded(slot, pod, Direction::Inbound, ends.local_port, &ends.remote) {
        return itself(pod, ends);
    }
    count(Counter::InboundPlain);
    assign(ctx, slot, ListenerRole::Inbound)
}

/// Whether the node itself (the kubelet) announced this connection, and not too long ago.
#[inline(always)]
fn is_approved(ends: &Ends) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    let tuple = Tuple {
        cookie: config.host_cookie,
        src: ends.remote,
        dst: ends.local,
        src_port: ends.remote_port,
        dst_port: ends.local_port,
        reserved: 0,
    };
    // SAFETY: removed only when this connection is established or given up.
    let approval = unsafe { APPROVED.get(&tuple) };
    // SAFETY: no arguments.
    approval.is_some_and(|approval| approval.expires_ns > unsafe { bpf_ktime_get_ns() })
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, slot: u32, role: ListenerRole) -> u32 {
    let at = slot * LISTENERS_PER_POD + role as u32;
    match LISTENERS.redirect_sk_lookup(ctx, at, BPF_SK_LOOKUP_F_NO_REUSEPORT.into()) {
        Ok(()) => PASS,
        Err(_) => refused(Counter::ListenerMissing),
    }
}

#[inline(always)]
fn refused(why: Counter) -> u32 {
    count(why);
    DROP
}

#[inline(always)]
fn ends(lookup: &bpf_sk_lookup) -> Ends {
    let (local4, remote4) = (field!(lookup.local_ip4), field!(lookup.remote_ip4));
    let (local6, remote6) = (words!(lookup.local_ip6), words!(lookup.remote_ip6));
    let (local, remote) = if field!(lookup.family) == AF_INET {
        (mapped(local4), mapped(remote4))
    } else {
        (local6, remote6)
    };
    Ends {
        local,
        remote,
        local_port: field!(lookup.local_port) as u16,
        remote_port: u16::from_be(field!(lookup.remote_port)),
    }
}
