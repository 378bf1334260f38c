//! What a proxy saw, kept for people who look: its latest denials and failures, and who talks to whom.
//!
//! ```text
//!   connection, request ──► incident() ──► ring (INCIDENTS_MAX) ──┐
//!                       └─► edge().add() ─► edges (EDGES_MAX) ────┴─► take() ──► the controller, or whoever asks
//! ```
//!
//! No payload and no secret comes here: of a request method, path without query, host and status. Everything is bounded;
//! totals stay exact whatever is left out. Nothing is written to a disk.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use crate::{
    access_log::{Direction, Record},
    metrics::{
        Registry,
        tcp::{Peer, Security, ServiceLabels, TcpLabels},
    },
    request_log::RequestLine,
};

/// The program's own, as loggers have it: whatever ends a connection or a request can tell it.
static INSTALLED: OnceLock<Arc<Observed>> = OnceLock::new();

/// Makes the program's own, once; what is told before goes nowhere.
pub fn install(registry: &Registry) -> Arc<Observed> {
    INSTALLED
        .get_or_init(|| Observed::register(registry))
        .clone()
}

/// Incidents that are kept; the oldest is forgotten first.
pub const INCIDENTS_MAX: usize = 1000;
/// Edges that are kept apart; what belongs to further ones is only counted.
pub const EDGES_MAX: usize = 2000;
/// Longest reason, in bytes.
const REASON_MAX: usize = 1024;
/// Longest path, host, or other text of a client, in bytes.
const TEXT_MAX: usize = 256;

/// Whether somebody refused it, or it did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IncidentKind {
    Denied,
    Failed,
}

impl IncidentKind {
    fn of(denied: bool) -> Self {
        match denied {
            true => Self::Denied,
            false => Self::Failed,
        }
    }
}

/// One end of an incident. What is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub namespace: String,
    pub workload: String,
    /// SPIFFE ID, where TLS proved it.
    pub identity: String,
    pub addr: Option<SocketAddr>,
}

/// What is told of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestPart {
    pub method: String,
    /// Without its query.
    pub path: String,
    pub host: String,
    pub status: u16,
    /// Route and rule that matched.
    pub route: String,
    pub trace_id: String,
}

/// A connection or a request that was denied, or that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Milliseconds since the epoch; set when it is recorded.
    pub at: u64,
    /// Counts the program's incidents; set when it is recorded.
    pub number: u64,
    pub kind: IncidentKind,
    pub direction: Direction,
    pub source: End,
    pub destination: End,
    /// Host name of the service that was asked for, and its namespace in front: `<namespace>/<hostname>`.
    pub service: String,
    /// Istio's response flags.
    pub flag: String,
    pub reason: String,
    pub request: Option<Box<RequestPart>>,
}

impl Incident {
    /// An incident of which nothing more is known.
    pub fn new(kind: IncidentKind, direction: Direction, flag: &str, reason: String) -> Self {
        Self {
            at: 0,
            number: 0,
            kind,
            direction,
            source: End::default(),
            destination: End::default(),
            service: String::new(),
            flag: flag.to_owned(),
            reason,
            request: None,
        }
    }
}

/// Who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    pub direction: Direction,
    pub source_namespace: Arc<str>,
    pub source_workload: Arc<str>,
    pub source_identity: Arc<str>,
    pub destination_namespace: Arc<str>,
    pub destination_workload: Arc<str>,
    /// `<namespace>/<hostname>`.
    pub service: Arc<str>,
    pub port: u16,
    pub mutual_tls: bool,
}

/// What went over an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub connections: u64,
    pub requests: u64,
    pub denied: u64,
    pub failed: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

