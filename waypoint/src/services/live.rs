//! What is known of a set of endpoints (a port of a service, or a subset there) that no configuration says: what is in
//! flight, who fails, who was ejected. It survives every change of configuration. Threads share it without a lock, except
//! to eject somebody.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use karst_model::{
    name::ServiceKey,
    traffic::{Outlier, UpstreamTls, WarmUp},
};
use karst_routing::{
    breaker::Slots,
    outlier::{Ejector, Outcome, Streak, Verdict},
    warm_up,
};
use karst_telemetry::metrics::Registry;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::{Notify, watch};

use super::EndpointKey;

/// What tells two sets of endpoints apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetKey {
    pub(crate) service: ServiceKey,
    pub(crate) port: u16,
    pub(crate) subset: Option<Arc<str>>,
}

impl std::fmt::Display for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        match &self.subset {
            Some(subset) => write!(f, ", subset {subset}"),
            None => Ok(()),
        }
    }
}

/// All sets together, for metrics.
#[derive(Clone, Default)]
pub(crate) struct Totals {
    overflows: Counter,
    ejections: Counter,
    ejected: Gauge,
}

impl Totals {
    pub(crate) fn register(&self, registry: &Registry) {
        registry.register(
            "karst_waypoint_overflows",
            "Requests and connections refused at a limit of their service's traffic policy",
            self.overflows.clone(),
        );
        registry.register(
            "karst_waypoint_ejections",
            "Endpoints ejected because they failed",
            self.ejections.clone(),
        );
        registry.register(
            "karst_waypoint_endpoints_ejected",
            "Endpoints that are ejected now",
            self.ejected.clone(),
        );
    }
}

/// One set.
pub(crate) struct Live {
    pub(crate) key: SetKey,
    /// Unique in this process.
    pub(crate) id: u64,
    /// Requests in flight, where they are limited.
    pub(crate) requests: Slots,
    /// Requests that wait for a connection.
    pub(crate) pending: Slots,
    /// Connections, where they are limited.
    pub(crate) connections: Slots,
    /// Requests that are being tried again.
    pub(crate) retries: Slots,
    /// Requests refused at one of the limits.
    pub(crate) overflows: AtomicU64,
    pub(crate) ejections: AtomicU64,
    /// Requests so far, for those who take turns.
    pub(crate) round: AtomicU64,
    /// A connection has become free, or is gone.
    pub(crate) freed: Notify,
    /// Tells all threads that somebody waits for a connection.
    wanted: watch::Sender<()>,
    totals: Totals,
    /// Counts changes of anybody's health.
    version: AtomicU64,
    members: Mutex<Members>,
    /// The TLS settings of the set, and their number.
    secured: Mutex<(Option<UpstreamTls>, u64)>,
}

struct Members {
    known: HashMap<EndpointKey, Arc<Health>>,
    ejector: Ejector<EndpointKey>,
    /// Endpoints that come later are new.
    settled: bool,
}

/// One endpoint of one set.
pub(crate) struct Health {
    pub(crate) key: EndpointKey,
    streak: AtomicU64,
    ejected: AtomicBool,
    /// It fails its active check.
    failing: AtomicBool,
    /// Milliseconds on [`now`]'s clock since when it gets requests; 0: since ever.
    since: AtomicU64,
    pub(crate) ejections: AtomicU32,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Time since the first call: the clock of everything here.
pub(crate) fn now() -> Duration {
    START.elapsed()
}

impl Health {
    fn new(key: EndpointKey, since: u64) -> Arc<Self> {
        Arc::new(Self {
            key,
            streak: AtomicU64::new(0),
            ejected: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            since: AtomicU64::new(since),
            ejections: AtomicU32::new(0),
        })
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.is_ejected() && !self.is_failing()
    }

    /// Its share in thousandths while it is new.
    pub(crate) fn share(&self, warm_up: &WarmUp) -> u32 {
        match self.since.load(Ordering::Relaxed) {
            0 => warm_up::FULL,
            since => {
                let age = now().saturating_sub(Duration::from_millis(since));
                warm_up::share(warm_up, age)
            }
        }
    }
}

impl Live {
    pub(super) fn new(key: SetKey, wanted: watch::Sender<()>, totals: Totals) -> Arc<Self> {
        Arc::new(Self {
            key,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            requests: Slots::default(),
            pending: Slots::default(),
            connections: Slots::default(),
            retries: Slots::default(),
            overflows: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            round: AtomicU64::new(0),
            freed: Notify::new(),
            wanted,
            totals,
            version: AtomicU64::new(0),
            members: Mutex::new(Members {
                known: HashMap::new(),
                ejector: Ejector::new(now()),
                settled: false,
            }),
            secured: Mutex::default(),
        })
    }

    /// A number that changes whenever the TLS settings do: connections made by others are not used any more.
    pub(super) fn secured(&self, tls: Option<&UpstreamTls>) -> u64 {
        let mut known = self.secured.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.as_ref() != tls {
            *known = (tls.cloned(), known.1 + 1);
        }
        known.1
    }

