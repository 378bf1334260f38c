//! The shell: writes what the ledger wants while this replica leads, a bounded number each round.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
use tokio::sync::watch;

use super::{Reach, Share, Statuses, Wanted, WantedParents, announce::Announcer};
use crate::serve::{acks::Acks, peer::Peer, resources::Revision};

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
/// Longest wait for the API server.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Writes until `shutdown`, in the rounds in which this replica leads.
pub async fn run(
    client: Client,
    statuses: Arc<Statuses>,
    acks: Arc<Acks>,
    share: Share,
    leads: watch::Receiver<bool>,
    metrics: StatusMetrics,
    shutdown: Shutdown,
) {
    let mut writer = Writer {
        announcer: Announcer::new(client.clone()),
        client,
        statuses,
        acks,
        share,
        metrics,
        round: 0,
        silent_until: 0,
        led: false,
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = shutdown.cancelled() => return,
        }
        let leads = *leads.borrow();
        writer.round(leads).await;
    }
}

struct Writer {
    client: Client,
    statuses: Arc<Statuses>,
    acks: Arc<Acks>,
    /// What replicas tell each other of their followers.
    share: Share,
    metrics: StatusMetrics,
    announcer: Announcer,
    round: u64,
    /// Nothing is written before this round, after a failure.
    silent_until: u64,
    led: bool,
}

impl Writer {
    async fn round(&mut self, leads: bool) {
        self.round += 1;
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
        for wanted in self.wanted() {
            let key = wanted.key.clone();
            if let Err(error) = self.write(wanted).await {
                self.failed(&key, &error);
                self.statuses.lock().again(key);
                return;
            }
        }
        if !self.write_routes().await {
            return;
        }
        self.announce().await;
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
        match tokio::time::timeout(PATIENCE, writing).await {
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
        match tokio::time::timeout(PATIENCE, writing).await {
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

    fn failed(&mut self, key: &ObjectKey, error: &kube::Error) {
        self.metrics.failed.inc();
        self.silent_until = self.round + FAILED_ROUNDS;
        tracing::warn!(object = %key, error = %Chain(error), "status or event could not be written: trying again in 5 s");
    }
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
