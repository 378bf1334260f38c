//! The per-node L4 proxy of Karst. See `app` for how its parts are wired.

mod admin;
mod app;
mod capture;
mod config;
mod controller;
mod destinations;
mod dns;
mod error;
mod inbound;
mod kubelet;
mod listeners;
mod live;
mod mesh;
mod metrics;
mod node;
mod node_check;
mod outbound;
mod plugin;
mod recheck;
mod reset;
mod tracked;
mod workers;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    app::main()
}
