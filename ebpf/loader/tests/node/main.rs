//! The kernel side on real namespaces: a node, two pods and a client outside the mesh.
//!
//! Needs root, a bpf file system, `ip`, `bpftool` and the programs (`cargo xtask ebpf`). Without
//! root it fails, unless KARST_SKIP_ROOT_TESTS is set.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests too, and a panic names their line"
)]

mod dns;
mod full;
mod guard;
mod inbound;
mod lifecycle;
mod outbound;
mod world;