impl Traffic {
    /// Whether nothing went.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// Counts one edge. Cheap to keep, and to add to.
#[derive(Debug, Default)]
pub struct Edge {
    connections: AtomicU64,
    requests: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
}

impl Edge {
    pub fn add(&self, traffic: &Traffic) {
        let add = |counter: &AtomicU64, by: u64| {
            if by > 0 {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        };
        add(&self.connections, traffic.connections);
        add(&self.requests, traffic.requests);
        add(&self.denied, traffic.denied);
        add(&self.failed, traffic.failed);
        add(&self.request_bytes, traffic.request_bytes);
        add(&self.response_bytes, traffic.response_bytes);
    }

    fn take(&self) -> Traffic {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Traffic {
            connections: take(&self.connections),
            requests: take(&self.requests),
            denied: take(&self.denied),
            failed: take(&self.failed),
            request_bytes: take(&self.request_bytes),
            response_bytes: take(&self.response_bytes),
        }
    }
}

/// What was observed since the last [`Observed::take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The oldest first.
    pub incidents: Vec<Incident>,
    pub edges: Vec<(EdgeKey, Traffic)>,
    /// Since the program's start.
    pub denied_total: u64,
    pub failed_total: u64,
    /// Connections and requests in no edge, since the program's start.
    pub overflow_total: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DryRunLabels {
    policy: String,
    outcome: &'static str,
}

/// Policies in dry run that are counted apart; further ones share a name.
const DRY_RUN_POLICIES_MAX: usize = 1000;

/// What a policy in dry run would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WouldDo {
    Allow,
    Deny,
}

/// Counts and logs what a policy in dry run would have done. `policy` is its key; `*` stands for all ALLOW policies
/// together, of which none matched.
pub fn dry_run(policy: &str, would: WouldDo) {
    let outcome = match would {
        WouldDo::Allow => "allow",
        WouldDo::Deny => "deny",
    };
    tracing::info!(target: "access", policy, outcome, "a policy in dry run would decide");
    if let Some(observed) = INSTALLED.get() {
        observed.count_dry_run(policy, outcome);
    }
}

/// How a connection ended, beside what its record says.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Istio's response flags; `-`: nothing went wrong.
    pub flag: &'static str,
    pub denied: bool,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

/// Tells of a connection that ended, or was not made.
pub fn connection(record: &Record, labels: &TcpLabels, ended: Ended) {
    let Some(observed) = INSTALLED.get() else {
        return;
    };
    let port = record.destination.addr.map_or(0, |addr| addr.port());
    let asked = record.destination.hbone_addr.as_deref();
    let asked = asked.and_then(|addr| addr.rsplit_once(':')?.1.parse().ok());
    let service = match labels.service.host.is_empty() {
        true => String::new(),
        false => format!("{}/{}", labels.service.namespace, labels.service.host),
    };
    let failed = record.error.is_some() && !ended.denied;
    observed
        .edge(&EdgeKey {
            direction: record.direction,
            source_namespace: labels.source.namespace.clone(),
            source_workload: labels.source.workload.clone(),
            source_identity: labels.source.principal.clone(),
            destination_namespace: labels.destination.namespace.clone(),
            destination_workload: labels.destination.workload.clone(),
            service: service.as_str().into(),
            port: asked.unwrap_or(port),
            mutual_tls: labels.security == Security::MutualTls,
        })
        .add(&Traffic {
            connections: 1,
            denied: u64::from(ended.denied),
            failed: u64::from(failed),
            request_bytes: ended.request_bytes,
            response_bytes: ended.response_bytes,
            ..Traffic::default()
        });
    let Some(error) = &record.error else {
        return;
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let kind = IncidentKind::of(ended.denied);
    let mut incident = Incident::new(kind, record.direction, ended.flag, error.clone());
    incident.source = End {
        namespace: text(&record.source.namespace),
        workload: text(&record.source.workload),
        identity: text(&record.source.identity),
        addr: record.source.addr,
    };
    incident.destination = End {
        namespace: text(&record.destination.namespace),
        workload: text(&record.destination.workload),
        identity: text(&record.destination.identity),
        addr: record.destination.addr,
    };
    incident.service = service;
    observed.incident(incident);
}

/// One request for a service, as edges count it.
#[derive(Clone, Copy, Debug)]
pub struct Requested<'a> {
    pub source: &'a Peer,
    /// Nobody where none was chosen.
    pub destination: Option<&'a Peer>,
    pub service: Option<&'a ServiceLabels>,
    /// As the client dialled it.
    pub port: u16,
    pub mutual_tls: bool,
}

/// The counter of such requests: keep it for as long as the connection lives. `None`: nobody is told.
pub fn requests(of: &Requested<'_>) -> Option<Arc<Edge>> {
    INSTALLED.get().map(|observed| observed.edge(&of.key()))
}

impl Requested<'_> {
    fn key(&self) -> EdgeKey {
        let of = |pick: fn(&Peer) -> &Arc<str>| {
            let picked = self.destination.map(|peer| pick(peer).clone());
            picked.unwrap_or_default()
        };
        EdgeKey {
            direction: Direction::Waypoint,
            source_namespace: self.source.namespace.clone(),
            source_workload: self.source.workload.clone(),
            source_identity: self.source.principal.clone(),
            destination_namespace: of(|peer| &peer.namespace),
            destination_workload: of(|peer| &peer.workload),
            service: self.service.map_or_else(Arc::default, |service| {
                format!("{}/{}", service.namespace, service.host).into()
            }),
            port: self.port,
            mutual_tls: self.mutual_tls,
        }
    }
}

