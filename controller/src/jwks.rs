//! Keys of token issuers: fetched here, once for the whole mesh, so that waypoints fetch nothing.
//!
//! ```text
//!   index: which sources ─► Keeper ─ due ─► fetch (bounded in time, size, redirects; no private address unless allowed)
//!   index ◄── Event::Keys: the last good keys, and why the last attempt failed   ▲
//!   waypoints ── a token names a key that nobody knows ──────────────────────────┘ at most every SOON
//! ```
//!
//! Keys are fetched again after [`JwksConfig::refresh`], spread by a tenth; after a failure sooner, and later each time.
//! What was good stays until something else is. A token signed with a new key works as soon as the keys were fetched that its
//! first use asks for; whoever makes tokens up causes one fetch of each source every [`SOON`].

mod address;
mod fetch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use karst_index::{Event, FetchedKeys, KeySource};
use karst_policy::token::KeySet;
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rand::RngExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

pub use self::fetch::{FetchError, Fetcher};
use crate::mesh::Command;

/// Fetches at once.
const AT_ONCE: usize = 8;
/// Pause after the first failure; doubled by each that follows.
const RETRY: Duration = Duration::from_secs(1);

/// Between fetches of a source that tokens ask for.
const SOON: Duration = Duration::from_secs(10);

/// How keys are fetched.
#[derive(Clone, Debug)]
pub struct JwksConfig {
    /// Between fetches that succeed.
    pub refresh: Duration,
    /// Whether addresses that are not of the public internet may be asked.
    pub allow_private: bool,
    /// PEM of roots that are believed beside those of the system.
    pub extra_roots: Option<Arc<str>>,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct JwksMetrics {
    fetched: Counter,
    failed: Counter,
    asked: Counter,
    sources: Gauge,
    failing: Gauge,
}

impl JwksMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let Self {
            fetched,
            failed,
            asked,
            sources,
            failing,
        } = metrics.clone();
        registry.register("karst_jwks_fetched", "Keys of issuers fetched", fetched);
        registry.register(
            "karst_jwks_asked",
            "Fetches brought forward because a token named a key that was not known",
            asked,
        );
        registry.register(
            "karst_jwks_failed",
            "Attempts to fetch keys of issuers that failed",
            failed,
        );
        registry.register(
            "karst_jwks_sources",
            "Sources of keys that are followed",
            sources,
        );
        registry.register(
            "karst_jwks_failing",
            "Sources of keys whose last attempt failed",
            failing,
        );
        metrics
    }
}

/// Follows every source of keys that the index names.
pub struct Keeper {
    config: JwksConfig,
    fetcher: Arc<Fetcher>,
    metrics: JwksMetrics,
    wanted: watch::Receiver<BTreeSet<KeySource>>,
    /// Changes when a waypoint has seen a token with a key that nobody knows.
    unknown: watch::Receiver<u64>,
    commands: mpsc::Sender<Command>,
    known: BTreeMap<KeySource, Followed>,
}

/// One source.
struct Followed {
    /// `None`: a fetch is under way.
    due: Option<Instant>,
    failures: u32,
    /// When tokens asked for a fetch, or will have.
    asked: Option<Instant>,
    said: FetchedKeys,
}

type Outcome = (KeySource, Result<Arc<str>, FetchError>);

