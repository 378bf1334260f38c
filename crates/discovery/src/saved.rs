//! The last known state on disk, so that an agent that restarts without a controller goes on.
//!
//! Two files: `node.state` (the pods of this node; written within a moment of a change) and `mesh.state` (workloads,
//! services, policies, routes; written at most every second, less often where that takes long). Each is a header, length-delimited records and a hash of
//! all before it; written aside, then renamed over the old one. A file of another version or with another hash is left
//! alone and counts as absent, with a warning.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use karst_model::{
    telemetry::{ProviderKind, Telemetry},
    traffic::ServiceTraffic,
};
use karst_proto::{
    convert::{self, Address, ConvertError, Interner},
    karst::{SavedRecord, saved_record::Kind as Record},
};
use karst_runtime::supervise::Shutdown;
use prost::Message as _;
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use crate::{
    state::{Change, Changed, Origin, State},
    update::Update,
};

/// First bytes of a file; the digit is the version of the format.
const HEADER: &[u8] = b"karst-state 1\n";
/// Bytes of the hash at the end.
const HASH_BYTES: usize = 8;
/// From a change to its write, so that a burst is one write. Further changes do not put it off: where there is always
/// another, nothing would ever be written.
const BURST: Duration = Duration::from_millis(50);
/// Least time between two writes of the mesh.
const MESH_PAUSE: Duration = Duration::from_secs(1);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Share of time that writing may take: one part in so many.
const WRITE_SHARE: u32 = 50;

/// The files of one agent.
#[derive(Clone, Debug)]
pub struct Saved {
    node: PathBuf,
    mesh: PathBuf,
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("is of another version of Karst, or no state file")]
    Header,
    #[error("is damaged: its hash does not match")]
    Hash,
    #[error("holds a record that cannot be read")]
    Record(#[source] prost::DecodeError),
    #[error("holds a resource that cannot be used")]
    Resource(#[from] ConvertError),
}

impl Saved {
    /// Files in `dir`, which must exist.
    pub fn new(dir: &Path) -> Self {
        Self {
            node: dir.join("node.state"),
            mesh: dir.join("mesh.state"),
        }
    }

    /// Fills `state` with what an earlier run left. Its origin becomes [`Origin::Disk`] if the mesh is known.
    pub fn restore(&self, state: &State) {
        let known_mesh = restore_file(&self.mesh, state);
        restore_file(&self.node, state);
        if known_mesh {
            state.raise_origin(Origin::Disk);
        }
    }

    /// Writes what `state` holds whenever it has changed, until `shutdown`; never before a controller has completed
    /// the state, so that half of it does not replace all of the old.
    pub async fn keep(self, state: Arc<State>, shutdown: Shutdown) {
        let mut origin = state.origin();
        let mut changes = state.changes();
        let synced = async {
            let reached = origin
                .wait_for(|origin| *origin == Origin::Controller)
                .await;
            reached.is_ok()
        };
        if shutdown.run_until_cancelled(synced).await != Some(true) {
            return;
        }
        let now = Instant::now();
        let mut due = Due {
            node: Some(now),
            mesh: Some(now),
            mesh_after: now,
        };
        loop {
            tokio::select! {
                changed = changes.next() => match changed {
                    Some(changed) => due.note(&changed, Instant::now()),
                    None => return,
                },
                part = due.next() => {
                    let began = Instant::now();
                    let written = self.write(&state, part).await;
                    due.wrote(part, began, written);
                }
                () = shutdown.cancelled() => break,
            }
        }
        self.write(&state, Part::Node).await;
        self.write(&state, Part::Mesh).await;
    }

    /// Whether it was written.
    async fn write(&self, state: &Arc<State>, part: Part) -> bool {
        let (state, path) = (state.clone(), self.path(part).to_owned());
        let written =
            tokio::task::spawn_blocking(move || save(&path, &records(&state, part))).await;
        match written {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(file = %self.path(part).display(), %error, "last known state cannot be written; a restart without a controller would start from an older one");
                false
            }
            Err(_panic) => false,
        }
    }

    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Node => &self.node,
            Part::Mesh => &self.mesh,
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Node,
    Mesh,
}

