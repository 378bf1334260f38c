//! What is compiled for each service: its ports with routes and endpoints, and its policies. An immutable snapshot per
//! service, swapped whole when something about it changes; requests in flight keep the one they began with.
//!
//! Services are compiled when somebody asks for them first, and kept up to date from then on by [`Services::follow`].

mod cluster;
mod endpoint;
mod live;
mod names;
mod port;
mod tokens;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use hashbrown::{HashMap, HashSet};
use karst_discovery::{Change, Changed, State};
use karst_model::{
    addr::NetworkAddr,
    name::{GatewayKey, ServiceKey},
    protocol::TunnelProtocol,
    service::Service,
    waypoint_policy::WAYPOINT_CLASS,
    workload::{GatewayAddr, GatewayDestination, Workload},
};
use karst_policy::{
    request::{GatewayRef, RequestPolicies, applies},
    token::TokenRules,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::metrics::tcp::ServiceLabels;
use tokio::sync::{broadcast::error::RecvError, watch};

use self::port::Sources;
use self::tokens::Tokens;
pub(crate) use self::{
    cluster::{Ask, Cluster, Member},
    endpoint::{Endpoint, EndpointKey, Endpoints, InFlight, Way},
    live::{Taken, Totals, now},
    names::{Names, NoHost, dialled},
    port::{NoMember, Port},
};
use crate::{
    config::Config,
    labels,
    rate_limits::{Limited, Limits},
};

/// All services that somebody asked for.
pub(crate) struct Services {
    state: Arc<State>,
    whose: Whose,
    served: RwLock<HashMap<ServiceKey, Arc<Slot>>>,
    endpoints: Mutex<Endpoints>,
    /// What applies to everything that passes this waypoint.
    own_policies: ArcSwap<RequestPolicies>,
    own_tokens: ArcSwap<TokenRules>,
    /// What is compiled of RequestAuthentications.
    tokens: ArcSwap<Tokens>,
    own_limits: ArcSwap<Limited>,
    /// Counts the times that what holds for everything was replaced.
    own_version: watch::Sender<u64>,
    limits: Limits,
    names: Names,
    /// Where this waypoint is, as far as is known.
    place: ArcSwap<Workload>,
}

/// How often it is looked whether an ejected endpoint may come back; the policy's own interval is longer.
const TICK: Duration = Duration::from_millis(100);

/// Which services this waypoint serves.
struct Whose {
    own: ServiceKey,
    gateway: GatewayKey,
    place: Workload,
}

/// One service, now and after every change.
pub(crate) struct Slot {
    pub(crate) key: ServiceKey,
    current: ArcSwap<Served>,
    /// Counts the times that `current` was replaced.
    version: watch::Sender<u64>,
    /// Requests in flight.
    pub(crate) in_flight: Arc<AtomicUsize>,
}

impl Slot {
    /// Tells whoever holds something open when the service has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn replace(&self, served: Served) {
        self.current.store(Arc::new(served));
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// The service as it is now.
    pub(crate) fn load(&self) -> Guard<Arc<Served>> {
        self.current.load()
    }
}

/// One service, compiled.
pub(crate) struct Served {
    /// `None`: it is gone.
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) labels: Arc<ServiceLabels>,
    /// This waypoint is the way to it: its routes and policies apply.
    pub(crate) bound: bool,
    pub(crate) policies: RequestPolicies,
    pub(crate) tokens: Arc<TokenRules>,
    pub(crate) limits: Limited,
    pub(crate) ports: HashMap<u16, Arc<Port>>,
}

impl Services {
    /// `place`: where this waypoint runs decides which endpoints are near.
    pub(crate) fn new(state: Arc<State>, config: &Config, place: Workload) -> Self {
        let identity = config.identity();
        let none = RequestPolicies::compile([], &[]);
        let services = Self {
            own_policies: ArcSwap::from_pointee(none),
            own_tokens: ArcSwap::default(),
            tokens: ArcSwap::from_pointee(Tokens::new(&state)),
            own_limits: ArcSwap::default(),
            own_version: watch::Sender::default(),
            limits: Limits::default(),
            names: Names::new(config),
            place: ArcSwap::from_pointee(place.clone()),
            state,
            whose: Whose {
                own: config.own_service(),
                gateway: GatewayKey {
                    namespace: config.namespace.as_str().into(),
                    name: config.gateway_name.as_str().into(),
                },
                place,
            },
            served: RwLock::default(),
            endpoints: Mutex::new(Endpoints::new(identity, config.workload_uid())),
        };
        services.refresh_own_policies();
        services.find_place();
        services
    }

