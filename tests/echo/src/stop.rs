//! When a load ends: at its time, or as soon as a file is there. A test that waits for what a busy machine does cannot know
//! the time beforehand.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use karst_runtime::supervise::spawn_connection;

/// Between looks for the file.
const LOOK: Duration = Duration::from_millis(100);

/// Shared by everything that must end.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    until: Instant,
    told: Arc<AtomicBool>,
}

impl Stop {
    /// Ends after so many seconds, or when the file is there. Must be called inside the runtime.
    pub(crate) fn new(seconds: u64, file: Option<PathBuf>) -> Self {
        let stop = Self {
            until: Instant::now() + Duration::from_secs(seconds),
            told: Arc::default(),
        };
        if let Some(file) = file {
            let told = stop.clone();
            spawn_connection("stop-file", async move {
                while !told.is_over() {
                    told.told.store(file.exists(), Ordering::Relaxed);
                    tokio::time::sleep(LOOK).await;
                }
            });
        }
        stop
    }

    /// Whether the file is there.
    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Whether nothing new is to be begun.
    pub(crate) fn is_over(&self) -> bool {
        self.is_told() || Instant::now() >= self.until
    }
}
