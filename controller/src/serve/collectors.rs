//! Tells the index which collectors do not take what agents and waypoints send, so that the objects that name them say so.
//! Each replica knows what those say that are connected to it; the one that leads hears of the others what they know
//! (`status/share.rs`).

use std::{sync::Arc, time::Duration};

use karst_index::Event;
use karst_runtime::supervise::Shutdown;
use tokio::sync::mpsc;

use super::observations::{Failing, Observed};
use crate::mesh::Command;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks until shutdown.
pub async fn follow(observed: Arc<Observed>, commands: mpsc::Sender<Command>, shutdown: Shutdown) {
    let mut told = Failing::new();
    let looking = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let failing = observed.failing(&told);
            if failing == told {
                continue;
            }
            let command = Command::Objects(vec![event(&failing)]);
            if commands.send(command).await.is_err() {
                return;
            }
            told = failing;
        }
    };
    let _ended = shutdown.run_until_cancelled(looking).await;
}

fn event(failing: &Failing) -> Event {
    let failing = failing.iter().map(|(provider, (whose, error))| {
        let text = format!("{whose} cannot send to it: {error}");
        (provider.clone(), text.into())
    });
    Event::FailingCollectors(failing.collect())
}
