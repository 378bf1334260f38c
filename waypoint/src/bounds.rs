//! How much is in flight at once: client connections, requests, and requests of one service. Past a bound new ones are
//! refused at once, while what is in flight goes on; every refusal is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use karst_runtime::supervise::Shutdown;

/// The bounds of the whole program.
pub(crate) struct Bounds {
    connections: Gauge,
    requests: Gauge,
    /// Memory is nearly full.
    pressed: AtomicBool,
}

struct Gauge {
    used: Arc<AtomicUsize>,
    max: usize,
}

/// A place that is given back when it is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which bound was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All services together.
    All,
    /// The share of one service.
    Service,
    /// The memory that the program may use.
    Memory,
}

impl Gauge {
    fn new(max: usize) -> Self {
        Self {
            used: Arc::default(),
            max,
        }
    }

    fn take(&self) -> Option<Place> {
        take(&self.used, self.max)
    }
}

fn take(used: &Arc<AtomicUsize>, max: usize) -> Option<Place> {
    if used.fetch_add(1, Ordering::Relaxed) < max {
        return Some(Place(used.clone()));
    }
    used.fetch_sub(1, Ordering::Relaxed);
    None
}

impl Bounds {
    pub(crate) fn new(connections: usize, requests: usize) -> Self {
        Self {
            connections: Gauge::new(connections),
            requests: Gauge::new(requests),
            pressed: AtomicBool::new(false),
        }
    }

    /// A place for one more client connection.
    pub(crate) fn connection(&self) -> Option<Place> {
        if self.pressed.load(Ordering::Relaxed) {
            return None;
        }
        self.connections.take()
    }

    /// Places for one more request of a service that has `of_service` in flight. No service gets more than half of all.
    pub(crate) fn request(&self, of_service: &Arc<AtomicUsize>) -> Result<[Place; 2], Full> {
        if self.pressed.load(Ordering::Relaxed) {
            return Err(Full::Memory);
        }
        let all = self.requests.take().ok_or(Full::All)?;
        let share = (self.requests.max / 2).max(1);
        let own = take(of_service, share).ok_or(Full::Service)?;
        Ok([all, own])
    }
}

/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// From this share of the limit on new work is refused, in percent.
const PRESSED_PERCENT: u64 = 92;

impl Bounds {
    /// Follows the memory of the program's cgroup until `stopped`; without a limit there is nothing to follow.
    pub(crate) async fn follow_memory(&self, stopped: &Shutdown) {
        let mut look = tokio::time::interval(LOOK);
        while stopped.run_until_cancelled(look.tick()).await.is_some() {
            let used = read_number(CGROUP_CURRENT).zip(read_number(CGROUP_MAX));
            let pressed = used.is_some_and(|(used, max)| is_pressed(used, max));
            if self.pressed.swap(pressed, Ordering::Relaxed) != pressed {
                tracing::warn!(
                    pressed,
                    "memory is nearly full, or is not any more: new work is refused while it is"
                );
            }
        }
    }
}

const CGROUP_CURRENT: &str = "/sys/fs/cgroup/memory.current";
const CGROUP_MAX: &str = "/sys/fs/cgroup/memory.max";

/// `None` where the file is absent or says `max`.
fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn is_pressed(used: u64, max: u64) -> bool {
    max > 0 && used / max.div_ceil(100) >= PRESSED_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_presses_before_it_is_full() {
        assert!(!is_pressed(90 << 20, 100 << 20));
        assert!(is_pressed(95 << 20, 100 << 20));
        assert!(!is_pressed(1, 0));
    }

    #[test]
    fn one_service_gets_half_and_the_other_half_stays_for_others() {
        let bounds = Bounds::new(1, 4);
        let (busy, quiet) = (Arc::default(), Arc::default());
        let held = [bounds.request(&busy), bounds.request(&busy)].map(Result::unwrap);
        assert_eq!(bounds.request(&busy).err(), Some(Full::Service));
        let other = bounds.request(&quiet).unwrap();
        let last = bounds.request(&quiet).unwrap();
        assert_eq!(bounds.request(&Arc::default()).err(), Some(Full::All));
        drop((held, other, last));
        assert!(bounds.request(&busy).is_ok());
    }
}
