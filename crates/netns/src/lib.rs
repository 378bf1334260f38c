//! Enter a network namespace, open sockets there and end those of others, read socket cookies and cgroup ids.
//!
//! The one crate outside `ebpf/` that holds `unsafe`: everything that the agent, the lab and the
//! kernel loader need from namespaces and that the standard library does not offer.
//!
//! ```text
//!   /var/run/netns/x, /proc/PID/ns/net ──> Netns ──run(f)──> sockets made inside (socket)
//!                                            └──cookie()──> key of the kernel maps
//!   /sys/fs/cgroup/... ──> cgroup_id ──> "is this caller the agent?" in the kernel programs
//! ```
#![expect(
    unsafe_code,
    reason = "getsockopt of SO_NETNS_COOKIE has no safe wrapper"
)]

mod cgroup;
mod diag;
mod limit;
mod link;
mod namespace;
mod netlink;
mod socket;

pub use cgroup::{
    cgroup_exists, cgroup_id, cgroup2_path, cgroup2_root, enter_cgroup_namespace, own_cgroup_id,
};
pub use limit::raise_nofile_limit;
pub use namespace::{Netns, NetnsCookie, netns_cookie, socket_cookie};
pub use socket::{
    Family, connect_socket, dropped_datagrams, local_connect_socket, steered_listener,
    tcp_listener, udp_socket,
};
