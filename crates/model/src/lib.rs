//! The words of Karst: what every other crate means by address, identity, workload, service, policy.
//!
//! ```text
//!   Kubernetes objects ──index──►            ──proto──► wire ──proto──►
//!   YAML files         ──files──►   model                                model ──► agent, waypoint
//! ```
//!
//! Nothing here does I/O, allocates tasks or knows Kubernetes. All sources of configuration lower into these types,
//! and all proxies decide on them.

pub mod addr;
pub mod cni;
pub mod enrollment;
pub mod external;
pub mod identity;
pub mod locality;
pub mod name;
pub mod policy;
pub mod protocol;
pub mod rate_limit;
pub mod route;
pub mod service;
pub mod telemetry;
pub mod token;
pub mod traffic;
pub mod waypoint_policy;
pub mod workload;
