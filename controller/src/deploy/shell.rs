//! Talks to the API server: makes the objects of waypoints, and writes the status of their Gateways.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use karst_index::{Condition, ConditionType};
use karst_k8s_api::{
    ObjectKey,
    gateway::{Gateway, GatewayClass, gateway_class::WAYPOINT_CLASS},
    k8s_openapi::api::core::v1::ConfigMap,
};
use karst_runtime::supervise::Shutdown;
use karst_telemetry::{error_chain::Chain, metrics::Registry};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh64::xxh64;

use super::{
    Known, Waypoints, mesh,
    render::{KEYS, Settings, objects},
    status,
};
use crate::lease::Leadership;

/// Who owns the fields, to the API server.
const MANAGER: &str = "karst-controller";
/// Between looks at what has changed.
const ROUND: Duration = Duration::from_millis(500);
/// Everything is compared and applied again this often: others may have changed it.
const REFRESH: Duration = Duration::from_secs(300);
/// Between looks at the XMeshes, which are not watched: few clusters have one, and it changes hardly ever.
const MESHES_EVERY: Duration = Duration::from_secs(30);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest time that one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone)]
pub struct DeployMetrics {
    applied: Counter,
    failed: Counter,
}

impl DeployMetrics {
    pub fn register(registry: &Registry) -> Self {
        let counter = |name, help| registry.register(name, help, Counter::default());
        Self {
            applied: counter(
                "karst_waypoint_objects_applied",
                "Objects of waypoints that were applied",
            ),
            failed: counter(
                "karst_waypoint_deployments_failed",
                "Attempts to deploy a waypoint, or to write its status, that failed",
            ),
        }
    }
}

/// Deploys.
pub struct Deployer {
    /// A [`fenced`](crate::lease::fenced) one.
    pub client: Client,
    pub waypoints: Arc<Waypoints>,
    pub leadership: Leadership,
    pub settings: Settings,
    pub metrics: DeployMetrics,
}

/// Why a waypoint is not deployed.
#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error("the API server refuses {what}")]
    Api {
        what: String,
        #[source]
        source: kube::Error,
    },
    #[error("the API server took too long over {0}")]
    Timeout(String),
    #[error(
        "infrastructure.parametersRef names {0}, expected a ConfigMap of the Gateway's namespace"
    )]
    Parameters(String),
    #[error("key {key:?} of ConfigMap {map} is no YAML")]
    Overlay {
        map: String,
        key: String,
        #[source]
        source: serde_saphyr::Error,
    },
}

/// What was applied, and when.
type Applied = HashMap<ObjectKey, (u64, Instant)>;

impl Deployer {
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

    async fn lead(&self) {
        let mut applied = Applied::new();
        let mut refreshed: Option<Instant> = None;
        let mut looked: Option<Instant> = None;
        loop {
            if refreshed.is_none_or(|at| at.elapsed() > REFRESH) {
                self.waypoints.refresh();
                applied.clear();
                refreshed = Some(Instant::now());
            }
            if looked.is_none_or(|at| at.elapsed() > MESHES_EVERY) {
                let settled = self.meshes().await.unwrap_or_else(|error| {
                    self.failed("XMesh", &error);
                    true
                });
                looked = settled.then(Instant::now);
            }
            let worked = self.round(&mut applied).await;
            tokio::time::sleep(if worked { ROUND } else { PAUSE }).await;
        }
    }

    /// Whether nothing failed.
    async fn round(&self, applied: &mut Applied) -> bool {
        let (gateways, classes) = self.waypoints.take();
        let mut worked = true;
        if let Some(classes) = classes
            && let Err(error) = self.class(classes.get(WAYPOINT_CLASS)).await
        {
            self.failed(&format!("GatewayClass {WAYPOINT_CLASS}"), &error);
            self.waypoints.class_again();
            worked = false;
        }
        for (key, known) in gateways {
            if let Err(error) = self.one(&key, known, applied).await {
                self.failed(&key.to_string(), &error);
                self.waypoints.again(key);
                worked = false;
            }
        }
        worked
    }

    fn failed(&self, what: &str, error: &DeployError) {
        self.metrics.failed.inc();
        tracing::warn!(object = what, error = %Chain(error), "waypoint not deployed as it should be: trying again");
    }

    /// The class is there, unless somebody else has made it, and its status says what it supports.
    async fn class(&self, present: Option<&GatewayClass>) -> Result<(), DeployError> {
        let Some(class) = present else {
            return match self.apply(status::class()).await {
                // The Gateway API is not installed: there are no Gateways to deploy.
                Err(DeployError::Api {
                    source: kube::Error::Api(refusal),
                    ..
                }) if refusal.code == 404 => Ok(()),
                outcome => outcome,
            };
        };
        match status::of_class(class, &now()) {
            Some(status) => {
                let object = status::class();
                self.write_status(object, status).await
            }
            None => Ok(()),
        }
    }

