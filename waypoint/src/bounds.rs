//! How much is in flight at once: client connections, requests, and requests of one service. Past a bound new ones are
//! refused at once, while what is in flight goes on; every refusal is counted.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The bounds of the whole program.
pub(crate) struct Bounds {
    connections: Gauge,
    requests: Gauge,
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
        }
    }

    /// A place for one more client connection.
    pub(crate) fn connection(&self) -> Option<Place> {
        self.connections.take()
    }

    /// Places for one more request of a service that has `of_service` in flight. No service gets more than half of all.
    pub(crate) fn request(&self, of_service: &Arc<AtomicUsize>) -> Result<[Place; 2], Full> {
        let all = self.requests.take().ok_or(Full::All)?;
        let share = (self.requests.max / 2).max(1);
        let own = take(of_service, share).ok_or(Full::Service)?;
        Ok([all, own])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
