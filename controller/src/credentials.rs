//! Secrets that DestinationRules name, for waypoints that show a certificate of the user's own to servers outside of the
//! mesh: each is watched by its name, tried, and handed to the index.
//!
//! ```text
//!   index: which Secrets ─► Keeper ─ one watch each, by name ─► contents ─ tried as TLS would use it ─► Event::Secret
//! ```
//!
//! No right covers Secrets in general: whoever wants one used permits that one (the chart's value `credentials`). What was
//! good stays while the Secret holds something that cannot be used or cannot be read; it goes when the Secret goes. Keys
//! are kept here and in the index, go to the one waypoint that needs them, and are written nowhere.

mod contents;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::core::v1::Secret;
use karst_index::{Credential, Event, Index, IndexConfig, ReadSecret, SecretName};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::metrics::Registry;
use kube::{Api, Client, runtime::watcher};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{mesh::Command, watch::steady};

/// Secrets that are watched at once.
const WATCHED_MAX: usize = 1_000;
/// Seconds that one watch request lasts.
const WATCH_SECONDS: u32 = 290;
/// Longest time that the first configuration waits for Secrets: waypoints go on with what they have until then.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);

/// What is said where Secrets are out of reach, each after the name of the Secret.
const OF_FILES: &str =
    "is not read: this controller reads a directory of files, and Secrets of a cluster only";
const TOO_MANY: &str = "is not read: 1000 others are watched already";
const ABSENT: &str = "is not there";
const AWAY: &str = "cannot be read now: the API server does not answer";

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct CredentialMetrics {
    watched: Gauge,
    failing: Gauge,
    refused: Counter,
}

impl CredentialMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let Self {
            watched,
            failing,
            refused,
        } = metrics.clone();
        registry.register(
            "karst_credentials_watched",
            "Secrets that DestinationRules name and that are watched",
            watched,
        );
        registry.register(
            "karst_credentials_failing",
            "Secrets that DestinationRules name and that cannot be used as they are",
            failing,
        );
        registry.register(
            "karst_credentials_refused",
            "Secrets that were not watched because too many are",
            refused,
        );
        metrics
    }
}

/// Something that a watch of one Secret says.
type Said = (SecretName, watcher::Result<watcher::Event<Secret>>);

/// Watches every Secret that the index names.
pub struct Keeper {
    /// `None`: there is no cluster to read them from.
    client: Option<Client>,
    metrics: CredentialMetrics,
    watches: SelectAll<BoxStream<'static, Said>>,
    followed: BTreeMap<SecretName, Followed>,
}

/// One Secret.
struct Followed {
    /// Ends its watch.
    stop: AbortHandle,
    /// What a list has shown so far.
    listed: Option<Secret>,
    said: ReadSecret,
}

impl Keeper {
    pub fn new(client: Option<Client>, metrics: CredentialMetrics) -> Self {
        Self {
            client,
            metrics,
            watches: SelectAll::new(),
            followed: BTreeMap::new(),
        }
    }

    /// What the Secrets hold that these first objects need, so that waypoints which go on from an earlier controller are
    /// not told in between that there is none.
    pub async fn first(&mut self, config: IndexConfig, objects: &[Event]) -> Vec<Event> {
        if self.client.is_none() || !contents::any_named(objects) {
            return Vec::new();
        }
        let until = Instant::now() + FIRST_PATIENCE;
        let mut index = Index::new(config);
        let mut wanted = index.handle_all(objects.iter().cloned()).secrets;
        let mut events = Vec::new();
        loop {
            if let Some(wanted) = wanted.take() {
                events.extend(self.follow(wanted));
            }
            if self.followed.values().all(Followed::is_known) {
                return events;
            }
            let Ok(Some(said)) = tokio::time::timeout_at(until, self.watches.next()).await else {
                return events;
            };
            if let Some(event) = self.take(said) {
                wanted = index.handle(event.clone()).secrets;
                events.push(event);
            }
        }
    }