/// When files that are older than the state are written.
struct Due {
    node: Option<Instant>,
    mesh: Option<Instant>,
    /// The mesh is not written before.
    mesh_after: Instant,
}

impl Due {
    fn note(&mut self, changed: &Changed, now: Instant) {
        let (node, mesh) = match changed {
            Changed::Everything => (true, true),
            Changed::Some(changes) => {
                let of_node = |change: &Change| matches!(change, Change::NodeWorkload(_));
                let node = changes.iter().any(of_node);
                (node, !changes.iter().all(of_node))
            }
        };
        let soon = now + BURST;
        if node {
            self.node.get_or_insert(soon);
        }
        if mesh {
            let due = soon.max(self.mesh_after);
            self.mesh.get_or_insert(due);
        }
    }

    /// The part that is due first, when it is; never while none is.
    async fn next(&self) -> Part {
        let node = self.node.map(|at| (at, Part::Node));
        let mesh = self.mesh.map(|at| (at, Part::Mesh));
        match node.into_iter().chain(mesh).min_by_key(|(at, _)| *at) {
            Some((at, part)) => {
                tokio::time::sleep_until(at).await;
                part
            }
            None => std::future::pending().await,
        }
    }

    fn wrote(&mut self, part: Part, began: Instant, written: bool) {
        let now = Instant::now();
        let again = (!written).then(|| now + RETRY);
        match part {
            Part::Node => self.node = again,
            Part::Mesh => {
                self.mesh = again;
                self.mesh_after = now + MESH_PAUSE.max((now - began) * WRITE_SHARE);
            }
        }
    }
}

/// Whether a file was there and good.
fn restore_file(path: &Path, state: &State) -> bool {
    match load(path) {
        Ok(updates) => {
            tracing::info!(file = %path.display(), resources = updates.len(), "last known state restored");
            state.apply(updates);
            true
        }
        Err(LoadError::Read(error)) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            let error = karst_telemetry::error_chain::Chain(&error).to_string();
            tracing::warn!(file = %path.display(), error, "last known state not used: waiting for a controller");
            false
        }
    }
}

/// Reads a file; all of it or nothing.
fn load(path: &Path) -> Result<Vec<Update>, LoadError> {
    let bytes = fs::read(path).map_err(LoadError::Read)?;
    let body = bytes.strip_prefix(HEADER).ok_or(LoadError::Header)?;
    let (mut records, hash) = body
        .split_last_chunk::<HASH_BYTES>()
        .ok_or(LoadError::Hash)?;
    if u64::from_be_bytes(*hash) != xxh64(&bytes[..bytes.len() - HASH_BYTES], 0) {
        return Err(LoadError::Hash);
    }
    let mut interner = Interner::default();
    let mut updates = Vec::new();
    while !records.is_empty() {
        let record =
            SavedRecord::decode_length_delimited(&mut records).map_err(LoadError::Record)?;
        updates.extend(
            record
                .kind
                .map(|kind| update(kind, &mut interner))
                .transpose()?,
        );
    }
    Ok(updates)
}

