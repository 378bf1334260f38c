//! The trust bundle in every namespace: ConfigMap `istio-ca-root-cert`, as agents and gateways mount it.
//!
//! ```text
//!   namespaces, ConfigMaps of that name (watched) ──► Bundles (pure) ──► who lacks it ──► server-side apply, leader only
//!   the root changed ─────────────────────────────────────┘
//! ```

mod desired;

use std::{pin::pin, sync::Arc, time::Instant};

use futures_util::{Stream, StreamExt as _, stream};
use karst_ca::Authority;
use karst_k8s_api::k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::watcher,
};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::sync::watch;

use self::desired::Bundles;
use crate::{lease::Leadership, watch::steady};

/// Name of the ConfigMap, Istio's.
const NAME: &str = "istio-ca-root-cert";
/// Key in it.
const KEY: &str = "root-cert.pem";
/// Who owns the key, to the API server.
const MANAGER: &str = "karst-controller";
/// Writes under way at once.
const WRITES_MAX: usize = 8;

/// Keeps the ConfigMaps.
pub struct BundleKeeper {
    /// A [`fenced`](crate::lease::fenced) one.
    pub client: Client,
    pub authority: Arc<Authority>,
    pub leadership: Leadership,
    /// Counts changes of the root.
    pub changes: watch::Receiver<u64>,
    pub metrics: BundleMetrics,
}

/// What is counted about them.
#[derive(Clone)]
pub struct BundleMetrics {
    written: Counter,
    failed: Counter,
}

impl BundleMetrics {
    pub fn register(registry: &Registry) -> Self {
        let written = "Trust bundles written to namespaces";
        let failed = "Trust bundles that could not be written";
        Self {
            written: registry.register("karst_bundles_written", written, Counter::default()),
            failed: registry.register("karst_bundles_failed", failed, Counter::default()),
        }
    }
}

/// One thing that may change what is to be written.
enum Notice {
    Namespaces(watcher::Event<PartialObjectMeta<Namespace>>),
    Maps(watcher::Event<ConfigMap>),
}

impl BundleKeeper {
    /// Works while this replica leads.
    pub async fn run(mut self, shutdown: Shutdown) {
        let work = async {
            loop {
                self.leadership.held().await;
                let mut leadership = self.leadership.clone();
                tokio::select! {
                    () = self.lead() => {}
                    () = leadership.lost() => {}
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    async fn lead(&mut self) {
        let mut bundles = Bundles::new(self.authority.root_pem());
        let mut notices = pin!(stream::select(self.namespaces(), self.maps()));
        let mut changes = self.changes.clone();
        loop {
            let wait = bundles.wait(Instant::now());
            tokio::select! {
                notice = notices.next() => match notice {
                    Some(Notice::Namespaces(event)) => take_namespace(&mut bundles, event),
                    Some(Notice::Maps(event)) => take_map(&mut bundles, event),
                    None => return,
                },
                changed = changes.changed() => match changed {
                    Ok(()) => bundles.set_pem(self.authority.root_pem()),
                    Err(_gone) => return,
                },
                () = sleep_for(wait) => {}
            }
            self.write(&mut bundles).await;
        }
    }

    async fn write(&self, bundles: &mut Bundles) {
        let wanted = bundles.due(Instant::now());
        if wanted.is_empty() {
            return;
        }
        let pem: Arc<str> = bundles.pem().into();
        let writes = wanted.into_iter().map(|namespace| {
            let pem = pem.clone();
            async move {
                let outcome = self.write_one(&namespace, &pem).await;
                (namespace, outcome)
            }
        });
        let mut written = stream::iter(writes).buffer_unordered(WRITES_MAX);
        while let Some((namespace, outcome)) = written.next().await {
            match outcome {
                Ok(()) => self.metrics.written.inc(),
                Err(error) => {
                    self.metrics.failed.inc();
                    let error = Chain(&error);
                    tracing::warn!(namespace, %error, "trust bundle {NAME} not written: trying again");
                    bundles.failed(&namespace);
                    continue;
                }
            };
            bundles.written(&namespace, &pem);
        }
    }

    /// Creates the ConfigMap or sets its key; other keys are left alone.
    async fn write_one(&self, namespace: &str, pem: &str) -> kube::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
            "data": {KEY: pem},
        });
        let params = PatchParams::apply(MANAGER).force();
        match maps.patch(NAME, &params, &Patch::Apply(&map)).await {
            Ok(_) => Ok(()),
            // The namespace has gone meanwhile, or is about to: its deletion will be told.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(kube::Error::Api(status)) if is_terminating(&status.message) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn namespaces(&self) -> impl Stream<Item = Notice> + Send + use<> {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let config = watcher::Config::default().timeout(60);
        events(api, config).map(Notice::Namespaces)
    }

    fn maps(&self) -> impl Stream<Item = Notice> + Send + use<> {
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let config = watcher::Config::default()
            .timeout(60)
            .fields(&format!("metadata.name={NAME}"));
        events(api, config).map(Notice::Maps)
    }
}

/// Events of a watch that waits between failures, and says of each what failed.
fn events<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Event<K>> + Send + use<K>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = steady(api, config);
    events.filter_map(|event| async move {
        event
            .inspect_err(|error| tracing::warn!(error = %Chain(error), "trust bundles: watch interrupted, trying again"))
            .ok()
    })
}

fn take_namespace(bundles: &mut Bundles, event: watcher::Event<PartialObjectMeta<Namespace>>) {
    use watcher::Event as E;
    let name =
        |object: &PartialObjectMeta<Namespace>| object.metadata.name.clone().unwrap_or_default();
    match event {
        E::Init => bundles.begin_namespaces(),
        E::InitDone => bundles.end_namespaces(),
        E::InitApply(object) | E::Apply(object) => {
            let terminating = object.metadata.deletion_timestamp.is_some();
            bundles.namespace(name(&object), terminating);
        }
        E::Delete(object) => bundles.forget(&name(&object)),
    }
}

fn take_map(bundles: &mut Bundles, event: watcher::Event<ConfigMap>) {
    use watcher::Event as E;
    let namespace = |map: &ConfigMap| map.metadata.namespace.clone().unwrap_or_default();
    match event {
        E::Init => bundles.begin_maps(),
        E::InitDone => bundles.end_maps(),
        E::InitApply(mut map) | E::Apply(mut map) => {
            let pem = map.data.as_mut().and_then(|data| data.remove(KEY));
            bundles.found(namespace(&map), pem.unwrap_or_default());
        }
        E::Delete(map) => bundles.missing(&namespace(&map)),
    }
}

/// How the API server refuses to create anything in a namespace that is being deleted.
fn is_terminating(message: &str) -> bool {
    message.contains("because it is being terminated")
}

async fn sleep_for(wait: Option<std::time::Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