    /// The mesh's own object is there and says what the mesh supports, where the cluster knows the kind. Whether nothing more
    /// is to be done now.
    async fn meshes(&self) -> Result<bool, DeployError> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &mesh::resource());
        let present = match within("XMeshes", api.list(&ListParams::default())).await {
            Err(DeployError::Api {
                source: kube::Error::Api(refusal),
                ..
            }) if refusal.code == 404 => return Ok(true),
            present => present?.items,
        };
        match mesh::next(&present, self.client.default_namespace(), &now()) {
            mesh::Next::Make(object) => {
                self.apply(object).await?;
                Ok(false)
            }
            mesh::Next::Tell(told) => {
                for (object, status) in told {
                    self.write_status(object, status).await?;
                }
                Ok(true)
            }
        }
    }

    async fn one(
        &self,
        key: &ObjectKey,
        known: Known,
        applied: &mut Applied,
    ) -> Result<(), DeployError> {
        let (Some(gateway), Some(said)) = (known.gateway, known.status) else {
            return Ok(());
        };
        let accepted = |one: &Condition| one.kind == ConditionType::Accepted && one.status;
        let ours = !said.is_manual && said.conditions.iter().any(accepted);
        if ours && gateway.metadata.deletion_timestamp.is_none() {
            self.deploy(key, &gateway, said.trusted_proxies, applied)
                .await?;
        }
        if let Some(status) = status::of_gateway(&said, gateway.status.as_ref(), &now()) {
            let object = json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            });
            self.write_status(object, status).await?;
        }
        Ok(())
    }

    async fn deploy(
        &self,
        key: &ObjectKey,
        gateway: &Gateway,
        trusted_proxies: u16,
        applied: &mut Applied,
    ) -> Result<(), DeployError> {
        let overlay = self.overlay(gateway).await?;
        let objects = objects(gateway, &self.settings, trusted_proxies, &overlay);
        let text = serde_json::to_vec(&objects).unwrap_or_default();
        let hash = xxh64(&text, 0);
        if applied.get(key).is_some_and(|(before, _)| *before == hash) {
            return Ok(());
        }
        for object in objects {
            self.apply(object).await?;
        }
        tracing::info!(gateway = %key, "waypoint deployed");
        applied.insert(key.clone(), (hash, Instant::now()));
        Ok(())
    }

    /// The user's ConfigMap, by key.
    async fn overlay(&self, gateway: &Gateway) -> Result<Map<String, Value>, DeployError> {
        let reference = gateway
            .spec
            .infrastructure
            .as_ref()
            .and_then(|more| more.parameters_ref.as_ref());
        let Some(reference) = reference else {
            return Ok(Map::new());
        };
        if reference.kind != "ConfigMap" || !matches!(reference.group.as_str(), "" | "core") {
            let what = format!("{} {}", reference.kind, reference.name);
            return Err(DeployError::Parameters(what));
        }
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("ConfigMap {namespace}/{}", reference.name);
        let map = within(&what, api.get(&reference.name)).await?;
        let mut overlay = Map::new();
        for (key, text) in map.data.into_iter().flatten() {
            if KEYS.contains(&key.as_str()) {
                let value =
                    serde_saphyr::from_str(&text).map_err(|source| DeployError::Overlay {
                        map: what.clone(),
                        key: key.clone(),
                        source,
                    })?;
                overlay.insert(key, value);
            }
        }
        Ok(overlay)
    }

    async fn apply(&self, object: Value) -> Result<(), DeployError> {
        let (api, name, what) = self.api(&object);
        let parameters = PatchParams::apply(MANAGER).force();
        within(&what, api.patch(&name, &parameters, &Patch::Apply(&object))).await?;
        self.metrics.applied.inc();
        Ok(())
    }

    /// An object that is gone needs no status.
    async fn write_status(&self, mut object: Value, status: Value) -> Result<(), DeployError> {
        let (api, name, what) = self.api(&object);
        if let Some(fields) = object.as_object_mut() {
            fields.remove("spec");
        }
        object["status"] = status;
        let parameters = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let what = format!("status of {what}");
        let written = within(&what, api.patch_status(&name, &parameters, &patch)).await;
        match written {
            Err(DeployError::Api {
                source: kube::Error::Api(refusal),
                ..
            }) if refusal.code == 404 => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Where an object is written, its name, and how messages call it.
    fn api(&self, object: &Value) -> (Api<DynamicObject>, String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let (namespace, name) = (
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        let what = format!("{kind} {namespace}/{name}");
        let api = match namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        (api, name, what)
    }
}

async fn within<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, DeployError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(outcome) => outcome.map_err(|source| DeployError::Api {
            what: what.to_owned(),
            source,
        }),
        Err(_elapsed) => Err(DeployError::Timeout(what.to_owned())),
    }
}

/// As conditions have it: whole seconds.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
