//! Nodes and pods out of network namespaces, from the Kubernetes YAML that a cluster would take: `karst lab`. The demo
//! and the node tests stand on this crate.
//!
//! ```text
//!   DIR of YAML ──files──► objects ──desired──► nodes, pods, services       (pure)
//!                                                 │
//!   karst lab up/apply ──socket──► daemon ────────┤ one thread per pod, agent and controller
//!                                                 ├─ network   namespaces, veths, routes
//!                                                 ├─ pod       CNI ADD, processes, readiness, restarts, DEL
//!                                                 ├─ services  nft DNAT and cluster DNS for pods outside the mesh
//!                                                 └─ resolved  objects/ with addresses and readiness ──► karst-controller
//! ```
//!
//! The daemon stands where kubelet, kube-proxy and cluster DNS stand in a cluster; nothing in the product knows that it
//! runs in a lab. All blocking threads: the numbers are small, and entering a namespace is a property of a thread.
//! Names of namespaces, cgroups and pins all derive from the lab's name, so that [`down::down`] works after any crash.

pub mod client;
pub mod daemon;
pub mod down;
pub mod error;
pub mod pod_init;
pub mod status;

mod addressing;
mod cgroup;
mod command;
mod desired;
mod dns;
mod mesh;
mod names;
mod network;
mod pod;
mod probe;
mod resolved;
mod services;
mod volumes;
mod waypoint;

pub use self::{error::LabError, names::LabName};
