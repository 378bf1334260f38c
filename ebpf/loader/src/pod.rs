//! What the agent says about a pod, and how it becomes map entries.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use karst_ebpf_abi::{Direction, ExcludedCidr, ExcludedPort, Pod, pod_flag};
use karst_netns::{NetnsCookie, netns_cookie};
use rustix::net::getsockname;

use crate::AttachError;
use crate::address::{ip, words};
use crate::guard::Qdisc;
use crate::maps::Maps;

/// Everything needed to capture one pod.
pub struct PodAttachment<'a> {
    /// Cookie of `netns`.
    pub cookie: NetnsCookie,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// The pod's own addresses: at least one, at most one per family.
    pub addresses: &'a [IpAddr],
    /// The host side of the pod's veth; `None` leaves the pod without the guard.
    pub host_veth: Option<HostLink<'a>>,
    pub processes: Processes,
    pub capture: &'a Capture,
    /// Ports that the pod's own probes and lifecycle hooks name: the kubelet may reach them.
    pub probe_ports: &'a [u16],
    pub listeners: Listeners<'a>,
}

/// Whether something may run in a pod already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processes {
    /// What they dialled before the capture is waited for.
    MayRun,
    /// Its runtime is just making the pod, and waits.
    None,
}

/// An interface in the host's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct HostLink<'a> {
    pub netns: BorrowedFd<'a>,
    pub ifindex: u32,
}

/// What of a pod is captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capture {
    /// Whether port 53 goes to the agent's DNS sockets.
    pub dns: bool,
    /// Whether destinations that are not the mesh's are captured too.
    pub all: bool,
    /// Ports of the pod that callers reach directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Callers that reach the pod directly.
    pub exclude_inbound_cidrs: Vec<Cidr>,
    /// Destination ports that the pod dials directly.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations that the pod dials directly.
    pub exclude_outbound_cidrs: Vec<Cidr>,
}

impl Default for Capture {
    /// Everything, DNS included.
    fn default() -> Self {
        Self {
            dns: true,
            all: false,
            exclude_inbound_ports: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

/// An address block; bits of `addr` past `prefix` do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    pub addr: IpAddr,
    pub prefix: u8,
}

/// The agent's sockets inside the pod's namespace; their ports are read from them.
///
/// The three TCP listeners should be `karst_netns::steered_listener`s. When the agent closes one,
/// its connections are refused, never handed to the application.
#[derive(Clone, Copy, Debug)]
pub struct Listeners<'a> {
    pub hbone: BorrowedFd<'a>,
    pub inbound: BorrowedFd<'a>,
    pub outbound: BorrowedFd<'a>,
    pub dns_udp: Option<BorrowedFd<'a>>,
    pub dns_tcp: Option<BorrowedFd<'a>>,
}

/// A pod found in the maps, after a restart for example.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedPod {
    pub cookie: NetnsCookie,
    pub addresses: Vec<IpAddr>,
    /// The guarded interface, if any.
    pub host_ifindex: Option<u32>,
}

impl AttachedPod {
    pub(crate) fn of(pod: &Pod) -> Self {
        let addresses = [pod.v4, pod.v6].into_iter().filter(|addr| *addr != [0; 4]);
        Self {
            cookie: NetnsCookie(pod.cookie),
            addresses: addresses.map(ip).collect(),
            host_ifindex: (pod.host_ifindex != 0).then_some(pod.host_ifindex),
        }
    }
}

/// Who made the clsact qdisc of a pod's interface.
pub(crate) fn qdisc_of(pod: &Pod) -> Qdisc {
    if pod.flags & pod_flag::QDISC_OURS != 0 {
        Qdisc::Ours
    } else {
        Qdisc::Foreign
    }
}

/// The pod as the programs see it; not yet guarded.
pub(crate) fn entry(pod: &PodAttachment<'_>) -> Result<Pod, AttachError> {
    let listeners = &pod.listeners;
    let (v4, v6) = families(pod.addresses)?;
    Ok(Pod {
        cookie: pod.cookie.0,
        v4,
        v6,
        flags: flags(pod),
        host_ifindex: 0,
        hbone_port: port(pod.cookie, listeners.hbone)?,
        inbound_port: port(pod.cookie, listeners.inbound)?,
        outbound_port: port(pod.cookie, listeners.outbound)?,
        dns_udp_port: optional_port(pod.cookie, listeners.dns_udp)?,
        dns_tcp_port: optional_port(pod.cookie, listeners.dns_tcp)?,
        reserved: [0; 3],
    })
}

