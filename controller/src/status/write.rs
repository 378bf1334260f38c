//! The shell: writes what the ledger wants while this replica leads, a bounded number each round.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use karst_k8s_api::{Kind, ObjectKey, object::FIELD_MANAGER};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use serde_json::json;

use super::{Reach, Share, Statuses, Wanted, WantedParents, announce::Announcer};
use crate::{
    lease::{Leadership, WRITE_PATIENCE},
    serve::{acks::Acks, peer::Peer, resources::Revision},
};

/// Between rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Statuses of changed objects written in one round.
const FRESH_MAX: usize = 20;
/// Rounds between looks at which nodes have what.
const MOVED_EVERY: u64 = 5;
/// Statuses written then.
const MOVED_MAX: usize = 10;
/// Rounds to wait after a write failed.
const FAILED_ROUNDS: u64 = 25;

/// What writing counts.
#[derive(Clone, Debug, Default)]
pub struct StatusMetrics {
    pub written: Counter,
    pub failed: Counter,
    pub events: Counter,
    pub events_dropped: Gauge,
    pub waiting: Gauge,
}

impl StatusMetrics {
    /// Metrics that `registry` shows.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let counters = [
            (
                "karst_status_written",
                "Statuses of objects written",
                &metrics.written,
            ),
            (
                "karst_status_failed",
                "Statuses or events that could not be written, and are tried again",
                &metrics.failed,
            ),
            (
                "karst_status_events",
                "Events written about objects",
                &metrics.events,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let help = "Events not written because too many waited";
        registry.register(
            "karst_status_events_dropped",
            help,
            metrics.events_dropped.clone(),
        );
        let help = "Objects whose status waits to be looked at";
        registry.register("karst_status_waiting", help, metrics.waiting.clone());
        metrics
    }
}

/// Writes until `shutdown`, in the rounds in which this replica leads. `client` is a [`fenced`](crate::lease::fenced) one.
pub async fn run(
    client: Client,
    statuses: Arc<Statuses>,
    acks: Arc<Acks>,
    share: Share,
    leadership: Leadership,
    metrics: StatusMetrics,
    shutdown: Shutdown,
) {
    let mut writer = Writer {
        announcer: Announcer::new(client.clone()),
        client,
        statuses,
        acks,
        share,
        leadership,
        metrics,
        refused: VecDeque::new(),
        round: 0,
        silent_until: 0,
        led: false,
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = shutdown.cancelled() => return,
        }
        writer.round().await;
    }
}

struct Writer {
    client: Client,
    statuses: Arc<Statuses>,
    acks: Arc<Acks>,
    /// What replicas tell each other of their followers.
    share: Share,
    leadership: Leadership,
    metrics: StatusMetrics,
    /// Objects whose status the API server refused, and the round in which they are tried again: nobody waits for them.
    refused: VecDeque<(u64, ObjectKey)>,
    announcer: Announcer,
    round: u64,
    /// Nothing is written before this round, after a failure.
    silent_until: u64,
    led: bool,
}

impl Writer {
    async fn round(&mut self) {
        self.round += 1;
        let leads = self.leadership.is_held();
        if leads && !self.led {
            self.statuses.lock().refresh();
            self.statuses.routes().refresh();
        }
        self.led = leads;
        if self.round.is_multiple_of(MOVED_EVERY) {
            self.exchange(leads).await;
        }
        if !leads || self.round < self.silent_until {
            return;
        }
        self.try_refused();
        if self.write_statuses().await && self.write_routes().await {
            self.announce().await;
        }
    }

    fn try_refused(&mut self) {
        let mut ledger = self.statuses.lock();
        while let Some((_, key)) = self.refused.pop_front_if(|(round, _)| *round <= self.round) {
            ledger.again(key);
        }
    }

    /// Whether to go on: what could not be written for the API server's sake waits, with all that was to follow.
    async fn write_statuses(&mut self) -> bool {
        let mut wanted = self.wanted().into_iter();
        while let Some(next) = wanted.next() {
            let key = next.key.clone();
            match self.write(next).await {
                Ok(()) => {}
                Err(error) if is_refusal(&error) => self.refused(key, &error),
                Err(error) => {
                    self.failed(&key, &error);
                    let mut ledger = self.statuses.lock();
                    let rest = wanted.map(|one| one.key);
                    std::iter::once(key)
                        .chain(rest)
                        .for_each(|key| ledger.again(key));
                    return false;
                }
            }
        }
        true
    }

    /// Tells the leader of our followers, or hears of those of others.
    async fn exchange(&mut self, leads: bool) {
        let exchanged = match leads {
            true => self.share.hear().await.map(|others| {
                self.statuses.lock().hear(others);
            }),
            false => {
                let peers = self.acks.held_by_peer();
                let summary = self.statuses.lock().summary(|at| reached(&peers, at));
                self.share.tell(summary).await
            }
        };
        if let Err(error) = exchanged {
            tracing::debug!(error = %Chain(&error), "replicas do not hear of each other's followers now: trying again");
        }
    }

