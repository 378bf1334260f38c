//! The harness of the cluster rung: a real Kubernetes that `cargo xtask cluster` brought up, with Karst installed, driven
//! through `kubectl` and `karst` as a user would.
//!
//! ```text
//!   cargo xtask test cluster ──► cluster up, images loaded, karst install ──► these tests ──► cluster down
//!   test ──► Cluster::get() ──► namespace, apply, exec, enroll, reboot, capture ──► what a user and the wire see
//! ```
//!
//! A test makes namespaces of its own, which go when it ends, so that it neither needs nor disturbs another. Nothing here
//! reaches into the product: what a test knows it has read from a command or from the wire.

pub mod cluster;
pub mod controllers;
pub mod load;
pub mod namespace;
pub mod observability;
pub mod orders;
pub mod pair;
pub mod pods;
pub mod shop;
pub mod tokens;
pub mod wait;

pub use cluster::Cluster;
pub use controllers::ControllersAway;
pub use load::{Amount, Detached, Load};
pub use namespace::Namespace;
pub use orders::Orders;
pub use pair::Pair;
pub use shop::Shop;
pub use wait::{eventually, until};
