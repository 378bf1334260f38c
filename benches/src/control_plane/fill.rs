//! P31: a large mesh goes through the index into encoded resources, as at the start of a controller.

use std::time::{Duration, Instant};

use anyhow::Result;
use karst_controller::serve::{publish::publications, resources::Resources};
use karst_index::{Event, Index, IndexConfig};
use serde_json::{Value, json};

use crate::{objects::Size, process};

/// What `fill` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    #[arg(long, default_value_t = 100_000)]
    workloads: usize,
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
}

/// Objects handed over together, as pages of a list come.
const PAGE: usize = 500;

pub(crate) fn run(args: &Args) -> Result<Value> {
    let size = Size {
        nodes: args.nodes,
        services: args.services,
        workloads: args.workloads,
    };
    let before = process::resident("self")?;
    let (mut index, resources) = (Index::new(IndexConfig::default()), Resources::new());
    let mut objects = size.objects();
    let mut spent = Duration::ZERO;
    loop {
        let page: Vec<Event> = objects.by_ref().take(PAGE).map(Event::Apply).collect();
        if page.is_empty() {
            break;
        }
        // Making the objects is this program's work, not the controller's.
        let start = Instant::now();
        let delta = index.handle_all(page);
        resources.publish(publications(&delta));
        spent += start.elapsed();
    }
    let used = process::resident("self")?.saturating_sub(before);
    Ok(json!({
        "id": "P31",
        "what": format!("{} services, {} workloads through the index into encoded resources", args.services, args.workloads),
        "karst": spent.as_secs_f64(),
        "unit": "s",
        "memory_mb": used as f64 / 1e6,
    }))
}