fn update(record: Record, interner: &mut Interner) -> Result<Update, ConvertError> {
    Ok(match record {
        Record::Address(bytes) => match convert::decode_address(&bytes, interner)? {
            Address::Workload(workload) => Update::Workload(workload.into()),
            Address::Service(service) => Update::Service(service.into()),
        },
        Record::Authorization(bytes) => {
            Update::Policy(convert::decode_authorization(&bytes, interner)?.into())
        }
        Record::NodeWorkload(pod) => {
            Update::NodeWorkload(convert::node_workload_from(pod, interner)?.into())
        }
        Record::Route(bytes) => Update::Route(convert::decode_route(&bytes, interner)?.into()),
        Record::ServiceTraffic(bytes) => {
            Update::ServiceTraffic(convert::decode_service_traffic(&bytes, interner)?.into())
        }
        Record::WaypointPolicy(bytes) => {
            Update::WaypointPolicy(convert::decode_waypoint_policy(&bytes, interner)?.into())
        }
        Record::TrustDomains(domains) => {
            Update::TrustDomains(convert::trust_domains_from(domains)?.into())
        }
        Record::RateLimit(bytes) => {
            Update::RateLimit(convert::decode_rate_limit(&bytes, interner)?.into())
        }
        Record::Telemetry(bytes) => {
            Update::Telemetry(convert::decode_telemetry(&bytes, interner)?.into())
        }
        Record::RequestAuthentication(bytes) => Update::RequestAuthentication(
            convert::decode_request_authentication(&bytes, interner)?.into(),
        ),
    })
}

fn records(state: &State, part: Part) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    let mut add = |kind: Record| {
        let record = SavedRecord { kind: Some(kind) };
        bytes.extend(record.encode_length_delimited_to_vec());
    };
    match part {
        Part::Node => {
            state
                .node_workloads()
                .iter()
                .for_each(|pod| add(Record::NodeWorkload(convert::node_workload_to(pod))));
        }
        Part::Mesh => {
            if let Some(domains) = state.trust_domains() {
                add(Record::TrustDomains(convert::trust_domains_to(&domains)));
            }
            let policies = state.policies();
            policies.iter().for_each(|p| {
                add(Record::Authorization(
                    convert::authorization_to(p).encode_to_vec(),
                ))
            });
            let services = state.services();
            services
                .iter()
                .for_each(|s| add(Record::Address(convert::service_to(s).encode_to_vec())));
            let workloads = state.workloads();
            workloads
                .iter()
                .for_each(|w| add(Record::Address(convert::workload_to(w).encode_to_vec())));
            let policies = state.waypoint_policies();
            policies.iter().for_each(|p| {
                add(Record::WaypointPolicy(
                    convert::waypoint_policy_to(p).encode_to_vec(),
                ))
            });
            let authentications = state.request_authentications();
            authentications.iter().for_each(|one| {
                add(Record::RequestAuthentication(
                    convert::request_authentication_to(one).encode_to_vec(),
                ))
            });
            let limits = state.rate_limits();
            limits.iter().for_each(|limit| {
                add(Record::RateLimit(
                    convert::rate_limit_to(limit).encode_to_vec(),
                ))
            });
            let telemetries = state.telemetries();
            telemetries.iter().for_each(|one| {
                add(Record::Telemetry(
                    convert::telemetry_to(&without_headers(one)).encode_to_vec(),
                ))
            });
            let traffic = state.traffic();
            traffic.iter().for_each(|t| {
                add(Record::ServiceTraffic(
                    convert::service_traffic_to(&without_keys(t)).encode_to_vec(),
                ))
            });
            let routes = state.routes();
            routes
                .iter()
                .for_each(|r| add(Record::Route(convert::route_to(r).encode_to_vec())));
        }
    }
    let hash = xxh64(&bytes, 0);
    bytes.extend(hash.to_be_bytes());
    bytes
}

/// Nor does what gives access to a collector: until the controller has answered, one that asks for it takes nothing.
fn without_headers(telemetry: &Telemetry) -> Telemetry {
    let mut telemetry = telemetry.clone();
    if let Telemetry::Mesh(mesh) = &mut telemetry {
        for provider in &mut mesh.providers {
            if let ProviderKind::Opentelemetry(collector) = &mut provider.kind {
                collector.headers.clear();
            }
        }
    }
    telemetry
}

/// Private keys do not go to disk: until the controller has answered, connections that need one fail.
fn without_keys(traffic: &ServiceTraffic) -> ServiceTraffic {
    let mut traffic = traffic.clone();
    for scope in &mut traffic.scopes {
        if let Some(tls) = &mut scope.policy.tls {
            tls.credential = None;
        }
    }
    traffic
}

fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use karst_model::{
        enrollment::{CaptureOptions, EnrollMode, Generation, NodeWorkload, Plaintext},
        identity::{TrustDomain, TrustDomains},
        rate_limit::{Enforcement, LimitHeaders, LimitScope, RateLimit},
        route::{Attachment, Clients, Route, RouteRules},
        service::Service,
        telemetry::{Collector, MeshTelemetry, OtlpProtocol, Provider},
        token::RequestAuthentication,
        traffic::{ClientCredential, Scope, Secret, TlsMode, TrafficPolicy, UpstreamTls},
        waypoint_policy::{PolicyTarget, RequestAction, WaypointPolicy},
        workload::Workload,
    };

    use super::*;

    fn filled() -> State {
        let state = State::new();
        let pod = NodeWorkload {
            pod_uid: "u-1".into(),
            name: "a".into(),
            namespace: "shop".into(),
            service_account: "a".into(),
            workload_uid: "c//Pod/shop/a".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            mode: EnrollMode::Ambient,
            generation: Generation(7),
            plaintext: Plaintext::Entering,
            capture: CaptureOptions::default(),
            probe_ports: vec![8080],
        };
        state.apply([
            Update::TrustDomains(Arc::new(TrustDomains {
                own: TrustDomain("new.example".into()),
                aliases: vec![TrustDomain::default()],
            })),
            Update::Workload(Arc::new(Workload {
                cluster_id: "c".into(),
                ..Workload::new("c//Pod/shop/a")
            })),
            Update::Service(Arc::new(Service::new("shop", "a.shop.svc.cluster.local"))),
            Update::NodeWorkload(Arc::new(pod)),
            Update::Route(Arc::new(Route {
                key: "TCPRoute/shop/a".parse().unwrap(),
                created: 1,
                attachments: vec![Attachment {
                    service: "shop/a".parse().unwrap(),
                    port: None,
                    clients: Clients::All,
                }],
                rules: RouteRules::Tcp(Vec::new()),
            })),
            Update::ServiceTraffic(Arc::new(ServiceTraffic {
                service: "shop/a".parse().unwrap(),
                scopes: vec![Scope::default()],
                subsets: Vec::new(),
                sources: Vec::new(),
            })),
            Update::WaypointPolicy(Arc::new(WaypointPolicy {
                key: "shop/p".parse().unwrap(),
                targets: vec![PolicyTarget::GatewayClass("c".into())],
                action: RequestAction::Deny,
                provider: None,
                dry_run: false,
                rules: Vec::new(),
            })),
            Update::RateLimit(Arc::new(RateLimit {
                key: "shop/limit".parse().unwrap(),
                targets: Vec::new(),
                enforcement: Enforcement::Enforce,
                scope: LimitScope::Process,
                status: 429,
                headers: LimitHeaders::Draft,
                rules: Vec::new(),
            })),
            Update::RequestAuthentication(Arc::new(RequestAuthentication {
                key: "shop/users".parse().unwrap(),
                targets: vec![PolicyTarget::GatewayClass("c".into())],
                rules: Vec::new(),
            })),
        ]);
        state
    }

    #[test]
    fn state_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, state) = (Saved::new(dir.path()), filled());
        save(&saved.node, &records(&state, Part::Node)).unwrap();
        save(&saved.mesh, &records(&state, Part::Mesh)).unwrap();
        let again = State::new();
        saved.restore(&again);
        assert_eq!(*again.origin().borrow(), Origin::Disk);
        assert_eq!(again.workloads(), state.workloads());
        assert_eq!(again.services(), state.services());
        assert_eq!(again.trust_domains(), state.trust_domains());
        assert_eq!(again.node_workloads(), state.node_workloads());
        assert_eq!(again.routes(), state.routes());
        assert_eq!(again.waypoint_policies(), state.waypoint_policies());
        assert_eq!(again.traffic(), state.traffic());
        assert_eq!(again.rate_limits(), state.rate_limits());
        assert_eq!(
            again.request_authentications(),
            state.request_authentications()
        );
    }

    #[test]
    fn changes_without_end_do_not_put_a_write_off() {
        let start = Instant::now();
        let mut due = Due {
            node: None,
            mesh: None,
            mesh_after: start,
        };
        for millis in 0..10_000 {
            due.note(&Changed::Everything, start + Duration::from_millis(millis));
        }
        assert_eq!(
            (due.node, due.mesh),
            (Some(start + BURST), Some(start + BURST))
        );
        due.wrote(Part::Mesh, start, true);
        assert_eq!(due.mesh, None);
        due.note(&Changed::Everything, start);
        assert_eq!(due.mesh, Some(due.mesh_after), "not more often than that");
    }

    #[test]
    fn private_keys_and_access_to_collectors_do_not_go_to_disk() {
        let mut tls = UpstreamTls::new(TlsMode::Mutual);
        tls.credential = Some(ClientCredential {
            name: "shop/cert".into(),
            chain: "CHAIN".into(),
            key: Secret::new("PRIVATE"),
        });
        let scope = Scope {
            policy: TrafficPolicy {
                tls: Some(tls),
                ..TrafficPolicy::default()
            },
            ..Scope::default()
        };
        let state = State::new();
        state.apply([Update::ServiceTraffic(Arc::new(ServiceTraffic {
            service: "shop/a".parse().unwrap(),
            scopes: vec![scope],
            subsets: Vec::new(),
            sources: Vec::new(),
        }))]);
        let collector = ProviderKind::Opentelemetry(Collector {
            service: "obs/otel".parse().unwrap(),
            port: 4317,
            protocol: OtlpProtocol::Grpc,
            timeout_ms: 1000,
            headers: vec![("authorization".into(), Secret::new("PRIVATE"))],
            tls: None,
        });
        let mesh = Telemetry::Mesh(MeshTelemetry {
            providers: vec![Provider {
                name: "otel".into(),
                kind: collector,
            }],
            ..MeshTelemetry::default()
        });
        state.apply([Update::Telemetry(Arc::new(mesh))]);
        let bytes = records(&state, Part::Mesh);
        let has = |text: &[u8]| bytes.windows(text.len()).any(|at| at == text);
        assert!(has(b"shop/a") && has(b"obs/otel") && !has(b"PRIVATE"));
    }

    #[test]
    fn a_damaged_file_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, good) = (Saved::new(dir.path()), records(&filled(), Part::Mesh));
        let mut flipped = good.clone();
        flipped[HEADER.len() + 3] ^= 1;
        let other_version = [b"karst-state 2\n".as_slice(), &good[HEADER.len()..]].concat();
        for bad in [
            &good[..good.len() - 1],
            &flipped,
            &other_version,
            b"",
            b"karst-state 1\n",
        ] {
            fs::write(&saved.mesh, bad).unwrap();
            let state = State::new();
            saved.restore(&state);
            assert_eq!(
                (*state.origin().borrow(), state.counts().workloads),
                (Origin::Empty, 0)
            );
        }
    }

    #[tokio::test]
    async fn it_is_written_after_the_controller_completed_it_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, state, shutdown) =
            (Saved::new(dir.path()), Arc::new(filled()), Shutdown::new());
        let keep = saved.clone().keep(state.clone(), shutdown.clone());
        let watch = async {
            tokio::task::yield_now().await;
            assert!(!saved.mesh.exists());
            state.raise_origin(Origin::Controller);
            while !(saved.mesh.exists() && saved.node.exists()) {
                tokio::task::yield_now().await;
            }
            shutdown.cancel();
        };
        tokio::join!(keep, watch);
        let again = State::new();
        saved.restore(&again);
        assert_eq!(again.counts(), state.counts());
    }
}
