//! The controller binary; see [`karst_controller::app`].

use clap::Parser as _;
use karst_controller::{app, config::Cli};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    app::main(Cli::parse()).await
}
