//! User side of the kernel programs: load, attach, pin, typed maps, self-test.
//!
//! ```text
//!   Kernel::load ──> maps pinned, cgroup hooks linked (kept when the agent dies)
//!        ├── attach_pod / detach_pod ──> PODS, LISTENERS, sk_lookup link, guard
//!        ├── set_destinations, set_probe_ports
//!        └── take_orig_dst (per accept), announce_dial (per dial)
//!   Kernel::remove ──> nothing left
//! ```
#![expect(
    unsafe_code,
    reason = "bpf(2) commands that aya does not offer; see link.rs"
)]

mod address;
mod cgroup_hooks;
mod error;
mod guard;
mod kernel;
mod link;
mod maps;
mod object;
mod others;
mod pod;
pub mod probe;
mod rtnetlink;
mod steering;

pub use error::{AttachError, LoadError, MapError};
pub use karst_netns::NetnsCookie;
pub use kernel::{Kernel, KernelConfig, MapSizes};
pub use others::others;
pub use pod::{AttachedPod, Capture, Cidr, HostLink, Listeners, PodAttachment, Processes};