    /// Until `shutdown`.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<SecretName>>,
        commands: mpsc::Sender<Command>,
        shutdown: Shutdown,
    ) {
        wanted.mark_changed();
        loop {
            let events = tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => {
                        let wanted = wanted.borrow_and_update().clone();
                        self.follow(wanted)
                    }
                    Err(_gone) => return,
                },
                Some(said) = self.watches.next() => self.take(said).into_iter().collect(),
                () = shutdown.cancelled() => return,
            };
            if !events.is_empty() {
                // The index is gone: so is the program.
                let _ = commands.send(Command::Objects(events)).await;
            }
        }
    }

    /// Takes over which Secrets there are; what is known at once of those that cannot be watched.
    fn follow(&mut self, wanted: BTreeSet<SecretName>) -> Vec<Event> {
        self.followed.retain(|secret, followed| {
            let stays = wanted.contains(secret);
            if !stays {
                followed.stop.abort();
            }
            stays
        });
        let mut events = Vec::new();
        for secret in wanted {
            if self.followed.contains_key(&secret) {
                continue;
            }
            let refused = match &self.client {
                None => Some(OF_FILES),
                Some(_) if self.followed.len() >= WATCHED_MAX => Some(TOO_MANY),
                Some(client) => {
                    let (stop, watch) = begin(client, &secret);
                    self.watches.push(watch);
                    let followed = Followed {
                        stop,
                        listed: None,
                        said: ReadSecret::default(),
                    };
                    self.followed.insert(secret.clone(), followed);
                    None
                }
            };
            if let Some(why) = refused {
                if self.client.is_some() {
                    self.metrics.refused.inc();
                }
                let read = ReadSecret {
                    good: None,
                    problem: Some(why.into()),
                };
                events.push(Event::Secret { secret, read });
            }
        }
        self.count();
        events
    }

    fn count(&self) {
        let failing = self
            .followed
            .values()
            .filter(|one| one.said.problem.is_some());
        self.metrics.failing.set(failing.count() as i64);
        self.metrics.watched.set(self.followed.len() as i64);
    }

    /// What the index is to know now.
    fn take(&mut self, (secret, said): Said) -> Option<Event> {
        let followed = self.followed.get_mut(&secret)?;
        let before = followed.said.clone();
        followed.take(&secret, said);
        let read = followed.said.clone();
        if read == before {
            return None;
        }
        if let Some(problem) = &read.problem {
            tracing::warn!(
                secret = %secret,
                problem = &**problem,
                kept = read.good.is_some(),
                "a Secret that a DestinationRule names cannot be used"
            );
        }
        self.count();
        Some(Event::Secret { secret, read })
    }
}

impl Followed {
    fn is_known(&self) -> bool {
        self.said != ReadSecret::default()
    }

    fn take(&mut self, name: &SecretName, said: watcher::Result<watcher::Event<Secret>>) {
        match said {
            Ok(watcher::Event::Init) => self.listed = None,
            Ok(watcher::Event::InitApply(secret)) => self.listed = Some(secret),
            Ok(watcher::Event::InitDone) => match self.listed.take() {
                Some(secret) => self.read(name, &secret),
                None => self.gone(),
            },
            Ok(watcher::Event::Apply(secret)) => self.read(name, &secret),
            Ok(watcher::Event::Delete(_)) => self.gone(),
            Err(error) => self.fail(name, &error),
        }
    }

    fn read(&mut self, name: &SecretName, secret: &Secret) {
        match contents::read(name, secret) {
            Ok(credential) => {
                self.said = ReadSecret {
                    good: Some(same_or(self.said.good.take(), credential)),
                    problem: None,
                }
            }
            Err(why) => self.said.problem = Some(format!("cannot be used: {why}").into()),
        }
    }

    /// Whoever takes it away wants it used no more.
    fn gone(&mut self) {
        self.said = ReadSecret {
            good: None,
            problem: Some(ABSENT.into()),
        };
    }

