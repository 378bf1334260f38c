//! The kernel side on real namespaces: a node, two pods and a client outside the mesh.
//!
//! Needs root, a bpf file system, `ip`, `bpftool` and the programs (`cargo xtask ebpf`). Without
//! root it fails, unless KARST_SKIP_ROOT_TESTS is set.

mod dns;
mod guard;
mod inbound;
mod lifecycle;
mod outbound;
mod world;