/// Tells of a request that was denied, or that failed.
pub fn request(line: &RequestLine<'_>, denied: bool) {
    let Some(observed) = INSTALLED.get() else {
        return;
    };
    let kind = IncidentKind::of(denied);
    let mut incident = Incident::new(
        kind,
        Direction::Waypoint,
        line.flag.as_str(),
        line.cause.to_owned(),
    );
    let end = |peer: &Peer, addr| End {
        namespace: peer.namespace.to_string(),
        workload: peer.workload.to_string(),
        identity: peer.principal.to_string(),
        addr,
    };
    incident.source = end(line.source, Some(line.client));
    incident.destination = end(line.destination, line.endpoint);
    if !line.service.host.is_empty() {
        incident.service = format!("{}/{}", line.service.namespace, line.service.host);
    }
    let path = line.path.split('?').next().unwrap_or_default();
    incident.request = Some(Box::new(RequestPart {
        method: line.method.to_owned(),
        path: path.to_owned(),
        host: line.authority.to_owned(),
        status: line.status,
        route: line.route.to_owned(),
        trace_id: line.trace.split('-').nth(1).unwrap_or_default().to_owned(),
    }));
    observed.incident(incident);
}

/// One per program. Share it in an `Arc`.
#[derive(Debug, Default)]
pub struct Observed {
    ring: Mutex<VecDeque<Incident>>,
    /// The number of the last incident that was taken.
    taken: AtomicU64,
    edges: Mutex<HashMap<EdgeKey, Arc<Edge>>>,
    overflow: Arc<Edge>,
    overflow_total: AtomicU64,
    counts: Family<KindLabel, Counter>,
    dry_runs: Family<DryRunLabels, Counter>,
    dry_run_policies: Mutex<HashSet<String>>,
    numbers: AtomicU64,
}

impl Observed {
    /// Registers `karst_incidents_total` by kind.
    pub fn register(registry: &Registry) -> Arc<Self> {
        let observed = Self {
            counts: registry.register(
                "karst_incidents",
                "Connections and requests that were denied or failed",
                Family::default(),
            ),
            dry_runs: registry.register(
                "karst_policy_dry_run",
                "What policies in dry run would have done, by policy",
                Family::default(),
            ),
            ..Self::default()
        };
        observed.count(IncidentKind::Denied);
        observed.count(IncidentKind::Failed);
        Arc::new(observed)
    }

    fn count(&self, kind: IncidentKind) -> Counter {
        let kind = match kind {
            IncidentKind::Denied => "denied",
            IncidentKind::Failed => "failed",
        };
        self.counts.get_or_create_owned(&KindLabel { kind })
    }

    fn count_dry_run(&self, policy: &str, outcome: &'static str) {
        let mut policies = self
            .dry_run_policies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = policies.contains(policy);
        let policy = match known || policies.len() < DRY_RUN_POLICIES_MAX {
            true => policy.to_owned(),
            false => "others".to_owned(),
        };
        if !known {
            policies.insert(policy.clone());
        }
        drop(policies);
        let labels = DryRunLabels { policy, outcome };
        self.dry_runs.get_or_create_owned(&labels).inc();
    }

    /// Keeps an incident, the oldest goes if there are too many.
    pub fn incident(&self, mut incident: Incident) {
        self.count(incident.kind).inc();
        incident.at = now_ms();
        shorten(&mut incident.reason, REASON_MAX);
        if let Some(request) = &mut incident.request {
            for text in [
                &mut request.method,
                &mut request.path,
                &mut request.host,
                &mut request.route,
                &mut request.trace_id,
            ] {
                shorten(text, TEXT_MAX);
            }
        }
        let mut ring = self.ring();
        incident.number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        if ring.len() >= INCIDENTS_MAX {
            ring.pop_front();
        }
        ring.push_back(incident);
    }

    /// The counter of an edge: keep it for as long as the connection lives.
    pub fn edge(&self, key: &EdgeKey) -> Arc<Edge> {
        let mut edges = self.edges();
        if let Some(known) = edges.get(key) {
            return known.clone();
        }
        if edges.len() >= EDGES_MAX {
            return self.overflow.clone();
        }
        let edge = Arc::new(Edge::default());
        edges.insert(key.clone(), edge.clone());
        edge
    }

