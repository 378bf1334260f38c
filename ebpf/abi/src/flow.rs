//! Connections: who approved them, where they were going, what their sockets show.

use crate::{Address, plain};

/// One TCP connection attempt, seen from the caller. Key of `APPROVED`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Tuple {
    /// Namespace cookie of the caller, so that no other namespace can use the approval.
    pub cookie: u64,
    pub src: Address,
    pub dst: Address,
    pub src_port: u16,
    pub dst_port: u16,
    pub reserved: u32,
}

/// Value of `APPROVED`: used once, and not after `expires_ns`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Approval {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub expires_ns: u64,
    /// The peer that the accepting socket shows; port 0 for the real one.
    pub shown: Dialled,
}

/// An address and a port. Value of `ORIG_DST` and `DIAL_INTENT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Dialled {
    pub addr: Address,
    pub port: u16,
    pub reserved: u16,
    /// In `ORIG_DST`: when the client had come and gone before anybody accepted it, `CLOCK_MONOTONIC` milliseconds of
    /// that, the lowest 32 bits and never 0. Otherwise 0.
    pub left_ms: u32,
}

/// The client end of a captured connection. Key of `ORIG_DST`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ClientKey {
    pub cookie: u64,
    pub addr: Address,
    pub port: u16,
    pub reserved: [u16; 3],
}

/// A port that a destination pod declares in its own probes. Key of `PROBE_PORTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ProbeKey {
    pub addr: Address,
    pub port: u16,
    pub reserved: u16,
}

/// What a program remembers of one socket, in `SOCKETS` (socket storage).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SocketFact {
    /// One of [`FactKind`].
    pub kind: u32,
    pub reserved: u32,
    /// Namespace cookie of the socket.
    pub cookie: u64,
    /// What `getpeername` shows: the address dialled, or the real client.
    pub shown: Dialled,
}

/// What a [`SocketFact`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FactKind {
    /// Nothing: an earlier connect of the same socket was forgotten.
    None = 0,
    /// A pod's connection, captured; `shown` is where it wanted to go.
    Captured = 1,
    /// The agent dials; `shown` is the client that the application sees, if announced.
    Agent = 2,
    /// The kubelet probes a declared port.
    Probe = 3,
    /// A pod's connection to a mesh destination that its owner excluded.
    Excluded = 4,
    /// An accepted socket whose peer is shown as another.
    Accepted = 5,
    /// A UDP socket whose queries go to the agent; `shown` is the resolver it asked.
    Dns = 6,
}

plain!(
    Tuple = 48,
    Approval = 32,
    Dialled = 24,
    ClientKey = 32,
    ProbeKey = 20,
    SocketFact = 40,
);
