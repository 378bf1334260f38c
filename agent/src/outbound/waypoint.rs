//! Which replica of a waypoint takes a connection: the one with the fewest streams of this node, so that few clients
//! with few connections spread evenly too, and a new replica is used at once.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use hashbrown::HashMap;
use karst_model::{
    addr::{Network, NetworkAddr},
    name::WorkloadUid,
    workload::{GatewayAddr, GatewayDestination, Health, Workload},
};
use rand::RngExt as _;

use karst_discovery::State;

/// A replica that was chosen. The stream counts until it is dropped.
pub(crate) struct Chosen {
    pub(crate) workload: Arc<Workload>,
    pub(crate) addr: SocketAddr,
    pub(crate) stream: Stream,
}

/// Streams of this node to each replica of any waypoint. Bounded by the streams that are open.
#[derive(Clone, Default)]
pub(crate) struct WaypointStreams(Arc<Mutex<HashMap<WorkloadUid, u32>>>);

/// One stream that is counted.
pub(crate) struct Stream {
    streams: WaypointStreams,
    replica: WorkloadUid,
}

impl WaypointStreams {
    /// A replica of `waypoint` for one stream, at an address of the dialled one's family where it has one; Err says why
    /// there is none.
    pub(crate) fn choose(
        &self,
        state: &State,
        network: &Network,
        waypoint: &GatewayAddr,
        dialled: IpAddr,
    ) -> Result<Chosen, String> {
        let replicas = replicas(state, waypoint);
        let mut usable: Vec<(&Arc<Workload>, IpAddr)> = replicas
            .iter()
            .filter(|one| one.health == Health::Healthy && one.network == *network)
            .filter_map(|one| Some((one, address(one, dialled)?)))
            .collect();
        if usable.is_empty() {
            return Err(match replicas.len() {
                0 => "it has no replicas at all".to_owned(),
                1 => "its only replica is not ready".to_owned(),
                all => format!("none of its {all} replicas is ready"),
            });
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = |one: &Workload| counts.get(&one.uid).copied().unwrap_or(0);
        let fewest = usable
            .iter()
            .map(|(one, _)| streams(one))
            .min()
            .unwrap_or(0);
        usable.retain(|(one, _)| streams(one) == fewest);
        let (workload, ip) = usable[rand::rng().random_range(0..usable.len())];
        *counts.entry(workload.uid.clone()).or_default() += 1;
        Ok(Chosen {
            addr: SocketAddr::new(ip, waypoint.hbone_port),
            workload: workload.clone(),
            stream: Stream {
                streams: self.clone(),
                replica: workload.uid.clone(),
            },
        })
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

/// Every replica of a waypoint, ready or not.
pub(crate) fn replicas(state: &State, waypoint: &GatewayAddr) -> Vec<Arc<Workload>> {
    match &waypoint.destination {
        GatewayDestination::Service(key) => state.endpoints(key).to_vec(),
        GatewayDestination::Address(addr) => at_address(state, addr),
    }
}

/// A waypoint named by address: that of a pod, or of a service.
fn at_address(state: &State, addr: &NetworkAddr) -> Vec<Arc<Workload>> {
    match state.service_at(addr, "") {
        Some(service) => state.endpoints(&service.key).to_vec(),
        None => state.workload_at(addr).into_iter().collect(),
    }
}

/// An address of the workload, of the other's family where it has one.
fn address(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let same = workload
        .addresses
        .iter()
        .find(|ip| ip.is_ipv4() == like.is_ipv4());
    same.or_else(|| workload.addresses.first()).copied()
}

/// As messages name it.
pub(crate) fn shown(waypoint: &GatewayAddr) -> String {
    match &waypoint.destination {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(addr) => addr.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use karst_discovery::Update;
    use karst_model::{name::ServiceKey, protocol::HBONE_PORT, service::Service};

    use super::*;

    fn waypoint() -> GatewayAddr {
        GatewayAddr {
            destination: GatewayDestination::Service(ServiceKey {
                namespace: "shop".into(),
                hostname: "w.shop.svc.cluster.local".into(),
            }),
            hbone_port: HBONE_PORT,
        }
    }

    fn replica(number: u8, health: Health) -> Update {
        let service = Service::new("shop", "w.shop.svc.cluster.local").key;
        Update::Workload(Arc::new(Workload {
            addresses: vec![[10, 0, 0, number].into()],
            services: BTreeMap::from([(service, BTreeMap::from([(15008, 15008)]))]),
            health,
            ..Workload::new(&format!("w-{number}"))
        }))
    }

    fn choose(streams: &WaypointStreams, state: &State) -> Result<Chosen, String> {
        let dialled = [10, 96, 0, 1].into();
        streams.choose(state, &Network::default(), &waypoint(), dialled)
    }

    #[test]
    fn streams_spread_evenly_and_a_new_replica_is_used_at_once() {
        let state = State::new();
        state.apply([replica(1, Health::Healthy), replica(2, Health::Healthy)]);
        let streams = WaypointStreams::default();
        let per_replica = |open: &[Chosen], uid: &str| {
            open.iter()
                .filter(|one| *one.workload.uid.0 == *uid)
                .count()
        };
        let mut open: Vec<Chosen> = (0..10).map(|_| choose(&streams, &state).unwrap()).collect();
        assert_eq!(
            (per_replica(&open, "w-1"), per_replica(&open, "w-2")),
            (5, 5)
        );
        state.apply([replica(3, Health::Healthy)]);
        open.extend((0..5).map(|_| choose(&streams, &state).unwrap()));
        assert_eq!(per_replica(&open, "w-3"), 5);
        drop(open);
        assert!(streams.0.lock().unwrap().is_empty(), "nothing is left over");
    }

    #[test]
    fn without_a_ready_replica_there_is_a_reason() {
        let state = State::new();
        let streams = WaypointStreams::default();
        let why = |state: &State| choose(&streams, state).err().unwrap();
        assert!(why(&state).contains("no replicas"));
        state.apply([replica(1, Health::Unhealthy)]);
        assert!(why(&state).contains("not ready"));
    }
}
