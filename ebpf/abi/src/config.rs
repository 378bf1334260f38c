//! The one record that tells the programs who the agent, the host and the kubelet are.

use crate::plain;

/// Changes whenever a map's layout does; pinned maps of another version are refused.
pub const ABI_VERSION: u32 = 1;
/// How many cgroups can count as the kubelet's.
pub const KUBELET_CGROUPS: usize = 3;

/// Element 0 of the map `CONFIG`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// Cgroup v2 id of the agent's processes: their sockets are never captured.
    pub agent_cgroup: u64,
    /// Namespace cookie of the node itself.
    pub host_cookie: u64,
    /// Cgroups whose probes are exempt; 0 is an empty place.
    pub kubelet_cgroups: [u64; KUBELET_CGROUPS],
    /// Cgroup of the agent that this one takes over from, while both run; 0 without one. What it still dials for its
    /// connections is the agent's as well. Programs of before this field took its place for a kubelet's, which it never
    /// is: so the layout stays.
    pub earlier_agent_cgroup: u64,
    /// [`ABI_VERSION`] of the writer.
    pub version: u32,
    /// Bits of [`config_flag`].
    pub flags: u32,
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// `DESTINATIONS` has no room for every mesh destination: whatever is not in it may be one, so all that pods dial is
    /// captured.
    pub const CAPTURE_ALL: u32 = 1;
}

plain!(Config = 56);