    /// What was good stays. An API server that is away for a moment is no news.
    fn fail(&mut self, name: &SecretName, error: &watcher::Error) {
        let problem = match is_forbidden(error) {
            true => forbidden(name),
            false if self.said.good.is_some() || self.said.problem.is_some() => return,
            false => AWAY.to_owned(),
        };
        self.said.problem = Some(problem.into());
    }
}

fn same_or(before: Option<Arc<Credential>>, now: Credential) -> Arc<Credential> {
    match before {
        Some(before) if *before == now => before,
        _ => Arc::new(now),
    }
}

/// A watch of one Secret, by its name: a right on that name is enough.
fn begin(client: &Client, secret: &SecretName) -> (AbortHandle, BoxStream<'static, Said>) {
    let api: Api<Secret> = Api::namespaced(client.clone(), &secret.namespace);
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={}", secret.name))
        .timeout(WATCH_SECONDS);
    let (stop, stopped) = AbortHandle::new_pair();
    let name = secret.clone();
    let said = steady(api, config).map(move |event| (name.clone(), event));
    (stop, Abortable::new(said, stopped).boxed())
}

fn is_forbidden(error: &watcher::Error) -> bool {
    use watcher::Error as E;
    match error {
        E::InitialListFailed(kube::Error::Api(status))
        | E::WatchStartFailed(kube::Error::Api(status))
        | E::WatchFailed(kube::Error::Api(status))
        | E::WatchError(status) => status.code == 403,
        _ => false,
    }
}

fn forbidden(SecretName { namespace, name }: &SecretName) -> String {
    format!(
        "may not be read by the controller: add {{namespace: {namespace}, name: {name}}} to the chart's value `credentials`"
    )
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn name() -> SecretName {
        SecretName {
            namespace: "shop".into(),
            name: "web-client".into(),
        }
    }

    fn followed() -> Followed {
        Followed {
            stop: AbortHandle::new_pair().0,
            listed: None,
            said: ReadSecret::default(),
        }
    }

    fn status(code: u16) -> watcher::Error {
        let status = Status {
            code,
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    fn problem(followed: &Followed) -> &str {
        followed.said.problem.as_deref().unwrap_or_default()
    }

    #[test]
    fn what_was_good_stays_until_the_secret_goes() {
        let mut one = followed();
        let (good, bad) = (contents::tests::mutual(), contents::tests::torn());
        one.take(&name(), Ok(watcher::Event::Init));
        assert!(!one.is_known(), "half a list says nothing");
        one.take(&name(), Ok(watcher::Event::InitApply(good)));
        one.take(&name(), Ok(watcher::Event::InitDone));
        let first = one.said.clone();
        assert!(first.good.is_some() && first.problem.is_none());
        one.take(&name(), Ok(watcher::Event::Apply(bad)));
        assert_eq!(one.said.good, first.good);
        let said = problem(&one);
        assert!(said.starts_with("cannot be used: "), "{said}");
        one.take(&name(), Err(status(500)));
        assert_eq!(one.said.good, first.good);
        // Listed anew, and not there.
        one.take(&name(), Ok(watcher::Event::Init));
        one.take(&name(), Ok(watcher::Event::InitDone));
        assert_eq!((one.said.good.is_none(), problem(&one)), (true, ABSENT));
    }

    #[test]
    fn a_missing_right_is_named_with_the_value_that_gives_it() {
        let mut one = followed();
        one.take(&name(), Err(status(403)));
        assert!(
            problem(&one).contains("{namespace: shop, name: web-client}"),
            "{}",
            problem(&one)
        );
        let mut away = followed();
        away.take(&name(), Err(status(503)));
        assert_eq!(problem(&away), AWAY);
    }

    #[test]
    fn without_a_cluster_everything_is_answered_at_once() {
        let mut keeper = Keeper::new(None, CredentialMetrics::default());
        let events = keeper.follow([name()].into());
        let [Event::Secret { read, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(read.problem.as_deref(), Some(OF_FILES));
    }
}