fn flags(pod: &PodAttachment<'_>) -> u32 {
    let capture = pod.capture;
    let excludes = !(capture.exclude_inbound_ports.is_empty()
        && capture.exclude_inbound_cidrs.is_empty()
        && capture.exclude_outbound_ports.is_empty()
        && capture.exclude_outbound_cidrs.is_empty());
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    flag(capture.dns, pod_flag::DNS)
        | flag(capture.all, pod_flag::CAPTURE_ALL)
        | flag(excludes, pod_flag::EXCLUDES)
        | flag(!pod.probe_ports.is_empty(), pod_flag::PROBES)
}

type Families = (karst_ebpf_abi::Address, karst_ebpf_abi::Address);

fn families(addresses: &[IpAddr]) -> Result<Families, AttachError> {
    let (mut v4, mut v6) = ([0; 4], [0; 4]);
    for addr in addresses.iter().map(IpAddr::to_canonical) {
        let family = if addr.is_ipv4() { &mut v4 } else { &mut v6 };
        if *family != [0; 4] || addr.is_unspecified() {
            return Err(AttachError::Addresses);
        }
        *family = words(addr);
    }
    if addresses.is_empty() {
        Err(AttachError::Addresses)
    } else {
        Ok((v4, v6))
    }
}

fn optional_port(cookie: NetnsCookie, socket: Option<BorrowedFd<'_>>) -> Result<u16, AttachError> {
    socket.map_or(Ok(0), |socket| port(cookie, socket))
}

/// The port of a socket, which must be in the pod's namespace: one of another would leak.
fn port(cookie: NetnsCookie, socket: BorrowedFd<'_>) -> Result<u16, AttachError> {
    if netns_cookie(socket).map_err(AttachError::Listener)? != cookie {
        return Err(AttachError::ForeignListener);
    }
    let addr = getsockname(socket).map_err(|errno| AttachError::Listener(errno.into()))?;
    let addr = std::net::SocketAddr::try_from(addr);
    addr.map(|addr| addr.port())
        .map_err(|errno| AttachError::Listener(errno.into()))
}

/// Writes a pod's exclusions in place of those that its slot had.
pub(crate) fn exclude(maps: &Maps, slot: u32, capture: &Capture) -> Result<(), AttachError> {
    clear_exclusions(maps, slot)?;
    let ways = [
        (
            Direction::Inbound,
            &capture.exclude_inbound_ports,
            &capture.exclude_inbound_cidrs,
        ),
        (
            Direction::Outbound,
            &capture.exclude_outbound_ports,
            &capture.exclude_outbound_cidrs,
        ),
    ];
    for (way, ports, cidrs) in ways {
        let direction = way as u16;
        for &port in ports {
            maps.excluded_ports.insert(
                &ExcludedPort {
                    slot,
                    direction,
                    port,
                },
                &1,
            )?;
        }
        for cidr in cidrs {
            let addr = words(cidr.addr);
            let key = ExcludedCidr {
                slot,
                direction: direction.into(),
                addr,
            };
            maps.exclude_cidr(64 + prefix_bits(*cidr)?, key)?;
        }
    }
    Ok(())
}

pub(crate) fn clear_exclusions(maps: &Maps, slot: u32) -> Result<(), AttachError> {
    maps.excluded_ports.remove_where(|key| key.slot == slot)?;
    Ok(maps.clear_cidrs(slot)?)
}

/// The prefix over the 128 bits that the programs compare.
fn prefix_bits(cidr: Cidr) -> Result<u32, AttachError> {
    let (offset, most) = match cidr.addr {
        IpAddr::V4(_) => (96, 32),
        IpAddr::V6(_) => (0, 128),
    };
    if cidr.prefix > most {
        return Err(AttachError::Prefix {
            addr: cidr.addr,
            prefix: cidr.prefix,
        });
    }
    Ok(offset + u32::from(cidr.prefix))
}
