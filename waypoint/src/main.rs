//! The L7 proxy of Karst. See `karst_waypoint::app` for how its parts are wired.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    karst_waypoint::app::main()
}