    /// All incidents that are kept, the oldest first.
    pub fn incidents(&self) -> Vec<Incident> {
        self.ring().iter().cloned().collect()
    }

    /// What is new since the last call: at most `incidents` incidents, the latest of them.
    pub fn take(&self, incidents: usize) -> Batch {
        let ring = self.ring();
        let taken = self.taken.load(Ordering::Relaxed);
        let first = ring.partition_point(|incident| incident.number <= taken);
        let first = first.max(ring.len().saturating_sub(incidents));
        let new: Vec<Incident> = ring.iter().skip(first).cloned().collect();
        if let Some(last) = ring.back() {
            self.taken.store(last.number, Ordering::Relaxed);
        }
        drop(ring);
        let beyond = self.overflow.take();
        let beyond = beyond.connections + beyond.requests;
        let overflow_total = self.overflow_total.fetch_add(beyond, Ordering::Relaxed) + beyond;
        Batch {
            incidents: new,
            edges: self.take_edges(),
            denied_total: self.count(IncidentKind::Denied).get(),
            failed_total: self.count(IncidentKind::Failed).get(),
            overflow_total,
        }
    }

    /// Edges over which something went; those that nobody holds any more leave.
    fn take_edges(&self) -> Vec<(EdgeKey, Traffic)> {
        let mut taken = Vec::new();
        self.edges().retain(|key, edge| {
            // Before the counters are read: who gets hold of it later finds it in the map.
            let held = Arc::strong_count(edge) > 1;
            let traffic = edge.take();
            if !traffic.is_zero() {
                taken.push((key.clone(), traffic));
            }
            held
        });
        taken
    }

    /// Every critical section leaves ring and map whole, so a poisoned lock is still good.
    fn ring(&self) -> MutexGuard<'_, VecDeque<Incident>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edges(&self) -> MutexGuard<'_, HashMap<EdgeKey, Arc<Edge>>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Cuts a text at the last letter that fits.
fn shorten(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(reason: &str) -> Incident {
        Incident::new(
            IncidentKind::Denied,
            Direction::Inbound,
            "DENY",
            reason.to_owned(),
        )
    }

    fn key(port: u16) -> EdgeKey {
        EdgeKey {
            direction: Direction::Outbound,
            source_namespace: "shop".into(),
            source_workload: "front".into(),
            source_identity: "".into(),
            destination_namespace: "shop".into(),
            destination_workload: "orders".into(),
            service: "".into(),
            port,
            mutual_tls: true,
        }
    }

    #[test]
    fn a_flood_of_denials_keeps_the_latest_and_counts_all() {
        let observed = Observed::register(&Registry::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let observed = observed.clone();
                std::thread::spawn(move || {
                    (0..5000).for_each(|_| observed.incident(denied("no")));
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let batch = observed.take(500);
        assert_eq!(batch.denied_total, 20_000);
        assert_eq!(batch.incidents.len(), 500);
        assert_eq!(batch.incidents.last().unwrap().number, 20_000);
        assert_eq!(observed.incidents().len(), INCIDENTS_MAX);
        assert!(observed.take(500).incidents.is_empty(), "told once");
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let observed = Observed::register(&Registry::new());
        let mut incident = denied(&"ä".repeat(2000));
        incident.request = Some(Box::new(RequestPart {
            path: "/".repeat(10_000),
            ..RequestPart::default()
        }));
        observed.incident(incident);
        let kept = observed.incidents().remove(0);
        assert!(kept.reason.len() <= REASON_MAX + 4, "{}", kept.reason.len());
        assert!(kept.request.unwrap().path.len() <= TEXT_MAX + 4);
    }

    #[test]
    fn edges_are_bounded_and_what_is_beyond_is_counted() {
        let observed = Observed::register(&Registry::new());
        let one = Traffic {
            connections: 1,
            request_bytes: 10,
            ..Traffic::default()
        };
        let ports = u16::try_from(EDGES_MAX).unwrap() + 10;
        (0..ports).for_each(|port| observed.edge(&key(port)).add(&one));
        let batch = observed.take(0);
        assert_eq!(batch.edges.len(), EDGES_MAX);
        assert_eq!(batch.overflow_total, 10);
        assert!(observed.take(0).edges.is_empty());
        // Those that nobody holds made room.
        observed.edge(&key(1)).add(&one);
        assert_eq!(observed.take(0).edges, [(key(1), one)]);
    }
}