    /// The service, compiled on first use; `None` where there is none of this name.
    pub(crate) fn get(&self, key: &ServiceKey) -> Option<Arc<Slot>> {
        if let Some(slot) = self.read(key) {
            return slot.load().service.is_some().then_some(slot);
        }
        self.state.service(key)?;
        // Compiled under the lock: a change that comes meanwhile finds the slot when it gets the lock.
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let slot = served.entry(key.clone()).or_insert_with(|| {
            Arc::new(Slot {
                key: key.clone(),
                current: ArcSwap::from_pointee(self.compile(key)),
                version: watch::Sender::new(0),
                in_flight: Arc::default(),
            })
        });
        Some(slot.clone())
    }

    /// The endpoint that a workload is at one address and port.
    pub(crate) fn endpoint(&self, workload: &Arc<Workload>, key: EndpointKey) -> Arc<Endpoint> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(workload, &[], key)
    }

    /// Whether a waypoint address means this waypoint.
    pub(crate) fn is_own(&self, waypoint: Option<&GatewayAddr>) -> bool {
        self.whose.is_own(&self.state, waypoint)
    }

    /// Every service that is compiled, for people who look.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.values().cloned().collect()
    }

    /// What applies to requests for workloads of no service.
    pub(crate) fn own_policies(&self) -> Guard<Arc<RequestPolicies>> {
        self.own_policies.load()
    }

    /// Tells whoever holds something open when the service has changed; of no service, when what holds for all has.
    pub(crate) fn changes_of(&self, slot: Option<&Arc<Slot>>) -> watch::Receiver<u64> {
        match slot {
            Some(slot) => slot.changes(),
            None => self.own_version.subscribe(),
        }
    }

    /// Which tokens are believed of requests for workloads of no service.
    pub(crate) fn own_tokens(&self) -> Guard<Arc<TokenRules>> {
        self.own_tokens.load()
    }

    fn tokens(&self, service: Option<&ServiceKey>) -> Arc<TokenRules> {
        self.tokens.load().of(service, self.whose.gateway_ref())
    }

    /// The limits of requests for workloads of no service.
    pub(crate) fn own_limits(&self) -> Guard<Arc<Limited>> {
        self.own_limits.load()
    }

    fn limits(&self, service: Option<&ServiceKey>) -> Limited {
        let all = self.state.rate_limits();
        self.limits.compile(&all, service, &self.whose.gateway)
    }

    fn refresh_own_policies(&self) {
        self.own_tokens.store(self.tokens(None));
        self.own_limits.store(Arc::new(self.limits(None)));
        self.own_policies.store(Arc::new(self.policies(None)));
    }

    /// The policies for requests to a service that this waypoint is bound to.
    fn policies(&self, service: Option<&ServiceKey>) -> RequestPolicies {
        let gateway = self.whose.gateway_ref();
        let all = self.state.waypoint_policies().into_iter();
        RequestPolicies::compile(all.filter(|policy| applies(policy, service, gateway)), &[])
    }

    fn read(&self, key: &ServiceKey) -> Option<Arc<Slot>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.get(key).cloned()
    }

    fn compile(&self, key: &ServiceKey) -> Served {
        let service = self.state.service(key);
        let Some(service) = service else {
            return Served {
                service: None,
                labels: Arc::default(),
                bound: false,
                policies: RequestPolicies::compile([], &[]),
                tokens: Arc::default(),
                limits: Limited::default(),
                ports: HashMap::new(),
            };
        };
        let bound = self.is_own(service.waypoint.as_ref());
        let routes = if bound {
            self.state.routes_of(key)
        } else {
            Vec::new()
        };
        let endpoints = self.state.endpoints(key);
        let place = self.place.load();
        let endpoints = self.names.resolved(&service, &endpoints, &place);
        let traffic = self.state.traffic_of(key);
        let sources = Sources {
            service: &service,
            routes: &routes,
            endpoints: &endpoints,
            traffic: traffic.as_deref(),
            place: &place,
        };
        let mut known = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let ports = service.ports.iter().map(|(number, declared)| {
            let port = Port::compile(&sources, (*number, declared.app_protocol), &mut known);
            (*number, Arc::new(port))
        });
        Served {
            ports: ports.collect(),
            labels: Arc::new(labels::service(Some(&service))),
            bound,
            policies: self.policies(bound.then_some(key)),
            tokens: self.tokens(bound.then_some(key)),
            limits: if bound {
                self.limits(Some(key))
            } else {
                Limited::default()
            },
            service: Some(service),
        }
    }

    /// Compiles again what changes, until `stopped`.
    pub(crate) async fn follow(&self, stopped: &Shutdown) {
        let mut changes = self.state.changes();
        let mut tick = tokio::time::interval(TICK);
        let mut names = self.names.changes();
        // What changed before anybody listened.
        self.start_over();
        loop {
            let changed = tokio::select! {
                changed = changes.next() => changed,
                _ = tick.tick() => {
                    self.tick();
                    continue;
                }
                name = names.recv() => {
                    self.renamed(name);
                    continue;
                }
                () = stopped.cancelled() => return,
            };
            match changed {
                Some(Changed::Some(changes)) => self.apply(&changes),
                Some(Changed::Everything) => self.start_over(),
                None => return,
            }
        }
    }

    fn start_over(&self) {
        self.find_place();
        self.refresh_tokens();
        let all = self.state.services();
        self.prepare(all.iter().map(|service| &service.key));
    }

    /// A name stands for other addresses, or several do.
    fn renamed(&self, name: Result<Arc<str>, RecvError>) {
        match name {
            Ok(name) => {
                let users = self.names.users_of(&name);
                self.refresh(Some(&users.iter().collect()));
            }
            Err(RecvError::Lagged(_) | RecvError::Closed) => self.refresh(None),
        }
    }

    /// Names of endpoints outside of the mesh.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Services that this waypoint is the way to, whose endpoints are known by names: resolved before anybody asks.
    fn prepare<'a>(&self, changed: impl Iterator<Item = &'a ServiceKey>) {
        for key in changed {
            let service = self.state.service(key);
            let Some(service) = service.filter(|one| self.is_own(one.waypoint.as_ref())) else {
                continue;
            };
            let endpoints = self.state.endpoints(key);
            if endpoints.iter().any(|one| one.addresses.is_empty()) {
                drop(self.get(&service.key));
            }
        }
    }

    /// The port of a service without endpoints of its own, for the host that a client asks for.
    ///
    /// # Errors
    /// The host is none of the service, or has no address.
    pub(crate) async fn asked_port(
        &self,
        service: &Service,
        number: u16,
        host: &str,
    ) -> Result<Arc<Port>, NoHost> {
        let place = self.place.load_full();
        let place = &*place;
        let traffic = self.state.traffic_of(&service.key);
        let declared = service.ports.get(&number);
        let app_protocol = declared.map(|port| port.app_protocol).unwrap_or_default();
        let compile = |service: &Arc<Service>, endpoints: &[Arc<Workload>]| {
            let sources = Sources {
                service,
                routes: &[],
                endpoints,
                traffic: traffic.as_deref(),
                place,
            };
            let mut known = self
                .endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Port::compile(&sources, (number, app_protocol), &mut known)
        };
        let inside = |ip| self.is_inside(service, place, ip);
        let asked = self
            .names
            .asked(service, (number, host), place, inside, compile);
        asked.await
    }

    /// Whether an address is one of the mesh: a service's, or a pod's.
    fn is_inside(&self, service: &Service, place: &Workload, ip: IpAddr) -> bool {
        let at = NetworkAddr::new(place.network.clone(), ip);
        let named = self.state.service_at(&at, &service.key.namespace);
        let is_vip = named.is_some_and(|one| one.addresses.iter().any(|vip| vip.ip == at.ip));
        let is_pod =
            |one: Arc<Workload>| !one.node.is_empty() || one.tunnel != TunnelProtocol::None;
        is_vip || self.state.workload_at(&at).is_some_and(is_pod)
    }

    /// Lets endpoints come back that were ejected for long enough.
    fn tick(&self) {
        for slot in self.slots() {
            let served = slot.load();
            for cluster in served.ports.values().flat_map(|port| port.clusters()) {
                if let Some(outlier) = &cluster.policy.outlier {
                    cluster.live.tick(Some(outlier));
                }
            }
        }
    }

    /// Counters of all sets of endpoints together.
    pub(crate) fn totals(&self) -> Totals {
        let endpoints = self.endpoints.lock();
        endpoints
            .unwrap_or_else(PoisonError::into_inner)
            .totals
            .clone()
    }

    /// Changes when somebody waits for a connection of a set that may have no more of them.
    pub(crate) fn wanted(&self) -> watch::Receiver<()> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wanted()
    }

    fn apply(&self, changes: &[Change]) {
        let mut touched = HashSet::new();
        // What is near depends on where this waypoint is itself.
        let (mut tokens, mut every) = (false, self.find_place());
        for change in changes {
            match change {
                Change::Service(key)
                | Change::Endpoints(key)
                | Change::Routes(key)
                | Change::Traffic(key) => {
                    touched.insert(key);
                }
                Change::RequestAuthentication(_) => tokens = true,
                Change::WaypointPolicy(_) | Change::RateLimit(_) => every = true,
                _ => {}
            }
        }
        match (tokens, every) {
            (true, _) => self.refresh_tokens(),
            (false, true) => self.refresh(None),
            (false, false) => self.refresh(Some(&touched)),
        }
        self.prepare(touched.into_iter());
    }

    /// Whether this waypoint is somewhere else than was known: its node's region and zone, and its own labels, come by
    /// discovery like those of all workloads.
    fn find_place(&self) -> bool {
        let own = &self.whose.place;
        let known = self.state.workload(&own.uid).or_else(|| {
            let addr = NetworkAddr::new(own.network.clone(), *own.addresses.first()?);
            self.state.workload_at(&addr)
        });
        let Some(known) = known else {
            return false;
        };
        let place = self.place.load();
        if place.locality == known.locality && place.labels == known.labels {
            return false;
        }
        self.place.store(Arc::new(Workload {
            locality: known.locality.clone(),
            labels: known.labels.clone(),
            ..own.clone()
        }));
        true
    }

    /// Other tokens are believed, or something else has changed too.
    fn refresh_tokens(&self) {
        self.tokens.store(Arc::new(Tokens::new(&self.state)));
        self.refresh(None);
    }

    /// Compiles these services again, or all that are held.
    fn refresh(&self, touched: Option<&HashSet<&ServiceKey>>) {
        if touched.is_none() {
            self.refresh_own_policies();
        }
        self.names.forget(touched);
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let is_touched = |key: &ServiceKey| touched.is_none_or(|touched| touched.contains(key));
        // One that is gone and that nobody holds leaves; one that is held stays, so that its holders see it come back.
        // Who is told decides again, by the policies of other services too: all must be there before.
        let mut replaced = Vec::new();
        served.retain(|key, slot| {
            if is_touched(key) {
                slot.replace(self.compile(key));
            }
            let stays = slot.load().service.is_some() || Arc::strong_count(slot) > 1;
            if stays && is_touched(key) {
                replaced.push(slot.clone());
            }
            stays
        });
        replaced.iter().for_each(|slot| slot.tell());
        if touched.is_none() {
            self.own_version.send_modify(|version| *version += 1);
        }
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget_unused();
    }
}

impl Whose {
    fn gateway_ref(&self) -> GatewayRef<'_> {
        GatewayRef {
            namespace: &self.gateway.namespace,
            name: &self.gateway.name,
            class: WAYPOINT_CLASS,
        }
    }

    fn is_own(&self, state: &State, waypoint: Option<&GatewayAddr>) -> bool {
        match waypoint.map(|waypoint| &waypoint.destination) {
            Some(GatewayDestination::Service(key)) => *key == self.own,
            Some(GatewayDestination::Address(addr)) => {
                let own = state.service(&self.own);
                let of_service = own.is_some_and(|own| {
                    own.addresses
                        .iter()
                        .any(|vip| vip.ip == addr.ip && vip.network == addr.network)
                });
                of_service || self.place.addresses.contains(&addr.ip)
            }
            None => false,
        }
    }
}
