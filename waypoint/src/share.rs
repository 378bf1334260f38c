//! Evens out what the replicas of this waypoint have to do. A client's connection stays where it was opened; so a replica
//! that has more than its share asks some of its clients to connect again, and their agents send them where there is
//! least. What a client notices is a GOAWAY on HTTP/2, `connection: close` on HTTP/1.
//!
//! ```text
//!   requests counted by connection ──twice a second──► routing::share ──► who is told
//!   the other replicas' requests  ──HBONE, our own identity on both sides──┘
//! ```
//!
//! A replica that does nothing asks nobody. One that does not answer does not count, and nothing here needs a controller.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use hashbrown::HashMap;
use karst_hbone::{Authority, Incoming, PoolKey, TunnelIo, TunnelRequest};
use karst_model::workload::{Health, Workload};
use karst_routing::share::{Load, Share};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{mesh::Mesh, workers::Worker};

/// How often loads are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long another replica may take to say how much it does.
const PATIENCE: Duration = Duration::from_millis(400);
/// Replicas that are asked; of more, the others do not count.
const ASKED_MAX: usize = 64;
/// Longest answer, in bytes.
const ANSWER_MAX: u64 = 32;
/// The host of the question. Nobody else's name ends so (RFC 9476 keeps it out of the DNS).
const QUESTION: &str = "load.karst.alt";
const QUESTION_PORT: u16 = 15008;

/// A client's HTTP connection.
pub(crate) struct Counted {
    id: u64,
    since: Instant,
    requests: AtomicU64,
    leaves: AtomicBool,
    told: Notify,
}

/// The HTTP connections of clients, bounded as connections are, and how much all of them do.
#[derive(Default)]
pub(crate) struct Shared {
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Counted>>>,
    /// Thousandths of requests per second, when last looked.
    load: AtomicU64,
}

/// A connection's place among the others until it is dropped.
pub(crate) struct Member {
    shared: Arc<Shared>,
    counted: Arc<Counted>,
}

impl Member {
    pub(crate) fn join(shared: &Arc<Shared>) -> Self {
        let counted = Arc::new(Counted {
            id: shared.next.fetch_add(1, Ordering::Relaxed),
            since: Instant::now(),
            requests: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
            told: Notify::new(),
        });
        shared.lock().insert(counted.id, counted.clone());
        Self {
            shared: shared.clone(),
            counted,
        }
    }

    /// One request more.
    pub(crate) fn count(&self) {
        self.counted.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the client should connect again.
    pub(crate) fn leaves(&self) -> bool {
        self.counted.leaves.load(Ordering::Relaxed)
    }

    /// Completes when the client should connect again, once.
    pub(crate) async fn told(&self) {
        self.counted.told.notified().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.counted.id);
    }
}

/// Requests of each connection up to the last look.
type Before = HashMap<u64, u64>;

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Counted>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What each connection has done since the last look, those left out that were told to leave.
    fn look(&self, before: &mut Before, now: Instant, since: Duration) -> Vec<Load> {
        let seconds = since.as_secs_f64().max(f64::EPSILON);
        let connections = self.lock();
        before.retain(|id, _| connections.contains_key(id));
        let stays = connections
            .values()
            .filter(|one| !one.leaves.load(Ordering::Relaxed));
        let looked = stays.map(|one| {
            let requests = one.requests.load(Ordering::Relaxed);
            let age = now.saturating_duration_since(one.since);
            let known = before.insert(one.id, requests);
            // An old one that was not looked at before says nothing yet.
            let known = known.unwrap_or(if age <= since { 0 } else { requests });
            Load {
                id: one.id,
                rate: requests.saturating_sub(known) as f64 / seconds,
                age,
            }
        });
        looked.collect()
    }

    fn tell(&self, id: u64) {
        if let Some(counted) = self.lock().get(&id) {
            counted.leaves.store(true, Ordering::Relaxed);
            counted.told.notify_one();
        }
    }
}

/// Looks until the thread ends.
pub(crate) async fn run(worker: Rc<Worker>) {
    let mesh = &worker.mesh;
    let (mut share, mut before) = (Share::default(), Before::new());
    let start = Instant::now();
    let mut last = start;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        let since = now.saturating_duration_since(std::mem::replace(&mut last, now));
        let others = others(mesh);
        if others.is_empty() {
            before.clear();
            continue;
        }
        let own = mesh.share.look(&mut before, now, since);
        let has: f64 = own.iter().map(|one| one.rate).sum();
        let thousandths = (has * 1000.0) as u64;
        mesh.share.load.store(thousandths, Ordering::Relaxed);
        if thousandths == 0 {
            continue;
        }
        let asked = others.iter().map(|(other, ip)| ask(&worker, other, *ip));
        let answered: Vec<f64> = join_all(asked).await.into_iter().flatten().collect();
        let leave = share.decide(start.elapsed(), &own, &answered);
        if leave.is_empty() {
            continue;
        }
        tracing::info!(
            connections = leave.len(),
            of = own.len(),
            requests_per_second = has as u64,
            others = ?answered,
            "clients are asked to connect again: this replica has more than its share"
        );
        mesh.metrics.connections_moved.inc_by(leave.len() as u64);
        leave.into_iter().for_each(|id| mesh.share.tell(id));
    }
}

