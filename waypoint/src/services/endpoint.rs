//! One place that serves a port: a workload, an address, and how it is reached. The same endpoint is one object however
//! many services have it and however often they are compiled, so that its load is counted once.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use karst_hbone::PoolKey;
use karst_model::{
    identity::SpiffeId,
    name::WorkloadUid,
    protocol::{HBONE_PORT, TunnelProtocol},
    workload::Workload,
};
use karst_routing::ewma::Ewma;
use karst_telemetry::metrics::tcp::Peer;
use tokio::sync::watch;

use super::live::{Live, SetKey, Totals};
use crate::labels;

/// What tells two endpoints apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointKey {
    pub(crate) workload: WorkloadUid,
    /// The application's own address and port.
    pub(crate) addr: SocketAddr,
}

/// An endpoint and its load.
pub(crate) struct Endpoint {
    /// Unique in this process: what pooled connections are found by. A workload that changed is another endpoint.
    pub(crate) id: u64,
    pub(crate) workload: Arc<Workload>,
    pub(crate) addr: SocketAddr,
    pub(crate) way: Way,
    pub(crate) labels: Arc<Peer>,
    in_flight: AtomicU32,
    /// How slow it is, where somebody wants to know.
    latency: AtomicU64,
}

/// How an endpoint is reached.
pub(crate) enum Way {
    /// Plain TCP: the workload is not in the mesh.
    Plain,
    /// Through HBONE.
    Tunnel(PoolKey),
}

/// Counts a request or a connection as load of an endpoint while it lives.
pub(crate) struct InFlight(Arc<Endpoint>);

impl Endpoint {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What one more request would cost it; see [`Ewma`].
    pub(crate) fn cost(&self, now: Duration) -> u64 {
        Ewma::from_bits(self.latency.load(Ordering::Relaxed)).cost(now, self.in_flight())
    }

    /// A request was answered after this time.
    pub(crate) fn took(&self, now: Duration, took: Duration) {
        let step = |bits| {
            let mut mean = Ewma::from_bits(bits);
            mean.observe(now, took);
            Some(mean.to_bits())
        };
        // It never refuses.
        let _ = self
            .latency
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    pub(crate) fn start(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl InFlight {
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All endpoints that somebody holds.
pub(crate) struct Endpoints {
    source_identity: SpiffeId,
    source: WorkloadUid,
    known: HashMap<EndpointKey, Weak<Endpoint>>,
    /// What is known of sets of endpoints, for as long as somebody has one compiled.
    lives: HashMap<SetKey, Weak<Live>>,
    /// Tells all threads that somebody waits for a connection.
    wanted: watch::Sender<()>,
    pub(super) totals: Totals,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Endpoints {
    pub(crate) fn new(source_identity: SpiffeId, source: WorkloadUid) -> Self {
        Self {
            source_identity,
            source,
            known: HashMap::new(),
            lives: HashMap::new(),
            wanted: watch::Sender::new(()),
            totals: Totals::default(),
        }
    }

    /// Somebody waits for a connection of a set that has no more.
    pub(super) fn wanted(&self) -> watch::Receiver<()> {
        self.wanted.subscribe()
    }

    /// What is known of a set.
    pub(super) fn live(&mut self, key: SetKey) -> Arc<Live> {
        if let Some(live) = self.lives.get(&key).and_then(Weak::upgrade) {
            return live;
        }
        let live = Live::new(key.clone(), self.wanted.clone(), self.totals.clone());
        self.lives.insert(key, Arc::downgrade(&live));
        live
    }

    /// The endpoint that `workload` is at this key. `further`: identities that it may have beside its own.
    pub(crate) fn get(
        &mut self,
        workload: &Arc<Workload>,
        further: &[Arc<str>],
        key: EndpointKey,
    ) -> Arc<Endpoint> {
        let way = self.way(workload, further, &key);
        let known = self.known.get(&key).and_then(Weak::upgrade);
        if let Some(known) =
            known.filter(|known| known.workload == *workload && known.way.is_like(&way))
        {
            return known;
        }
        let principal = matches!(way, Way::Tunnel(_)).then(|| workload.identity());
        let fresh = Arc::new(Endpoint {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            labels: Arc::new(labels::peer(Some(workload), principal.as_ref())),
            workload: workload.clone(),
            addr: key.addr,
            way,
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
        });
        self.known.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// Drops what nobody holds any more.
    pub(crate) fn forget_unused(&mut self) {
        self.known.retain(|_, known| known.strong_count() > 0);
        self.lives.retain(|_, live| live.strong_count() > 0);
    }

    fn way(&self, workload: &Workload, further: &[Arc<str>], key: &EndpointKey) -> Way {
        match workload.tunnel {
            TunnelProtocol::None => Way::Plain,
            TunnelProtocol::Hbone => {
                let further = further
                    .iter()
                    .filter_map(|name| name.parse::<SpiffeId>().ok());
                Way::Tunnel(PoolKey {
                    source: self.source.clone(),
                    source_identity: self.source_identity.clone(),
                    destination: key.workload.clone(),
                    addr: SocketAddr::new(key.addr.ip(), HBONE_PORT),
                    accepted: std::iter::once(workload.identity())
                        .chain(further)
                        .collect(),
                })
            }
        }
    }
}

impl Way {
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Tunnel(a), Self::Tunnel(b)) => a == b,
            _ => false,
        }
    }
}