    /// Changes whenever somebody's health does; 0: nobody ever had any trouble.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The endpoints of the set from now on, in the same order. What is known of those that stay, stays.
    pub(super) fn settle(&self, keys: &[Option<EndpointKey>]) -> Vec<Option<Arc<Health>>> {
        let mut members = self.lock();
        let since = if members.settled {
            (now().as_millis() as u64).max(1)
        } else {
            0
        };
        members.settled = true;
        let members = &mut *members;
        let settled: Vec<_> = keys
            .iter()
            .map(|key| {
                let key = key.as_ref()?;
                let known = members.known.entry_ref(key);
                Some(
                    known
                        .or_insert_with(|| Health::new(key.clone(), since))
                        .clone(),
                )
            })
            .collect();
        let stays: hashbrown::HashSet<_> = keys.iter().flatten().collect();
        members.known.retain(|key, health| {
            let stays = stays.contains(key);
            if !stays && health.is_ejected() {
                self.totals.ejected.dec();
            }
            stays
        });
        members.ejector.retain(|key| stays.contains(key));
        settled
    }

    /// Judges an endpoint by what became of a request.
    pub(crate) fn observe(&self, policy: &Outlier, health: &Arc<Health>, outcome: Outcome) {
        let mut cause = None;
        let step = |bits| {
            let mut streak = Streak::from_bits(bits);
            cause = streak.observe(policy, outcome);
            // What goes well and went well before is nothing to write down.
            (streak.to_bits() != bits || cause.is_some()).then(|| streak.to_bits())
        };
        let _unchanged = health
            .streak
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        if let Some(cause) = cause {
            self.eject(policy, health, &format!("{cause:?}"));
        }
    }

    fn eject(&self, policy: &Outlier, health: &Arc<Health>, cause: &str) {
        let mut members = self.lock();
        let total = members.known.len();
        if !members.known.contains_key(&health.key) {
            return;
        }
        let verdict = members.ejector.eject(now(), &health.key, total, policy);
        match verdict {
            Verdict::Already => {}
            Verdict::TooMany => tracing::warn!(
                set = %self.key,
                endpoint = %health.key.addr,
                cause,
                "an endpoint that fails stays: as many as may be are ejected already"
            ),
            Verdict::Ejected => {
                health.ejected.store(true, Ordering::Relaxed);
                health.ejections.fetch_add(1, Ordering::Relaxed);
                self.ejections.fetch_add(1, Ordering::Relaxed);
                self.totals.ejections.inc();
                self.totals.ejected.inc();
                self.changed();
                tracing::warn!(
                    set = %self.key,
                    endpoint = %health.key.addr,
                    workload = %health.key.workload,
                    cause,
                    "an endpoint is ejected: it gets no requests for a while"
                );
            }
        }
    }

    /// Lets endpoints come back whose time is over; without a policy all do.
    pub(super) fn tick(&self, policy: Option<&Outlier>) {
        let mut members = self.lock();
        let back = match policy {
            Some(policy) => members.ejector.tick(now(), policy),
            None if members.ejector.ejected() == 0 => return,
            None => {
                members.ejector.clear();
                members.known.keys().cloned().collect()
            }
        };
        for health in back.iter().filter_map(|key| members.known.get(key)) {
            if health.ejected.swap(false, Ordering::Relaxed) {
                health.streak.store(0, Ordering::Relaxed);
                self.totals.ejected.dec();
                self.changed();
                tracing::info!(set = %self.key, endpoint = %health.key.addr, "an endpoint that was ejected is back");
            }
        }
    }

    /// What the active check of an endpoint says. One that is up again begins with a small share.
    pub(crate) fn checked(&self, health: &Health, up: bool) {
        if health.failing.swap(!up, Ordering::Relaxed) == up {
            if up {
                let now = (now().as_millis() as u64).max(1);
                health.since.store(now, Ordering::Relaxed);
            }
            self.changed();
        }
    }

    pub(crate) fn overflowed(&self) {
        self.overflows.fetch_add(1, Ordering::Relaxed);
        self.totals.overflows.inc();
    }

    /// Asks all threads to let go of connections of this set that they do not use.
    pub(crate) fn want_connection(&self) {
        self.wanted.send_replace(());
    }

    /// How many are ejected, for people who look.
    pub(crate) fn ejected(&self) -> usize {
        self.lock().ejector.ejected()
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in one of the counters of a set, given back when it is dropped.
pub(crate) struct Taken {
    live: Arc<Live>,
    which: fn(&Live) -> &Slots,
}

impl Taken {
    /// `None`: `max` are taken.
    pub(crate) fn take(live: &Arc<Live>, which: fn(&Live) -> &Slots, max: u32) -> Option<Self> {
        which(live).take(max).then(|| Self {
            live: live.clone(),
            which,
        })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        (self.which)(&self.live).give();
        self.live.freed.notify_waiters();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let members = self.lock();
        for health in members.known.values().filter(|health| health.is_ejected()) {
            health.ejected.store(false, Ordering::Relaxed);
            self.totals.ejected.dec();
        }
    }
}
