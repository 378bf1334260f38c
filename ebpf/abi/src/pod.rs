//! Enrolled pods: addresses, listeners, exclusions.

use crate::plain;

/// Places for enrolled pods on one node.
pub const MAX_PODS: u32 = 1024;
/// Places per pod in the map `LISTENERS`.
pub const LISTENERS_PER_POD: u32 = 4;

/// An address as the programs compare it: IPv6 words in network order, IPv4 as v4-mapped.
pub type Address = [u32; 4];

/// Element `slot` of the map `PODS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Pod {
    /// Cookie of the pod's network namespace; 0 marks a free slot.
    pub cookie: u64,
    /// The pod's IPv4 address, v4-mapped; all zero when it has none.
    pub v4: Address,
    /// The pod's IPv6 address; all zero when it has none.
    pub v6: Address,
    /// Bits of [`pod_flag`].
    pub flags: u32,
    /// Interface index of the host side of the pod's veth in the host's namespace; 0 for none.
    pub host_ifindex: u32,
    /// Ports of the agent's listeners in this namespace; 0 for none.
    pub hbone_port: u16,
    pub inbound_port: u16,
    pub outbound_port: u16,
    pub dns_udp_port: u16,
    pub dns_tcp_port: u16,
    pub reserved: [u16; 3],
}

/// Bits of [`Pod::flags`].
pub mod pod_flag {
    /// The pod's DNS goes to the agent.
    pub const DNS: u32 = 1;
    /// The exclusion maps hold something for this pod.
    pub const EXCLUDES: u32 = 2;
    /// The guard's clsact qdisc was made by us and goes with the pod.
    pub const QDISC_OURS: u32 = 4;
    /// The kubelet may reach some ports of this pod.
    pub const PROBES: u32 = 8;
    /// Nothing that the pod dials is captured: it is about to be captured, or is leaving.
    pub const INBOUND_ONLY: u32 = 16;
    /// Whatever the pod dials is captured, so that its agent can refuse what the mesh does not know.
    pub const CAPTURE_ALL: u32 = 32;
}

/// Which listener of a pod: index `slot * LISTENERS_PER_POD + role` of the map `LISTENERS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ListenerRole {
    Hbone = 0,
    Inbound = 1,
    Outbound = 2,
}

/// Which way an exclusion works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Direction {
    Inbound = 0,
    Outbound = 1,
}

/// Key of `EXCLUDED_PORTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ExcludedPort {
    pub slot: u32,
    pub direction: u16,
    pub port: u16,
}

/// Key of the prefix tree `EXCLUDED_CIDRS`: 64 bits exact, then the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ExcludedCidr {
    pub slot: u32,
    pub direction: u32,
    pub addr: Address,
}

plain!(Pod = 64, ExcludedPort = 8, ExcludedCidr = 24);