/// The other replicas that clients may be sent to.
fn others(mesh: &Mesh) -> Vec<(Arc<Workload>, IpAddr)> {
    let own = mesh.config.pod_ip;
    if !mesh.config.share_connections {
        return Vec::new();
    }
    let replicas = mesh.state.endpoints(&mesh.config.own_service());
    let others = replicas.iter().filter_map(|one| {
        let serves = one.health == Health::Healthy
            && one.network == mesh.config.own_network()
            && one.identity() == mesh.identity
            && !one.addresses.contains(&own);
        let like = |ip: &&IpAddr| ip.is_ipv4() == own.is_ipv4();
        let ip = one
            .addresses
            .iter()
            .find(like)
            .or_else(|| one.addresses.first())?;
        serves.then(|| (one.clone(), *ip))
    });
    others.take(ASKED_MAX).collect()
}

/// Requests per second of another replica; `None` where it does not say.
async fn ask(worker: &Worker, other: &Workload, ip: IpAddr) -> Option<f64> {
    let mesh = &worker.mesh;
    let key = PoolKey {
        source: mesh.config.workload_uid(),
        source_identity: mesh.identity.clone(),
        destination: other.uid.clone(),
        addr: SocketAddr::new(ip, mesh.config.hbone_port),
        accepted: Arc::new([mesh.identity.clone()]),
    };
    let question = TunnelRequest::new(Authority::Host(QUESTION.into(), QUESTION_PORT));
    let asked = async {
        let tunnel = worker.upstreams.tunnel(key, question).await.ok()?;
        let mut io = TunnelIo::from(tunnel);
        let mut text = String::new();
        let mut answer = (&mut io).take(ANSWER_MAX);
        answer.read_to_string(&mut text).await.ok()?;
        io.shutdown().await.ok()?;
        text.trim().parse::<u64>().ok()
    };
    let thousandths = timeout(PATIENCE, asked).await.ok()??;
    Some(thousandths as f64 / 1000.0)
}

/// Whether a stream asks how much this replica does, instead of for a destination.
pub(crate) fn is_question(authority: &Authority) -> bool {
    matches!(authority, Authority::Host(host, QUESTION_PORT) if **host == *QUESTION)
}

/// Says how much this replica does.
pub(crate) async fn answer(mesh: &Mesh, question: Incoming) {
    let text = format!("{}\n", mesh.share.load.load(Ordering::Relaxed));
    let Ok(tunnel) = question.accept(None) else {
        return;
    };
    let mut io = TunnelIo::from(tunnel);
    let said = async {
        io.write_all(text.as_bytes()).await?;
        io.shutdown().await?;
        io.read_u8().await
    };
    // It ends when the other side has read and closed.
    let _closed_or_late = timeout(PATIENCE, said).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_from_look_to_look_until_they_leave() {
        let shared = Arc::new(Shared::default());
        let (busy, idle) = (Member::join(&shared), Member::join(&shared));
        let mut before = Before::new();
        let look = |before: &mut Before, later: u64| {
            let now = Instant::now() + Duration::from_secs(later);
            let mut rates: Vec<(u64, f64)> = shared
                .look(before, now, Duration::from_secs(1))
                .into_iter()
                .map(|one| (one.id, one.rate))
                .collect();
            rates.sort_by_key(|(id, _)| *id);
            rates
        };
        (0..10).for_each(|_| busy.count());
        // Nobody knows since when.
        assert_eq!(look(&mut before, 9), [(0, 0.0), (1, 0.0)]);
        (0..7).for_each(|_| busy.count());
        assert_eq!(look(&mut before, 10), [(0, 7.0), (1, 0.0)]);
        shared.tell(0);
        assert!(busy.leaves() && !idle.leaves());
        assert_eq!(look(&mut before, 11), [(1, 0.0)]);
        drop((busy, idle));
        assert_eq!(look(&mut before, 12), []);
        assert!(before.is_empty() && shared.lock().is_empty());
    }
}
