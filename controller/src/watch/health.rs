//! How the way to the API server is doing: for metrics, for the readiness page, and for the log, which hears of each
//! change once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use karst_k8s_api::Kind;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{core::Status, runtime::watcher};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::raw::Raw;

/// What the API server asks for where the answer's body does not say it, in its header `Retry-After`.
const BUSY_SECONDS_MIN: u32 = 1;

/// The state of all watches. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub struct WatchHealth {
    kinds: Arc<Mutex<BTreeMap<Kind, State>>>,
    /// Why there is no root of trust yet.
    root: Arc<Mutex<Option<String>>>,
    events: Family<KindLabel, Counter>,
    relists: Family<KindLabel, Counter>,
    failures: Family<KindLabel, Counter>,
    objects: Family<KindLabel, Gauge>,
    unusable: Family<KindLabel, Gauge>,
    last_event: Family<KindLabel, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

impl KindLabel {
    fn of(kind: Kind) -> Self {
        Self {
            kind: kind.name().to_owned(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    listed: bool,
    failure: Option<Failure>,
}

/// Why a watch does not work just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Too far behind: the kind is listed again. Ordinary.
    Expired,
    /// The API server does not know the kind.
    Absent,
    /// It does not let us; the text names verb and resource.
    Forbidden(String),
    /// It has too much to do, and asks to wait for so many seconds.
    Busy(u32),
    /// Everything else: the server is away, slow, overloaded.
    Other(String),
}

impl Failure {
    pub(super) fn of(error: &watcher::Error) -> Self {
        use watcher::Error as E;
        match error {
            E::InitialListFailed(kube::Error::Api(status))
            | E::WatchStartFailed(kube::Error::Api(status))
            | E::WatchFailed(kube::Error::Api(status))
            | E::WatchError(status) => Self::of_status(status),
            E::InitialListFailed(source) | E::WatchStartFailed(source) | E::WatchFailed(source) => {
                Self::Other(Chain(source).to_string())
            }
            E::NoResourceVersion => Self::Other(Chain(error).to_string()),
        }
    }

    fn of_status(status: &Status) -> Self {
        match status.code {
            404 => Self::Absent,
            403 => Self::Forbidden(status.message.clone()),
            410 => Self::Expired,
            429 => Self::Busy(asked(status).max(BUSY_SECONDS_MIN)),
            code => Self::Other(format!("status {code}: {}", status.message)),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Expired => "listed again".to_owned(),
            Self::Absent => "the API server does not know this kind".to_owned(),
            Self::Forbidden(message) => {
                format!("{message}: grant it to the controller's service account")
            }
            Self::Busy(_) => "the API server has too much to do (status 429)".to_owned(),
            Self::Other(message) => message.clone(),
        }
    }

    /// Shortest wait that the API server asks for.
    pub(super) fn least_wait(&self) -> Duration {
        match self {
            Self::Busy(seconds) => Duration::from_secs((*seconds).into()),
            _ => Duration::ZERO,
        }
    }
}

fn asked(status: &Status) -> u32 {
    let details = status.details.as_ref();
    details.map_or(0, |details| details.retry_after_seconds)
}

impl WatchHealth {
    /// Health that `registry` shows.
    pub fn register(registry: &Registry) -> Self {
        let health = Self::default();
        let counters = [
            (
                "karst_watch_events",
                "Events that watches of the Kubernetes API delivered, lists included",
                &health.events,
            ),
            (
                "karst_watch_relists",
                "Lists of a whole kind, the first included",
                &health.relists,
            ),
            (
                "karst_watch_failures",
                "Requests to list or watch that failed",
                &health.failures,
            ),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
        let gauges = [
            (
                "karst_watch_objects",
                "Objects that are known",
                &health.objects,
            ),
            (
                "karst_watch_unusable_objects",
                "Objects that cannot be used as they are written",
                &health.unusable,
            ),
            (
                "karst_watch_last_event_timestamp_seconds",
                "When a watch last delivered something, in Unix time",
                &health.last_event,
            ),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
        health
    }

    /// What keeps the controller from having the whole state: kinds that were never listed, and the root of trust, each
    /// with its reason.
    pub fn pending(&self) -> Vec<String> {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = self.lock();
        let missing = kinds.iter().filter(|(_, state)| !state.listed);
        let text = |(kind, state): (&Kind, &State)| match &state.failure {
            Some(failure) => format!("list of {}: {}", kind.plural(), failure.text()),
            None => format!("list of {}", kind.plural()),
        };
        missing.map(text).chain(root.clone()).collect()
    }

    /// Why there is no root of trust yet, if there is none; whether that is another reason than before.
    pub(crate) fn waits_for_root(&self, reason: Option<String>) -> bool {
        let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = *root != reason;
        *root = reason;
        differs
    }

    pub(super) fn begin(&self, kind: Kind) {
        self.lock().entry(kind).or_default();
    }

    pub(super) fn seen(&self, kind: Kind, event: &watcher::Event<Raw>) {
        let label = KindLabel::of(kind);
        match event {
            watcher::Event::InitDone => drop(self.relists.get_or_create(&label).inc()),
            watcher::Event::Init => return,
            _ => drop(self.events.get_or_create(&label).inc()),
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |since| since.as_secs());
        self.last_event
            .get_or_create(&label)
            .set(seconds.cast_signed());
    }

    pub(super) fn works(&self, kind: Kind, objects: usize, unusable: usize) {
        let label = KindLabel::of(kind);
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.objects.get_or_create(&label).set(count(objects));
        self.unusable.get_or_create(&label).set(count(unusable));
        let mut kinds = self.lock();
        let state = kinds.entry(kind).or_default();
        if state.failure.take().is_some() || !state.listed {
            tracing::info!(kind = kind.name(), objects, "watching");
        }
        state.listed = true;
    }

    pub(super) fn fails(&self, kind: Kind, failure: &Failure) {
        if *failure == Failure::Expired {
            return;
        }
        self.failures.get_or_create(&KindLabel::of(kind)).inc();
        let mut kinds = self.lock();
        let state = kinds.entry(kind).or_default();
        let absent = *failure == Failure::Absent && kind.is_defined_apart();
        if state.failure.as_ref() != Some(failure) {
            let reason = failure.text();
            let kind = kind.name();
            match (absent, failure) {
                (true, _) if !state.listed => {
                    tracing::info!(kind, "kind is not installed: watched once it is");
                }
                (_, Failure::Forbidden(_)) => {
                    tracing::error!(kind, reason, "kind cannot be watched");
                }
                _ => tracing::warn!(
                    kind,
                    reason,
                    "watch interrupted: the last known state stays, trying again"
                ),
            }
        }
        state.failure = Some(failure.clone());
        state.listed |= absent;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, State>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> watcher::Error {
        let status = Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn readiness_names_verb_and_resource_of_a_missing_permission() {
        let health = WatchHealth::default();
        health.begin(Kind::Pod);
        assert_eq!(health.pending(), ["list of pods"]);
        let forbidden = status(
            403,
            "pods is forbidden: User \"x\" cannot list resource \"pods\"",
        );
        health.fails(Kind::Pod, &Failure::of(&forbidden));
        let pending = health.pending();
        assert!(
            pending[0].contains("cannot list resource \"pods\""),
            "{pending:?}"
        );
        health.works(Kind::Pod, 3, 0);
        assert!(health.pending().is_empty());
        health.fails(Kind::Pod, &Failure::of(&status(500, "etcd is away")));
        assert!(
            health.pending().is_empty(),
            "what was listed once is served"
        );
    }

    #[test]
    fn a_kind_that_is_not_installed_keeps_nobody_waiting() {
        let health = WatchHealth::default();
        health.begin(Kind::ServiceEntry);
        health.fails(Kind::ServiceEntry, &Failure::of(&status(404, "")));
        assert!(health.pending().is_empty());
    }
}
