//! The kernel programs, one file per hook; `ebpf/loader` attaches them.
//!
//! ```text
//!   connect, dns ──fact of the socket──> sockops ──ORIG_DST, APPROVED──> sk_lookup, guard
//!        └────────────────────────────────> peername (what getpeername and accept show)
//! ```
//!
//! Built by `cargo xtask ebpf`, which runs, in this folder (with Debian's rustc and rust-src, or
//! with a rustup nightly that has rust-src instead of the first two variables):
//!
//! ```text
//! RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
//! CARGO_ENCODED_RUSTFLAGS='-Clinker=bpf-linker\x1f--cfg\x1fbpf_target_arch="x86_64"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf' \
//! cargo build --release --locked --target bpfel-unknown-none -Z build-std=core
//! ```
#![no_std]
#![no_main]

mod connect;
mod dns;
mod guard;
mod maps;
mod parse;
mod peername;
mod sk_lookup;
mod sockops;

/// The kernel gives `bpf_sk_lookup_*` and others to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