impl Keeper {
    pub fn new(
        config: JwksConfig,
        metrics: JwksMetrics,
        (wanted, unknown): (watch::Receiver<BTreeSet<KeySource>>, watch::Receiver<u64>),
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            fetcher: Arc::new(Fetcher::new(&config)),
            config,
            metrics,
            wanted,
            unknown,
            commands,
            known: BTreeMap::new(),
        }
    }

    /// Until `shutdown`.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut under_way: FuturesUnordered<BoxFuture<'static, Outcome>> = FuturesUnordered::new();
        self.follow();
        loop {
            self.begin(&mut under_way);
            let due = self.known.values().filter_map(|one| one.due).min();
            let wake = due.filter(|_| under_way.len() < AT_ONCE);
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.follow(),
                    Err(_gone) => return,
                },
                Ok(()) = self.unknown.changed() => self.ask(),
                Some((source, outcome)) = under_way.next() => self.take(source, outcome).await,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Takes over which sources there are.
    fn follow(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.known.retain(|source, _| wanted.contains(source));
        for source in wanted {
            self.known.entry(source).or_insert_with(|| Followed {
                due: Some(Instant::now()),
                failures: 0,
                asked: None,
                said: FetchedKeys::default(),
            });
        }
        self.count();
    }

    /// A token names a key that nobody knows: its issuer may have a new one. It is not known whose token it is, so all are
    /// asked; one that fails is tried again at its own pace.
    fn ask(&mut self) {
        let now = Instant::now();
        for followed in self.known.values_mut().filter(|one| one.failures == 0) {
            let Some(due) = followed.due else { continue };
            let soon = soon(followed.asked, now);
            if soon < due {
                followed.due = Some(soon);
                followed.asked = Some(soon);
                self.metrics.asked.inc();
            }
        }
    }

    fn count(&self) {
        let failing = self.known.values().filter(|one| one.failures > 0).count();
        self.metrics.sources.set(self.known.len() as i64);
        self.metrics.failing.set(failing as i64);
    }

    /// Begins what is due.
    fn begin(&mut self, under_way: &mut FuturesUnordered<BoxFuture<'static, Outcome>>) {
        let now = Instant::now();
        for (source, followed) in &mut self.known {
            if under_way.len() >= AT_ONCE {
                return;
            }
            if followed.due.is_none_or(|due| due > now) {
                continue;
            }
            followed.due = None;
            let (fetcher, source) = (self.fetcher.clone(), source.clone());
            under_way.push(Box::pin(async move {
                let outcome = fetcher.fetch(&source).await;
                (source, outcome)
            }));
        }
    }

    async fn take(&mut self, source: KeySource, outcome: Result<Arc<str>, FetchError>) {
        let outcome = outcome.and_then(|text| match KeySet::read(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(FetchError::Keys(error)),
        });
        let Some(followed) = self.known.get_mut(&source) else {
            return;
        };
        let mut fetched = followed.said.clone();
        let pause = match outcome {
            Ok(text) => {
                self.metrics.fetched.inc();
                followed.failures = 0;
                fetched = FetchedKeys {
                    keys: Some(text),
                    problem: None,
                };
                self.config.refresh
            }
            Err(error) => {
                self.metrics.failed.inc();
                let problem = Chain(&error).to_string();
                if followed.said.problem.as_deref() != Some(&*problem) {
                    tracing::warn!(
                        source = shown(&source),
                        error = problem,
                        kept = fetched.keys.is_some(),
                        "keys of a token issuer cannot be fetched"
                    );
                }
                fetched.problem = Some(problem.into());
                let doubled = RETRY * 2_u32.saturating_pow(followed.failures.min(10));
                followed.failures += 1;
                doubled.min(self.config.refresh)
            }
        };
        let spread = rand::rng().random_range(0.9..1.1);
        followed.due = Some(Instant::now() + pause.mul_f64(spread));
        if fetched != followed.said {
            followed.said = fetched.clone();
            let event = Event::Keys { source, fetched };
            // The index is gone: so is the program.
            let _ = self.commands.send(Command::Objects(vec![event])).await;
        }
        self.count();
    }
}

/// When a source is fetched that tokens ask for.
fn soon(asked: Option<Instant>, now: Instant) -> Instant {
    asked.map_or(now, |before| now.max(before + SOON))
}

/// A source without what may be secret in its query.
fn shown(source: &KeySource) -> &str {
    let (KeySource::Uri(text) | KeySource::Issuer(text)) = source;
    text.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_ask_at_once_and_then_at_a_bounded_pace() {
        let start = Instant::now();
        assert_eq!(soon(None, start), start);
        // However often they ask: the next fetch is where it is, and the one after that no sooner.
        let next = soon(Some(start), start + Duration::from_millis(1));
        assert_eq!(next, start + SOON);
        let late = start + 3 * SOON;
        assert_eq!(soon(Some(start), late), late);
    }
}
