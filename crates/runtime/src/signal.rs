//! SIGTERM and SIGINT start the drain; a second one ends the program at once.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};

use crate::supervise::{Shutdown, spawn_connection};

/// The exit status when a second signal cuts the drain short.
const EXIT_STATUS_CUT_SHORT: i32 = 130;

/// Cancels `shutdown` at the first SIGTERM or SIGINT. A second signal ends the process without waiting for the drain.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn cancel_on_signal(shutdown: &Shutdown) -> io::Result<JoinHandle<()>> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let shutdown = shutdown.clone();
    Ok(spawn_connection("signals", async move {
        let name = signals.next().await;
        tracing::info!(
            signal = name,
            "draining; a second signal ends the program at once"
        );
        shutdown.cancel();
        let name = signals.next().await;
        tracing::warn!(signal = name, "ending without waiting for the drain");
        std::process::exit(EXIT_STATUS_CUT_SHORT);
    }))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_starts_the_drain() {
        let shutdown = Shutdown::new();
        let task = cancel_on_signal(&shutdown).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        shutdown.cancelled().await;
        task.abort();
    }
}
