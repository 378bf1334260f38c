//! Named tasks. Nothing in Karst calls `tokio::spawn` directly.
//!
//! A connection task that panics is counted and costs that connection. A long-lived task that panics or ends while the
//! program should run cancels [`Shutdown`], which starts the drain: never silence.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Panics seen in connection tasks since start; exported as `karst_task_panics_total`.
static CONNECTION_PANICS: AtomicU64 = AtomicU64::new(0);

/// Cancelled once, by a signal or by the death of a long-lived task: the program drains and ends.
pub type Shutdown = CancellationToken;

/// Panics seen in connection tasks since start.
pub fn connection_panics() -> u64 {
    CONNECTION_PANICS.load(Ordering::Relaxed)
}

/// Spawns a task whose failure costs only itself: one connection, one request.
pub fn spawn_connection<F>(name: &'static str, task: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the supervisor that the ban points to"
    )]
    tokio::spawn(contain(name, task))
}

/// Spawns, on the current thread's `LocalSet` or current-thread runtime, a task whose failure costs only itself.
pub fn spawn_local_connection<F>(name: &'static str, task: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    tokio::task::spawn_local(contain(name, task))
}

async fn contain<F: Future<Output = ()>>(name: &'static str, task: F) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        CONNECTION_PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            task = name,
            "a connection task panicked: this is a bug in Karst, only that connection is lost"
        );
    }
}

/// Spawns a task that should run as long as the program. When it panics or returns early, `shutdown` is cancelled.
pub fn spawn_essential<F>(name: &'static str, shutdown: &Shutdown, task: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = shutdown.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the supervisor that the ban points to"
    )]
    tokio::spawn(async move {
        let ended = AssertUnwindSafe(task).catch_unwind().await;
        if shutdown.is_cancelled() {
            return;
        }
        match ended {
            Ok(()) => tracing::error!(task = name, "a long-lived task ended early: draining"),
            Err(_panic) => tracing::error!(
                task = name,
                "a long-lived task panicked, this is a bug in Karst: draining"
            ),
        }
        shutdown.cancel();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_panic_is_counted_and_contained() {
        let before = connection_panics();
        spawn_connection("test", async { panic!("boom") })
            .await
            .unwrap();
        assert_eq!(connection_panics(), before + 1);
    }

    #[tokio::test]
    async fn the_end_of_an_essential_task_shuts_down() {
        let shutdown = Shutdown::new();
        spawn_essential("test", &shutdown, async {}).await.unwrap();
        assert!(shutdown.is_cancelled());
    }
}
