//! Which replica of a waypoint takes a connection: the one with the fewest streams of this node, so that few clients
//! with few connections spread evenly too, and a new replica is used at once.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use karst_model::{name::WorkloadUid, workload::Workload};
use karst_path::outbound::Replica;
use rand::RngExt as _;

/// Streams of this node to each replica of any waypoint. Bounded by the streams that are open.
#[derive(Clone, Default)]
pub(crate) struct WaypointStreams(Arc<Mutex<HashMap<WorkloadUid, u32>>>);

/// One stream that is counted until it is dropped.
pub(crate) struct Stream {
    streams: WaypointStreams,
    replica: WorkloadUid,
}

impl WaypointStreams {
    /// The index of the replica for one stream; there is at least one.
    pub(crate) fn draw(&self, usable: &[Replica<'_>]) -> (usize, Stream) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = |one: &Workload| counts.get(&one.uid).copied().unwrap_or(0);
        let fewest = usable.iter().map(|(one, _)| streams(one)).min();
        let least: Vec<usize> = (0..usable.len())
            .filter(|index| Some(streams(usable[*index].0)) == fewest)
            .collect();
        let index = least[rand::rng().random_range(0..least.len())];
        let replica = usable[index].0.uid.clone();
        *counts.entry(replica.clone()).or_default() += 1;
        let stream = Stream {
            streams: self.clone(),
            replica,
        };
        (index, stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut counts = self
            .streams
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.replica) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.replica);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(number: u8) -> Arc<Workload> {
        Arc::new(Workload {
            addresses: vec![[10, 0, 0, number].into()],
            ..Workload::new(&format!("w-{number}"))
        })
    }

    #[test]
    fn streams_spread_evenly_and_a_new_replica_is_used_at_once() {
        let mut replicas = vec![replica(1), replica(2)];
        let streams = WaypointStreams::default();
        let draw = |replicas: &[Arc<Workload>]| {
            let usable: Vec<Replica<'_>> =
                replicas.iter().map(|one| (one, one.addresses[0])).collect();
            streams.draw(&usable).1
        };
        let count = |uid: &str| {
            streams
                .0
                .lock()
                .unwrap()
                .get(&WorkloadUid::from(uid))
                .copied()
        };
        let mut open: Vec<Stream> = (0..10).map(|_| draw(&replicas)).collect();
        assert_eq!((count("w-1"), count("w-2")), (Some(5), Some(5)));
        replicas.push(replica(3));
        open.extend((0..5).map(|_| draw(&replicas)));
        assert_eq!(count("w-3"), Some(5));
        drop(open);
        assert!(streams.0.lock().unwrap().is_empty(), "nothing is left over");
    }
}
