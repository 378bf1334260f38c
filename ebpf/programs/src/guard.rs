//! tc, on the host side of a pod's veth: what the socket hooks could be avoided with.
//!
//! Raw and packet sockets never pass `connect`. The guard drops a source address that is not the
//! pod's, a SYN to a mesh destination that nobody approved, and TCP that it cannot read.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use karst_ebpf_abi::{Address, Counter, Pod, Tuple};

use crate::maps::{APPROVED, GUARDED, PODS, count, is_destination};
use crate::parse::{is_unset, mapped, same};

const ETH: usize = 14;
const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;
const NO_NEXT: u8 = 59;
const DEST_OPTS: u8 = 60;
/// Extension headers that are read; a longer chain is dropped.
const MAX_EXTENSIONS: u32 = 4;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What the guard needs of a packet, or why it goes no further.
type Checked<T> = Result<T, Counter>;

#[classifier]
pub fn karst_guard(ctx: TcContext) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: written before the filter is attached, removed after it is detached.
    let Some(pod) = unsafe { GUARDED.get(ifindex) }.and_then(|slot| PODS.get(*slot)) else {
        return TC_ACT_UNSPEC;
    };
    match check(&ctx, pod) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(why) => {
            count(why);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn check(ctx: &TcContext, pod: &Pod) -> Checked<()> {
    match u16::from_be(read(ctx, 12)?) {
        ETH_IPV4 => ipv4(ctx, pod),
        ETH_IPV6 => ipv6(ctx, pod),
        ETH_VLAN | ETH_QINQ => Err(Counter::GuardMalformed),
        _ => Ok(()),
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, pod: &Pod) -> Checked<()> {
    let src = mapped(read(ctx, ETH + 12)?);
    if !same(&src, &pod.v4) {
        return Err(Counter::GuardSource);
    }
    if read::<u8>(ctx, ETH + 9)? != TCP {
        return Ok(());
    }
    if u16::from_be(read(ctx, ETH + 6)?) & 0x3fff != 0 {
        return Err(Counter::GuardMalformed);
    }
    let header = usize::from(read::<u8>(ctx, ETH)? & 0x0f) * 4;
    if header < 20 {
        return Err(Counter::GuardMalformed);
    }
    let dst = mapped(read(ctx, ETH + 16)?);
    tcp(ctx, pod, ETH + header, &src, &dst)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, pod: &Pod) -> Checked<()> {
    let src: Address = read(ctx, ETH + 8)?;
    let first: u8 = read(ctx, ETH + 6)?;
    if first == TCP {
        if !same(&src, &pod.v6) || is_unset(&src) {
            return Err(Counter::GuardSource);
        }
        let dst: Address = read(ctx, ETH + 24)?;
        return tcp(ctx, pod, ETH + 40, &src, &dst);
    }
    let last = skip_extensions(ctx, first)?;
    if same(&src, &pod.v6) && !is_unset(&src) {
        return Ok(());
    }
    // Neighbour discovery and multicast listener reports come from link-local or nowhere.
    let link_local = u32::from_be(src[0]) >> 22 == 0xfe80 >> 6;
    if last == ICMP6 && (link_local || is_unset(&src)) {
        return Ok(());
    }
    Err(Counter::GuardSource)
}

/// Follows extension headers to the payload; TCP behind any of them is not let through.
#[inline(always)]
fn skip_extensions(ctx: &TcContext, first: u8) -> Checked<u8> {
    let mut next = first;
    let mut at = ETH + 40;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            UDP | ICMP6 | NO_NEXT => return Ok(next),
            HOP_BY_HOP | ROUTING | DEST_OPTS => {
                next = read(ctx, at)?;
                at += (usize::from(read::<u8>(ctx, at + 1)?) + 1) * 8;
            }
            // A fragment of UDP or ICMP is fine; its other headers are in the first one only.
            FRAGMENT => {
                next = read(ctx, at)?;
                return match next {
                    UDP | ICMP6 => Ok(next),
                    _ => Err(Counter::GuardMalformed),
                };
            }
            TCP => return Err(Counter::GuardMalformed),
            // SCTP, ESP, tunnels: not TCP, not ours to judge.
            _ if next == first => return Ok(next),
            _ => return Err(Counter::GuardMalformed),
        }
    }
    Err(Counter::GuardMalformed)
}

#[inline(always)]
fn tcp(ctx: &TcContext, pod: &Pod, at: usize, src: &Address, dst: &Address) -> Checked<()> {
    let flags: u8 = read(ctx, at + 13)?;
    if flags & (SYN | ACK) != SYN || !is_destination(pod, dst) {
        return Ok(());
    }
    let tuple = Tuple {
        cookie: pod.cookie,
        src: *src,
        dst: *dst,
        src_port: u16::from_be(read(ctx, at)?),
        dst_port: u16::from_be(read(ctx, at + 2)?),
        reserved: 0,
    };
    // SAFETY: removed only when this connection is established or given up.
    match unsafe { APPROVED.get(&tuple) } {
        // SAFETY: no arguments.
        Some(approval) if approval.expires_ns > unsafe { bpf_ktime_get_ns() } => Ok(()),
        _ => Err(Counter::GuardSyn),
    }
}

/// Reads packet bytes; a packet that ends before them is malformed.
#[inline(always)]
fn read<T>(ctx: &TcContext, at: usize) -> Checked<T> {
    ctx.load(at).map_err(|_short| Counter::GuardMalformed)
}