    /// Whether all could be written.
    async fn write_routes(&mut self) -> bool {
        let wanted = self.statuses.routes().take(FRESH_MAX, &now());
        let mut wanted = wanted.into_iter();
        while let Some(next) = wanted.next() {
            let key = next.key.clone();
            if let Err(error) = self.write_parents(next).await {
                self.failed(&key, &error);
                let mut routes = self.statuses.routes();
                routes.again(key);
                wanted.for_each(|one| routes.again(one.key));
                return false;
            }
        }
        true
    }

    /// A route that somebody else has changed meanwhile comes again by the watch.
    async fn write_parents(&mut self, wanted: WantedParents) -> Result<(), kube::Error> {
        let ObjectKey {
            kind,
            namespace,
            name,
        } = &wanted.key;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(*kind));
        let list = match kind {
            Kind::BackendTlsPolicy => "ancestors",
            _ => "parents",
        };
        let patch = json!({
            "metadata": {"resourceVersion": wanted.resource_version},
            "status": {list: wanted.parents},
        });
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let writing = api.patch_status(name, &parameters, &patch);
        match tokio::time::timeout(WRITE_PATIENCE, writing).await {
            Ok(Ok(_)) => {
                self.metrics.written.inc();
                Ok(())
            }
            Ok(Err(kube::Error::Api(refusal))) if matches!(refusal.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(kube::Error::Service("the API server took too long".into())),
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        let peers = self.acks.held_by_peer();
        let reach = |revision: Revision| reached(&peers, revision);
        let now = now();
        let mut ledger = self.statuses.lock();
        let mut wanted = ledger.take_fresh(FRESH_MAX, reach, &now);
        if self.round.is_multiple_of(MOVED_EVERY) {
            wanted.extend(ledger.take_moved(MOVED_MAX, reach, &now));
        }
        self.metrics
            .waiting
            .set(i64::try_from(ledger.waiting()).unwrap_or(i64::MAX));
        self.metrics
            .events_dropped
            .set(i64::try_from(ledger.dropped()).unwrap_or(i64::MAX));
        wanted
    }

    /// An object that is gone needs no status.
    async fn write(&self, wanted: Wanted) -> Result<(), kube::Error> {
        let ObjectKey {
            kind,
            namespace,
            name,
        } = &wanted.key;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(*kind));
        let mut status = json!({"conditions": wanted.conditions});
        if let Some(generation) = wanted.observed_generation {
            status["observedGeneration"] = generation.into();
        }
        if !wanted.addresses.is_empty() {
            status["addresses"] = wanted.addresses.clone().into();
        }
        let patch = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": {"name": name},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(patch);
        let writing = api.patch_status(name, &parameters, &patch);
        match tokio::time::timeout(WRITE_PATIENCE, writing).await {
            Ok(Ok(_)) => {
                self.metrics.written.inc();
                self.statuses.lock().written(wanted);
                Ok(())
            }
            Ok(Err(kube::Error::Api(refusal))) if refusal.code == 404 => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(kube::Error::Service("the API server took too long".into())),
        }
    }

    async fn announce(&mut self) {
        while self.announcer.may_speak() {
            let Some(announcement) = self.statuses.lock().take_announcement() else {
                return;
            };
            if let Err(error) = self.announcer.speak(&announcement).await {
                self.failed(&announcement.key, &error);
                self.statuses.lock().announce_again(announcement);
                return;
            }
            self.metrics.events.inc();
        }
    }

    fn refused(&mut self, key: ObjectKey, error: &kube::Error) {
        self.metrics.failed.inc();
        tracing::warn!(object = %key, error = %Chain(error), "the API server does not take this status: trying again in 5 s");
        self.refused.push_back((self.round + FAILED_ROUNDS, key));
    }

    fn failed(&mut self, key: &ObjectKey, error: &kube::Error) {
        self.metrics.failed.inc();
        self.silent_until = self.round + FAILED_ROUNDS;
        tracing::warn!(object = %key, error = %Chain(error), "status or event could not be written: trying again in 5 s");
    }
}

/// Whether the API server has understood and does not want it: another object may fare better.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400..=499) && status.code != 429)
}

/// How many of those who follow us have everything up to a revision.
fn reached(peers: &BTreeMap<Peer, Revision>, revision: Revision) -> Reach {
    Reach {
        have: peers.values().filter(|held| **held >= revision).count(),
        of: peers.len(),
    }
}

/// The time as conditions write it.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

fn resource(kind: Kind) -> ApiResource {
    let version = kind.versions().first().copied().unwrap_or_default();
    let gvk = GroupVersionKind::gvk(kind.group(), version, kind.name());
    ApiResource::from_gvk_with_plural(&gvk, kind.plural())
}
